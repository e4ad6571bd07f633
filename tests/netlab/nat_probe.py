"""The part of ``behaviour`` that runs inside hosts. Standard library only; prints JSON lines.

Behaviour discovery after RFC 5780: a server with two addresses and two ports on each answers from
whichever of the four sockets it is asked to, after a while if it is asked to, with the address it
saw. Requests and answers are JSON.
"""

from __future__ import annotations

import itertools
import json
import random
import selectors
import socket
import sys
import time
from typing import Any

_PORTS = (3478, 3479)
_TRIES = 3
_WAIT = 0.25  # seconds for one answer; the labs have no delay unless they are given one
_MAX = 2048

_Address = tuple[str, int]


def serve(addresses: list[str]) -> None:
    """Answer on every address and port."""
    selector = selectors.DefaultSelector()
    sockets: dict[_Address, socket.socket] = {}
    for address in addresses:
        for port in _PORTS:
            sock = _socket(address)
            sock.bind((address, port))
            sockets[address, port] = sock
            selector.register(sock, selectors.EVENT_READ)
    _emit(event="serving")
    due: list[tuple[float, socket.socket, bytes, Any]] = []
    while True:
        timeout = max(0.0, min(item[0] for item in due) - time.monotonic()) if due else None
        for key, _ in selector.select(timeout):
            arrived = key.fileobj
            assert isinstance(arrived, socket.socket)
            data, sender = arrived.recvfrom(_MAX)
            request = json.loads(data)
            answering = sockets[tuple(request["from"])] if "from" in request else arrived
            answer = json.dumps({"id": request["id"], "seen": sender[:2]}).encode()
            due.append((time.monotonic() + request.get("after", 0.0), answering, answer, sender))
        now = time.monotonic()
        for _, answering, answer, target in [item for item in due if item[0] <= now]:
            answering.sendto(answer, target)
        due = [item for item in due if item[0] > now]


class Client:
    """One socket that asks."""

    def __init__(self, family_of: str, port: int = 0) -> None:
        self.sock = _socket(family_of)
        self.sock.bind(("", port))
        self._ids = itertools.count(random.getrandbits(48))

    @property
    def port(self) -> int:
        """Its own port."""
        return int(self.sock.getsockname()[1])

    def ask(
        self,
        server: _Address,
        *,
        answer_from: _Address | None = None,
        after: float = 0.0,
        tries: int = _TRIES,
    ) -> _Address | None:
        """The address the server saw, or ``None`` if no answer came.

        Args:
            server: which of its sockets to ask.
            answer_from: which of them is to answer, by default the same.
            after: seconds the server is to wait with its answer.
            tries: how often to ask.
        """
        request: dict[str, object] = {"id": next(self._ids), "after": after}
        if answer_from is not None:
            request["from"] = answer_from
        wait = _WAIT + after
        for _ in range(tries):
            try:
                self.sock.sendto(json.dumps(request).encode(), server)
            except OSError:
                return None
            deadline = time.monotonic() + wait
            while (remaining := deadline - time.monotonic()) > 0:
                self.sock.settimeout(remaining)
                try:
                    answer = json.loads(self.sock.recv(_MAX))
                except (TimeoutError, OSError):
                    break
                if answer["id"] == request["id"]:
                    seen = answer["seen"]
                    return seen[0], seen[1]
        return None


def classify(first: str, second: str) -> None:
    """Print mapping, filtering and the ports seen."""
    (p1, p2), client = _PORTS, Client(first)
    servers = [(first, p1), (first, p2), (second, p1), (second, p2)]
    seen = [client.ask(server) for server in servers]
    own = [client.port]
    if None in seen:
        _emit(event="behaviour", udp=False)
        return
    if len(set(seen)) == 1:
        mapping = "ei"
    else:
        mapping = "ad" if seen[0] == seen[1] and seen[2] == seen[3] else "apd"
    # Filters are looked at with a socket that has asked nobody else.
    fresh = Client(first)
    external = fresh.ask(servers[0])
    if fresh.ask(servers[0], answer_from=(second, p2)) is not None:
        filtering = "ei"
    elif fresh.ask(servers[0], answer_from=(first, p2)) is not None:
        filtering = "ad"
    else:
        filtering = "apd"
    for _ in range(3):
        another = Client(first)
        own.append(another.port)
        seen.append(another.ask(servers[0]))
    _emit(
        event="behaviour",
        udp=True,
        mapping=mapping,
        filtering=filtering,
        own=own,
        seen=seen,
        external=external,
    )


def lasts(first: str, after: float) -> None:
    """Print whether an answer that comes so many seconds later gets in."""
    client = Client(first)
    answer = client.ask((first, _PORTS[0]), tries=1, after=after)
    _emit(event="lasts", works=answer is not None)


def watch(first: str) -> None:
    """Use one socket as the lines of input say: look, send to an address, receive from anybody."""
    client = Client(first)
    _emit(event="watching")
    for line in sys.stdin:
        match json.loads(line):
            case {"do": "look"}:
                _emit(event="seen", address=client.ask((first, _PORTS[0])))
            case {"do": "send", "to": [address, port]}:
                client.sock.sendto(b'{"id": null}', (address, port))
            case {"do": "receive"}:
                client.sock.settimeout(_WAIT)
                try:
                    _emit(event="received", sender=client.sock.recvfrom(_MAX)[1][:2])
                except OSError:
                    _emit(event="received", sender=None)


def _socket(like: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in like else socket.AF_INET, socket.SOCK_DGRAM)


def _emit(**event: object) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", *addresses]:
            serve(addresses)
        case ["classify", first, second]:
            classify(first, second)
        case ["lasts", first, after]:
            lasts(first, float(after))
        case ["watch", first]:
            watch(first)
        case _:
            sys.exit("usage: nat_probe.py serve|classify|lasts|watch ADDRESS...")
