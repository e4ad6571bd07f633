"""Clients of UDP proxies: for one target (RFC 9298), and bound (the bind draft).

They check what the proxy does against the rules, and raise `Violation` where it breaks one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import quote

from .streams import Carrier, RequestStream, Response, StreamEnded, require
from .wire import (
    CapsuleType,
    Fields,
    Remote,
    ack,
    assign,
    close,
    datagram,
    encode_remote,
    read_addresses,
    split_assign,
    split_context,
    split_datagram,
    split_remote,
)

# How long a datagram waits for the registration of its context (RFC 9298 section 5: "on the order
# of a round trip"); on loopback, anything later has been lost.
EARLY = 1.0


def request(host: str, port: int | str, *, bind: bool = False, authority: str) -> Fields:
    """A request with the default template (RFC 9298 sections 2 and 3.4)."""
    path = f"/.well-known/masque/udp/{quote(host, safe='')}/{quote(str(port), safe='')}/"
    fields = [
        (":method", "CONNECT"),
        (":protocol", "connect-udp"),
        (":scheme", "https"),
        (":authority", authority),
        (":path", path),
        ("capsule-protocol", "?1"),
    ]
    return [*fields, ("connect-udp-bind", "?1")] if bind else fields


async def repeat(
    send: Callable[[], None], receive: Callable[[], Awaitable[None]], *, timeout: float = 10.0
) -> None:
    """Send, and again every second, until what is awaited has come.

    Raises:
        TimeoutError: it did not in time.
    """
    async with asyncio.timeout(timeout):
        while True:
            send()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    return await receive()


class RefusedError(Exception):
    """The proxy answered with another status than 2xx."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"{response.status}: {response.field('proxy-status')}")
        self.response = response


async def _open(carrier: Carrier, fields: Fields) -> tuple[RequestStream, Response]:
    stream = await carrier.start(fields)
    response = await stream.response()
    if not 200 <= response.status < 300:
        require(
            response.field("capsule-protocol") is None,
            "RFC 9297, section 3.4: Capsule-Protocol with another status",
        )
        raise RefusedError(response)
    require(response.status not in {204, 205, 206}, f"RFC 9297, section 3.2: {response.status}")
    for forbidden in ("content-length", "content-type", "transfer-encoding"):
        require(response.field(forbidden) is None, f"RFC 9297, section 3.2: {forbidden}")
    require(response.field("capsule-protocol") == "?1", "RFC 9297, section 3.4")
    return stream, response


class Tunnel:
    """UDP to and from one target."""

    def __init__(self, stream: RequestStream, response: Response) -> None:
        self.stream = stream
        self.response = response

    @classmethod
    async def open(
        cls, carrier: Carrier, host: str, port: int, *, authority: str = "localhost"
    ) -> "Tunnel":
        """Ask for a tunnel.

        Raises:
            RefusedError: the proxy refused.
            StreamEnded: there was no answer.
        """
        stream, response = await _open(carrier, request(host, port, authority=authority))
        require(response.field("connect-udp-bind") is None, "bind was not asked for")
        return cls(stream, response)

    def send(self, payload: bytes) -> None:
        self.stream.send_datagram(datagram(0, payload))

    async def receive(self) -> bytes:
        """The next UDP payload.

        Raises:
            StreamEnded: there will be no more.
        """
        while True:
            capsule = await self.stream.next()
            if capsule.type == CapsuleType.DATAGRAM:
                context, payload = split_datagram(capsule.value)
                require(context == 0, f"context {context} was not registered")
                return payload

    async def echo(self, payload: bytes, *, timeout: float = 10.0) -> None:
        """Send, repeatedly since packets get lost, until the payload comes back."""

        async def receive() -> None:
            while await self.receive() != payload:
                pass

        await repeat(lambda: self.send(payload), receive, timeout=timeout)


