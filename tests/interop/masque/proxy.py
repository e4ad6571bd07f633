"""A UDP proxy: RFC 9298, and the bind draft where it is asked for."""

import asyncio
import ipaddress
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from .streams import RequestStream, Violation, require
from .udp import UdpSocket
from .wire import (
    Capsule,
    CapsuleType,
    Fields,
    Remote,
    ack,
    assign,
    close,
    datagram,
    encode_remote,
    field,
    remote,
    split_assign,
    split_context,
    split_datagram,
    split_remote,
    write_addresses,
)

PREFIX = "/.well-known/masque/udp/"
GRANTED: Fields = [("capsule-protocol", "?1")]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a proxy may do or leave, to see how clients take it."""

    bind: bool = True
    """Grants bound requests; otherwise falls back as if it did not know the extension."""
    compress: bool = True
    """Opens a context for every remote it hears of."""
    early: bool = False
    """Sends the first datagram of such a context before its registration."""
    reject: bool = False
    """Rejects every registration but that of the uncompressed context."""


class UdpProxy:
    """Handles requests; `handle` is for `Handlers`."""

    def __init__(self, behaviour: Behaviour | None = None, *, host: str = "127.0.0.1") -> None:
        self.behaviour = behaviour or Behaviour()
        self._host = host
        self.requests: list[Fields] = []
        self.packets = 0
        """Packets bound requests have exchanged with remotes, in both directions."""

    async def handle(self, fields: Fields, stream: RequestStream) -> None:
        self.requests.append(fields)
        try:
            host, port = _target(fields)
        except ValueError as error:
            details = f'test;error=http_request_error;details="{error}"'
            stream.respond(400, [("proxy-status", details)])
            stream.end()
            return
        bind = self.behaviour.bind and field(fields, "connect-udp-bind") == "?1"
        if host == "*" and not bind:
            stream.respond(501, [("proxy-status", "test;error=http_request_denied")])
            stream.end()
        elif bind:
            await _Bound(stream, self, self._host).run(host, port)
        else:
            await _run_plain(stream, host, int(port))


def _target(fields: Fields) -> tuple[str, str]:
    """Target host and port, as text.

    Raises:
        ValueError: the request is not one for a UDP proxy.
    """
    if field(fields, ":method") != "CONNECT" or field(fields, ":protocol") != "connect-udp":
        raise ValueError("not connect-udp")
    path = field(fields, ":path") or ""
    parts = path.removeprefix(PREFIX).split("/")
    if not path.startswith(PREFIX) or len(parts) != 3 or parts[2]:
        raise ValueError("not the default template")
    # Both characters have to arrive percent-encoded (RFC 9298 section 3, bind draft section 2).
    if ":" in parts[0] or "*" in path:
        raise ValueError("not percent-encoded")
    host, port = unquote(parts[0]), unquote(parts[1])
    if (host == "*") != (port == "*"):
        raise ValueError("only one asterisk")
    if host != "*":
        ipaddress.ip_address(host)
        if not 1 <= int(port) <= 65535:
            raise ValueError("no such port")
    return host, port


async def _run_plain(stream: RequestStream, host: str, port: int) -> None:
    target = remote(host, port)
    with UdpSocket("::" if target.ip.version == 6 else "0.0.0.0", target) as udp:
        stream.respond(200, GRANTED)

        async def down() -> None:
            while True:
                _, payload = await udp.receive()
                stream.send_datagram(datagram(0, payload))

        async def up() -> None:
            while True:
                capsule = await stream.next()
                if capsule.type == CapsuleType.DATAGRAM:
                    context, payload = split_datagram(capsule.value)
                    if context == 0:
                        udp.send(payload)

        try:
            await _first(up(), down())
        except OSError:
            # RFC 9298 section 3.1: the socket is no longer usable.
            stream.end()


async def _first(*tasks: Coroutine[Any, Any, None]) -> None:
    """Run until one of them ends or fails, which is raised; the others are cancelled."""
    running = [asyncio.create_task(task) for task in tasks]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


class _Bound:
    """A bound request."""

    def __init__(self, stream: RequestStream, proxy: UdpProxy, host: str) -> None:
        self._stream = stream
        self._proxy = proxy
        self._behaviour = proxy.behaviour
        self._host = host
        # Open contexts, of either side; None for the uncompressed one.
        self._contexts: dict[int, Remote | None] = {}
        self._closed: set[int] = set()
        self._next_id = 1

    async def run(self, host: str, port: str) -> None:
        self._target = None if host == "*" else remote(host, int(port))
        with UdpSocket(self._host) as self._udp:
            public = ("proxy-public-address", write_addresses([self._udp.address]))
            self._stream.respond(200, [*GRANTED, ("connect-udp-bind", "?1"), public])
            await _first(self._up(), self._down())

    async def _up(self) -> None:
        while True:
            self._on_capsule(await self._stream.next())

    def _context_of(self, target: Remote | None) -> int | None:
        return next((c for c, remote in self._contexts.items() if remote == target), None)

    async def _down(self) -> None:
        while True:
            source, payload = await self._udp.receive()
            self._proxy.packets += 1
            context = self._context_of(source)
            uncompressed = self._context_of(None)
            if context is not None:
                self._stream.send_datagram(datagram(context, payload))
            elif source == self._target:
                self._stream.send_datagram(datagram(0, payload))
            elif uncompressed is None:
                continue
            elif self._behaviour.compress:
                self._open(source, payload)
            else:
                bound = encode_remote(source) + payload
                self._stream.send_datagram(datagram(uncompressed, bound))

    def _open(self, source: Remote, payload: bytes) -> None:
        context, self._next_id = self._next_id, self._next_id + 2
        self._contexts[context] = source
        if self._behaviour.early:
            self._stream.send_datagram(datagram(context, payload))
            self._stream.send_capsule(assign(context, source))
        else:
            self._stream.send_capsule(assign(context, source))
            self._stream.send_datagram(datagram(context, payload))

    def _on_capsule(self, capsule: Capsule) -> None:
        try:
            match capsule.type:
                case CapsuleType.DATAGRAM:
                    self._on_datagram(*split_datagram(capsule.value))
                case CapsuleType.COMPRESSION_ASSIGN:
                    self._on_assign(*split_assign(capsule.value))
                case CapsuleType.COMPRESSION_ACK:
                    context = split_context(capsule.value)
                    registered = context % 2 == 1 and context < self._next_id
                    require(registered, f"section 3.2: {context} was not registered")
                case CapsuleType.COMPRESSION_CLOSE:
                    self._on_close(split_context(capsule.value))
        except ValueError as error:
            raise Violation(f"RFC 9297, section 3.3: {error}") from error

    def _on_close(self, context: int) -> None:
        registered = context in self._contexts or context in self._closed
        require(registered, f"section 3.3: {context} was not registered")
        self._contexts.pop(context, None)
        self._closed.add(context)

    def _on_datagram(self, context: int, payload: bytes) -> None:
        if context == 0:
            require(self._target is not None, "section 3: context 0 without a target")
            target = self._target
        elif context in self._contexts:
            target = self._contexts[context]
        else:
            return
        if target is None:
            target, payload = split_remote(payload)
        self._udp.send(payload, target)
        self._proxy.packets += 1

    def _on_assign(self, context: int, target: Remote | None) -> None:
        require(context != 0, "section 3.1: 0 cannot be registered")
        require(context % 2 == 0, f"RFC 9298, section 4: {context} is the proxy's to allocate")
        known = context in self._contexts or context in self._closed
        require(not known, f"section 3.1: {context} is used twice")
        existing = self._context_of(target)
        if existing is not None:
            require(existing % 2 == 1, f"sections 3.1 and 4: {existing} is there already")
            # Both opened one: that of the proxy goes.
            del self._contexts[existing]
            self._closed.add(existing)
            self._stream.send_capsule(close(existing))
        if self._behaviour.reject and target is not None:
            self._closed.add(context)
            self._stream.send_capsule(close(context))
        else:
            self._contexts[context] = target
            self._stream.send_capsule(ack(context))
