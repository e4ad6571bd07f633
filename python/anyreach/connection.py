"""Connections: what is shared with one peer, and the paths it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from anyreach._bridge import current_bridge
from anyreach._paths import current
from anyreach.errors import ConnectionLost
from anyreach.explain import Account, explain
from anyreach.peer import PeerId
from anyreach.streams import BytesLike, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType
    from typing import Self

    from anyreach import _core
    from anyreach.errors import Attempt
    from anyreach.explain import Explanation

__all__ = ["Connection", "ConnectionStats", "Method", "Path", "PathChange"]

Method: TypeAlias = Literal["direct", "punched", "relayed"]
"""How a path was made: a dial that was answered, coordinated probing, or through a relay."""


@dataclass(frozen=True, slots=True)
class Path:
    """One path of a connection, as it was at one moment.

    Attributes:
        id: number of the path within the connection.
        method: ``"direct"``, ``"punched"`` or ``"relayed"``.
        remote: ``ip:port`` (``[v6]:port``) the packets go to.
        local: our IP address on this path; ``None`` where the system does not tell.
        current: whether data goes this way.
        rtt: smoothed round-trip time in seconds.
        send_rate: bytes per second sent lately, headers and retransmissions included.
        receive_rate: bytes per second received lately.
        since: :func:`time.time` when the path came up.
        mtu: largest UDP payload known to pass, in bytes.
        congestion_window: bytes that may be in flight.
        sent_bytes: UDP payload sent since the path came up.
        received_bytes: UDP payload received since the path came up.
        lost_packets: packets declared lost.
        observed: our ``ip:port`` as the peer sees it on this path (OBSERVED_ADDRESS); ``None``
            until it has told.
        relay: PeerId of the relay a relayed path goes through, as text. ``None`` on other paths,
            and where it is not known: a peer that sends through a tunnel of its own to where this
            node can be reached anyway does not say so.
    """

    id: int
    method: Method
    remote: str
    local: str | None
    current: bool
    rtt: float
    send_rate: float
    receive_rate: float
    since: float
    mtu: int
    congestion_window: int
    sent_bytes: int
    received_bytes: int
    lost_packets: int
    observed: str | None
    relay: str | None = None


@dataclass(frozen=True, slots=True)
class PathChange:
    """The paths of a connection changed.

    Attributes:
        reason: what happened last, in a word, such as ``"established"``, ``"abandoned"``,
            ``"better"`` or ``"failover"``.
        path: the path data takes now; ``None`` if none is usable at the moment.
        paths: all open paths, the one in use first.
    """

    reason: str
    path: Path | None
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    """Totals of a connection over all its paths.

    Attributes:
        sent_bytes: UDP payload sent.
        sent_packets: UDP datagrams sent.
        received_bytes: UDP payload received.
        received_packets: UDP datagrams received.
        lost_bytes: bytes in packets declared lost.
        lost_packets: packets declared lost.
    """

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int
    lost_bytes: int
    lost_packets: int


class Connection:
    """An encrypted connection to one peer, made by :class:`anyreach.Node`.

    The peer proved its PeerId. Objects of the same connection are equal, also when they were
    obtained in different ways. It lives until either side closes it or the node is closed, not
    until the last object is forgotten; as a context manager it closes at the end of the block.

    Safe to use from several tasks, and from several event loops. Methods that wait may be
    cancelled without losing a stream or a datagram; they raise
    :class:`~anyreach.ConnectionLost` when the connection has ended.
    """

    __slots__ = ("__weakref__", "_account", "_attempts", "_core", "_next_kind", "_rates")

    def __init__(self, core: _core.Connection) -> None:
        self._core: Final = core
        # Set by the node, which keeps the log.
        self._account: Callable[[tuple[Path, ...]], Account] | None = None
        self._attempts: tuple[Attempt, ...] = ()
        self._rates = _Rates()
        self._next_kind = True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Connection):
            return NotImplemented
        return self._core.id == other._core.id

    def __hash__(self) -> int:
        return hash(self._core.id)

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.direction
        return f"<Connection {self._core.id} {self.peer_id} {state}>"

    @property
    def peer_id(self) -> PeerId:
        """Who is at the other end."""
        return PeerId(self._core.peer_id)

    @property
    def public_key(self) -> bytes:
        """The peer's public key, DER SubjectPublicKeyInfo; its SHA-256 is the PeerId."""
        return self._core.public_key

    @property
    def direction(self) -> Literal["in", "out"]:
        """``"out"`` if this side dialed."""
        return "out" if self._core.outbound else "in"

    @property
    def key_exchange_group(self) -> str:
        """The negotiated key exchange, ``"X25519MLKEM768"`` or ``"MLKEM768"``."""
        return self._core.key_exchange_group

    @property
    def handshake_time(self) -> float:
        """Seconds from the first packet until the peer had proved itself."""
        return self._core.handshake_seconds

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """What :meth:`anyreach.Node.connect` tried until the connection was there.

        In the order of their start, as :attr:`anyreach.ConnectError.attempts` has it for those
        that failed. The reason is ``"ok"`` for the one that made the connection. Empty for
        connections peers made.
        """
        return self._attempts

    # Paths

    @property
    def paths(self) -> tuple[Path, ...]:
        """The open paths, the one in use first; none once the connection has ended."""
        return self._rates.paths(self._core.paths())

    @property
    def path(self) -> Path | None:
        """The path data takes; ``None`` if there is none at the moment, or the end came."""
        return current(self.paths)

    @property
    def observed_address(self) -> str | None:
        """Our ``ip:port`` as the peer sees it on the path in use; ``None`` until it has told."""
        path = self.path
        return path.observed if path else None

    def path_changes(self) -> AsyncIterator[PathChange]:
        """Yields whenever the paths changed after this call, until the connection ends.

        Changes in quick succession may be told as one, with the latest state. Ends without an
        exception.
        """
        return self._path_changes(self._core.path_changes)

    def explain(self) -> Explanation:
        """Why the connection takes the path it takes: both NATs, what became of each address, what
        was tried, and what would help. ``str()`` of it is for people.

        The side that dialed has the log of the attempts. Once the connection has ended only what
        it was is left.
        """
        if self._account is None:
            return explain(
                Account(str(self.peer_id), outbound=self._core.outbound, paths=self.paths)
            )
        return explain(self._account(self.paths))

    async def _path_changes(self, seen: int) -> AsyncIterator[PathChange]:
        bridge = current_bridge()
        while True:
            try:
                seen, reason = await bridge.wait(self._core.poll_path_change, seen)
            except ConnectionLost:
                return
            paths = self.paths
            yield PathChange(reason, current(paths), paths)

    # Streams

    async def open_stream(self, *, bidirectional: bool = True) -> Stream:
        """A new stream, as soon as the peer allows one more.

        The peer learns of it with the first data.
        """
        send, recv = await current_bridge().wait(self._core.poll_open, bidirectional)
        return Stream(send, recv)

    async def accept_stream(self) -> Stream:
        """The next stream the peer opened, of either kind."""
        send, recv = await current_bridge().wait(self._poll_accept)
        return Stream(send, recv)

    async def incoming_streams(self) -> AsyncIterator[Stream]:
        """The streams the peer opens, of both kinds, until the connection ends.

        Ends without an exception if either side closed the connection, else raises
        :class:`~anyreach.ConnectionLost`.
        """
        while True:
            try:
                stream = await self.accept_stream()
            except ConnectionLost as lost:
                if lost.reason in _ORDERLY:
                    return
                raise
            yield stream

    def _poll_accept(
        self, bridge: _core.Bridge, token: int
    ) -> tuple[_core.SendStream | None, _core.RecvStream] | None:
        # Turns about, so that a flood of one kind does not hide the other.
        first = self._next_kind
        stream = self._core.poll_accept(first, bridge, token)
        if stream is not None:
            self._next_kind = not first
            return stream
        return self._core.poll_accept(not first, bridge, token)

    # Datagrams

    def send_datagram(self, data: BytesLike) -> bool:
        """Send ``data`` unreliably; ``False`` if the queue has no room and it was dropped.

        Right for what is stale a moment later; :meth:`send_datagram_wait` waits for room.

        Raises:
            ValueError: longer than :attr:`max_datagram_size`, or the peer takes none.
            ConnectionLost: the connection has ended.
        """
        return self._core.send_datagrams((data,)) == 1

    def send_datagrams(self, datagrams: Sequence[BytesLike]) -> int:
        """As :meth:`send_datagram` for many at once, much cheaper; how many were queued.

        The first that finds no room and all after it are dropped.
        """
        return self._core.send_datagrams(datagrams)

    async def send_datagram_wait(self, data: BytesLike) -> None:
        """Send ``data`` unreliably, once the queue has room for it.

        The queue empties at the pace of the path. The peer's application has no say in that:
        what it does not receive in time it loses, as :meth:`receive_datagrams` describes.

        Raises:
            ValueError: as for :meth:`send_datagram`.
            ConnectionLost: the connection has ended.
        """
        await self.send_datagrams_wait((data,))

    async def send_datagrams_wait(self, datagrams: Sequence[BytesLike]) -> None:
        """As :meth:`send_datagram_wait` for many at once, in their order.

        If it is cancelled or raises, some may have been queued: always the first ones.
        """
        bridge = current_bridge()
        done = 0
        while done < len(datagrams):
            if bridge.credit <= 0:
                await bridge.give_way()
            bridge.credit -= 1
            done += self._core.send_datagrams(datagrams[done:])
            if done < len(datagrams):
                await bridge.wait(self._core.send_datagram_wait(datagrams[done]).poll)
                done += 1

    async def receive_datagrams(
        self,
        max: int = 64,  # noqa: A002 (a keyword of the public interface)
    ) -> list[bytes]:
        """Between one and ``max`` datagrams, as soon as there is one, oldest first.

        Datagrams nobody receives are kept up to the configured buffer, then the oldest go.
        """
        return await current_bridge().wait(self._core.poll_datagrams, max)

    @property
    def max_datagram_size(self) -> int | None:
        """The longest datagram that can be sent now, in bytes; ``None`` if none can.

        Changes with the path and what is known of its MTU; ``None`` once the connection ended.
        """
        return self._core.max_datagram_size

    # End

    def stats(self) -> ConnectionStats:
        """Totals since the connection was made."""
        return ConnectionStats(**self._core.stats())

    def close(self, code: int = 0, reason: str = "") -> None:
        """End the connection at once, on both sides.

        What the peer has not acknowledged may be lost: await :meth:`Stream.wait_acked` first
        where that matters. Closing twice does nothing.

        Args:
            code: told to the peer's application; below 2**32.
            reason: told to the peer, for people.

        Raises:
            ValueError: ``code`` is out of range.
        """
        if not 0 <= code < 2**32:
            raise ValueError(f"code {code} is not between 0 and 2**32 - 1")
        if not self.closed:
            self._core.close(code, reason.encode())

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._core.close_reason is not None

    @property
    def close_reason(self) -> ConnectionLost | None:
        """Why the connection has ended; ``None`` while it lives."""
        reason = self._core.close_reason
        return _lost(*reason) if reason else None

    async def wait_closed(self) -> ConnectionLost:
        """Wait for the end of the connection; returns why, and raises nothing."""
        return _lost(*await current_bridge().wait(self._core.poll_closed))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Rates:
    """Turns the counters of paths into rates, from one look to a later one."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: dict[int, _Sample] = {}

    def paths(self, infos: Sequence[_core.PathInfo]) -> tuple[Path, ...]:
        now = time.monotonic()
        self._samples = {info.id: self._sample(info, now) for info in infos}
        return tuple(_path(info, self._samples[info.id]) for info in infos)

    def _sample(self, info: _core.PathInfo, now: float) -> _Sample:
        before = self._samples.get(info.id)
        if before is None:
            # The average since the path came up; the floor keeps a first packet from being a rate.
            sent, received, elapsed = 0, 0, max(info.age, _RATE_WINDOW)
            since = time.time() - info.age
        else:
            sent, received, elapsed = before.sent, before.received, now - before.at
            since = before.since
            if elapsed < _RATE_WINDOW:
                return before
        return _Sample(
            at=now,
            since=since,
            sent=info.sent_bytes,
            received=info.received_bytes,
            send_rate=(info.sent_bytes - sent) / elapsed,
            receive_rate=(info.received_bytes - received) / elapsed,
        )


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    since: float
    sent: int
    received: int
    send_rate: float
    receive_rate: float


def _path(info: _core.PathInfo, sample: _Sample) -> Path:
    return Path(
        id=info.id,
        method=info.method,
        remote=_host_port(*info.remote),
        local=info.local_ip,
        current=info.current,
        rtt=info.rtt,
        send_rate=sample.send_rate,
        receive_rate=sample.receive_rate,
        since=sample.since,
        mtu=info.mtu,
        congestion_window=info.congestion_window,
        sent_bytes=info.sent_bytes,
        received_bytes=info.received_bytes,
        lost_packets=info.lost_packets,
        observed=_host_port(*info.observed) if info.observed else None,
        relay=str(PeerId(info.via)) if info.via is not None else None,
    )


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _lost(reason: str, code: int, message: str) -> ConnectionLost:
    return ConnectionLost(message or reason, reason=reason, code=code)


_ORDERLY: Final = frozenset({"closed", "local", "replaced"})
"""Ends somebody wanted."""

_RATE_WINDOW: Final = 0.2
"""Seconds between two samples of a rate, at least: shorter ones show single bursts."""