class BoundTunnel:
    """UDP to and from any remote, through an address of the proxy."""

    def __init__(self, stream: RequestStream, response: Response) -> None:
        self.stream = stream
        self.response = response
        self.public: list[Remote] = read_addresses(response.field("proxy-public-address") or "")
        require(bool(self.public), "section 6: at least one address")
        self.packets: asyncio.Queue[tuple[Remote, bytes]] = asyncio.Queue()
        # Whom packets came from, ever.
        self.heard: set[Remote] = set()
        # Open contexts, of either side; None for the uncompressed one.
        self.contexts: dict[int, Remote | None] = {}
        self.closed: set[int] = set()
        self._answers: dict[int, asyncio.Future[bool]] = {}
        self._early: list[tuple[float, int, bytes]] = []
        self._next_id = 2

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, carrier: Carrier, *, authority: str = "localhost", fields: Fields | None = None
    ) -> AsyncIterator["BoundTunnel"]:
        """Ask for a bound tunnel, and follow it. A violation by the proxy is raised at the end.

        Raises:
            RefusedError: the proxy refused.
            StreamEnded: there was no answer.
        """
        asked = request("*", "*", bind=True, authority=authority) + (fields or [])
        stream, response = await _open(carrier, asked)
        require(response.field("connect-udp-bind") == "?1", "section 5: the proxy has no bind")
        tunnel = cls(stream, response)
        follow = asyncio.create_task(tunnel._follow())
        try:
            yield tunnel
        finally:
            follow.cancel()
            await asyncio.wait([follow])
            if not follow.cancelled() and not isinstance(follow.exception(), StreamEnded):
                follow.result()

    async def assign(self, target: Remote | None) -> int | None:
        """Register a context, uncompressed without a target. None if it is rejected."""
        context = self.start_assign(target)
        return context if await self._answers[context] else None

    def start_assign(self, target: Remote | None) -> int:
        """Register a context, to be used before the proxy answers."""
        assert target not in self.contexts.values(), "the test breaks the rules"
        context, self._next_id = self._next_id, self._next_id + 2
        self.contexts[context] = target
        self._answers[context] = asyncio.get_running_loop().create_future()
        self.stream.send_capsule(assign(context, target))
        return context

    def close_context(self, context: int) -> None:
        del self.contexts[context]
        self.closed.add(context)
        self.stream.send_capsule(close(context))

    def context_of(self, target: Remote | None) -> int | None:
        """The open context for a remote, or the uncompressed one for None."""
        return next((c for c, remote in self.contexts.items() if remote == target), None)

    def send(self, target: Remote, payload: bytes) -> None:
        """Send through the remote's context, or the uncompressed one."""
        context = self.context_of(target)
        if context is None:
            context = self.context_of(None)
            assert context is not None, f"no context for {target}"
            payload = encode_remote(target) + payload
        self.stream.send_datagram(datagram(context, payload))

    async def receive(self, *, timeout: float = 10.0) -> tuple[Remote, bytes]:
        """The next UDP packet: where it came from, and its payload."""
        async with asyncio.timeout(timeout):
            return await self.packets.get()

    async def echo(self, target: Remote, payload: bytes, *, timeout: float = 10.0) -> None:
        """Send, repeatedly since packets get lost, until the payload comes back.

        They do by design where a capsule and a datagram change places on their way: what comes in
        a context that is closed already is dropped.
        """

        async def receive() -> None:
            while await self.packets.get() != (target, payload):
                pass

        await repeat(lambda: self.send(target, payload), receive, timeout=timeout)

    async def _follow(self) -> None:
        while True:
            capsule = await self.stream.next()
            match capsule.type:
                case CapsuleType.DATAGRAM:
                    self._on_datagram(*split_datagram(capsule.value))
                case CapsuleType.COMPRESSION_ASSIGN:
                    self._on_assign(*split_assign(capsule.value))
                case CapsuleType.COMPRESSION_ACK:
                    self._on_ack(split_context(capsule.value))
                case CapsuleType.COMPRESSION_CLOSE:
                    self._on_close(split_context(capsule.value))

    def _on_datagram(self, context: int, payload: bytes) -> None:
        require(context != 0, "section 3: context 0 without a target")
        if context in self.closed:
            return
        if context not in self.contexts:
            require(context % 2 == 1, f"context {context} is ours, and was not registered")
            self._early.append((asyncio.get_running_loop().time() + EARLY, context, payload))
            return
        target = self.contexts[context]
        if target is None:
            target, payload = split_remote(payload)
        self._received(target, payload)

    def _received(self, source: Remote, payload: bytes) -> None:
        self.heard.add(source)
        self.packets.put_nowait((source, payload))

    def _on_assign(self, context: int, target: Remote | None) -> None:
        require(context % 2 == 1, f"RFC 9298, section 4: {context} is not the proxy's")
        require(target is not None, "section 4: only clients open uncompressed contexts")
        known = context in self.contexts or context in self.closed
        require(not known, f"section 3.1: {context} is used twice")
        existing = self.context_of(target)
        if existing is not None or self.context_of(None) is None:
            # Both opened one, or ours was closed while this one was on its way.
            ours = existing is None or existing % 2 == 0
            require(ours, f"section 3.1: {existing} has the same tuple")
            self.closed.add(context)
            self.stream.send_capsule(close(context))
            return
        self.contexts[context] = target
        self.stream.send_capsule(ack(context))
        assert target is not None
        now = asyncio.get_running_loop().time()
        early, self._early = self._early, []
        for deadline, waiting, payload in early:
            if waiting == context:
                self._received(target, payload)
            elif now < deadline:
                self._early.append((deadline, waiting, payload))

    def _on_ack(self, context: int) -> None:
        require(context in self._answers, f"section 3.2: {context} was not registered")
        self._answer(context, accepted=True)

    def _on_close(self, context: int) -> None:
        registered = context in self.contexts or context in self.closed
        require(registered, f"section 3.3: {context} was not registered")
        self.contexts.pop(context, None)
        self.closed.add(context)
        if context in self._answers:
            self._answer(context, accepted=False)

    def _answer(self, context: int, *, accepted: bool) -> None:
        if not self._answers[context].done():
            self._answers[context].set_result(accepted)
