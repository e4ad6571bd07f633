"""Measures a line: round trips one by one, or a flood. Standard library only; a script.

``echo PORT`` answers every datagram; ``count PORT`` counts them until one says ``end``;
``trips HOST PORT N INTERVAL`` prints round-trip times; ``flood HOST PORT N SIZE`` sends.
"""

from __future__ import annotations

import json
import socket
import sys
import time

_WAIT = 2.0  # seconds for one answer
_BUFFER = 8 << 20
_SO_RCVBUFFORCE = 33


def echo(port: int) -> None:
    """Answer every datagram."""
    sock = _bound(port)
    _emit(event="listening")
    while True:
        data, sender = sock.recvfrom(65536)
        sock.sendto(data, sender)


def count(port: int) -> None:
    """Count datagrams, and print how many came and how long that took, until one says so."""
    sock = _bound(port)
    _emit(event="listening")
    received, size, first, last = 0, 0, 0.0, 0.0
    order, numbers = True, -1
    while (data := sock.recv(65536)) != b"end":
        last = time.monotonic()
        first = first or last
        received += 1
        size += len(data)
        number = int.from_bytes(data[:4])
        order = order and number > numbers
        numbers = number
    _emit(event="counted", received=received, bytes=size, seconds=last - first, order=order)


def trips(address: tuple[str, int], number: int, interval: float) -> None:
    """Print round-trip times in seconds; lost ones are ``null``."""
    sock = _unbound(address)
    sock.settimeout(_WAIT)
    times: list[float | None] = []
    for index in range(number):
        began = time.perf_counter()
        sock.send(index.to_bytes(4))
        try:
            while int.from_bytes(sock.recv(65536)) != index:
                pass
            times.append(time.perf_counter() - began)
        except TimeoutError:
            times.append(None)
        time.sleep(interval)
    _emit(event="trips", seconds=times)


def flood(address: tuple[str, int], number: int, size: int) -> None:
    """Send as fast as the socket takes it, then say that this was all."""
    sock = _unbound(address)
    for index in range(number):
        sock.send(index.to_bytes(4).ljust(size, b"."))
    time.sleep(0.5)  # what ends the count must not be lost in a full queue
    for _ in range(20):
        sock.send(b"end")
        time.sleep(0.02)


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    sock.bind(("::", port))
    return sock


def _unbound(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect(address)
    return sock


def _emit(**event: object) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["echo", port]:
            echo(int(port))
        case ["count", port]:
            count(int(port))
        case ["trips", host, port, number, interval]:
            trips((host, int(port)), int(number), float(interval))
        case ["flood", host, port, number, size]:
            flood((host, int(port)), int(number), int(size))
        case _:
            sys.exit(__doc__)
