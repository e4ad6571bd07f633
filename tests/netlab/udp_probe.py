"""The part of ``probe`` that runs inside a host. Standard library only; prints JSON lines."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_UDP_SEGMENT = 103  # linux/udp.h
_HEADER = 64  # bytes of an answer that name the observed address


def echo(port: int) -> None:
    """Answer every datagram with one of the same size that starts with the sender's address."""
    selector = selectors.DefaultSelector()
    for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            sock = _udp(family)
            sock.bind((wildcard, port))
        except OSError:
            continue
        selector.register(sock, selectors.EVENT_READ, sock)
    _emit(event="listening")
    while True:
        for key, _ in selector.select():
            data, sender = key.data.recvfrom(65536)
            text = json.dumps(sender[:2]).encode().ljust(_HEADER)
            try:
                key.data.sendto(text.ljust(len(data)), sender)
            except OSError as error:
                _emit(event="reply_failed", error=_name(error))


def ask(address: str, port: int, *, size: int, segments: int, tries: int, timeout: float) -> None:
    """Send to an echo server and print what happened."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = _udp(family)
    except OSError as error:
        _emit(event="answer", received=0, observed=None, errors=[_name(error)])
        return
    observed: tuple[str, int] | None = None
    received = 0
    errors: set[str] = set()
    for attempt in range(tries):
        try:
            if segments > 1:
                control = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("@H", size))]
                sock.sendmsg([bytes(size * segments)], control, 0, (address, port))
            else:
                sock.sendto(bytes(size), (address, port))
        except OSError as error:
            errors.add(_name(error))
        if attempt == 0:
            _emit(event="asking")
        deadline = time.monotonic() + timeout
        received = 0
        while received < segments and (remaining := deadline - time.monotonic()) > 0:
            sock.settimeout(remaining)
            try:
                data = sock.recv(65536)
            except TimeoutError:
                break
            except OSError as error:
                errors.add(_name(error))
                continue
            observed = tuple(json.loads(data[:_HEADER]))
            received += 1
        if received == segments:
            break
    _emit(event="answer", received=received, observed=observed, errors=sorted(errors))


def families() -> None:
    """Print which sockets can be made and bound, with the error's name where not."""

    def attempt(action: Callable[[], None]) -> str | None:
        try:
            action()
        except OSError as error:
            return _name(error)
        return None

    def bind(family: int, host: str, v6only: int | None) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            if v6only is not None:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
            sock.bind((host, 0))

    _emit(
        inet=attempt(lambda: bind(socket.AF_INET, "0.0.0.0", None)),
        inet6=attempt(lambda: bind(socket.AF_INET6, "::", 1)),
        inet6_loopback=attempt(lambda: bind(socket.AF_INET6, "::1", 1)),
        dual=attempt(lambda: bind(socket.AF_INET6, "::", 0)),
    )


def _udp(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, 23, 2)  # IPV6_MTU_DISCOVER = DO: never fragment
    else:
        sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER = DO
    return sock


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, os.strerror(error.errno or 0))


def _emit(**event: object) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["echo", port]:
            echo(int(port))
        case ["ask", address, port, size, segments, tries, timeout]:
            ask(
                address,
                int(port),
                size=int(size),
                segments=int(segments),
                tries=int(tries),
                timeout=float(timeout),
            )
        case ["families"]:
            families()
        case _:
            sys.exit("usage: udp_probe.py echo PORT | ask ... | families")
