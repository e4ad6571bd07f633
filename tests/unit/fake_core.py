"""A scripted stand-in for the Rust endpoint, for orderings no real machine produces on demand."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anyreach import _core

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

Addresses = list[tuple[str, int]]

PATIENCE = 10.0
"""Seconds before a condition counts as never coming."""


async def until(condition: Callable[[], object]) -> None:
    """Wait for what the code under test does, but tells nobody."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (there is nothing to await)
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everybody who is ready have some turns."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass(eq=False)
class FakePath:
    """Shaped like ``_core.PathInfo``."""

    id: int = 0
    remote: tuple[str, int] = ("192.0.2.1", 9000)
    method: str = "direct"
    rtt: float = 0.01
    current: bool = True
    via: bytes | None = None
    tunnelled: bool = False
    local_ip: str | None = None
    age: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    lost_packets: int = 0
    congestion_window: int = 12_000
    mtu: int = 1452
    observed: tuple[str, int] | None = None


class FakeAttempt:
    """Something that ends when the test says so: a dial, a path, a question."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def poll(self, *_: object) -> None:
        raise AssertionError("the fake waiter looks at the outcome instead")

    def fail(self, reason: str, detail: str = "no", actual: bytes | None = None) -> None:
        self.outcome.set_exception(_core.DialFailed(reason, detail, actual))


class FakeFind(FakeAttempt):
    """A question for a peer."""

    def __init__(self, wanted: bytes) -> None:
        super().__init__()
        self.wanted = wanted

    def answer(
        self,
        status: str = "ok",
        *,
        seen: tuple[str, int] | None = None,
        direct: Addresses | None = None,
        bound: list[tuple[bytes, Addresses]] | None = None,
    ) -> None:
        self.outcome.set_result((status, seen, direct or [], bound or []))


@dataclass(eq=False)
class FakeConnection:
    """Shaped like ``_core.Connection``."""

    id: int = 1
    peer_id: bytes = bytes(32)
    outbound: bool = True
    key_exchange_group: str = "X25519MLKEM768"
    handshake_seconds: float = 0.003
    close_reason: tuple[str, int, str] | None = None
    route: list[FakePath] = field(default_factory=lambda: [FakePath()])
    received_packets: int = 10
    sent_packets: int = 10
    capabilities: tuple[str, ...] = ()
    asked: int = 0
    answer: asyncio.Future[bool] | None = None
    questions: list[FakeFind] = field(default_factory=list)
    standing: tuple[str, dict[str, Any]] | None = None
    reach: tuple[Addresses, list[tuple[bytes, Addresses]]] | None = None
    can_punch: bool = False
    peer_nat: tuple[str, str, str, int] | None = None
    peer_candidates: Addresses = field(default_factory=list)
    candidates: list[Addresses] = field(default_factory=list)
    near: tuple[str, ...] = ()
    rounds: list[tuple[list[tuple[tuple[str, int], tuple[str, int]]], int, float]] = field(
        default_factory=list
    )
    refuses: str | None = None
    opened: list[tuple[Addresses, int]] = field(default_factory=list)
    steps: list[tuple[str, Addresses, int]] = field(default_factory=list)
    results: list[tuple[int, bool, Addresses]] = field(default_factory=list)
    sprays: list[FakeSpray] = field(default_factory=list)
    pools: list[FakePool] = field(default_factory=list)
    ranked: list[list[tuple[int, int]]] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)

    def poll_answers(self, *_: object) -> None:
        raise AssertionError("the fake waiter looks at the answer instead")

    def answers(self, answer: bool) -> None:
        assert self.answer is not None
        self.answer.set_result(answer)

    first_path = None
    relay_load: float | None = None

    def paths(self) -> list[FakePath]:
        return self.route

    def stats(self) -> dict[str, int]:
        received = self.received_packets
        return {
            "sent_bytes": 0,
            "sent_packets": self.sent_packets,
            "received_bytes": 0,
            "received_packets": received,
        }

    def find(self, peer_id: bytes) -> _core.Find:
        question = FakeFind(peer_id)
        self.questions.append(question)
        if self.standing is not None:
            status, answer = self.standing
            question.answer(status, **answer)
        return cast("_core.Find", question)

    def says(self, status: str = "ok", **answer: Any) -> FakeConnection:
        """Have every question answered like this from now on; see :meth:`FakeFind.answer`."""
        self.standing = status, answer
        return self

    # NAT traversal

    def set_candidates(self, candidates: Sequence[tuple[str, int]]) -> None:
        self.candidates.append(list(candidates))

    def allow_near(self, prefixes: Sequence[str]) -> None:
        self.near = tuple(prefixes)

    def start_round(
        self,
        pairs: Sequence[tuple[tuple[str, int], tuple[str, int]]],
        *,
        opener_ttl: int = 0,
        hold: float = 0,
    ) -> int:
        if self.refuses is not None:
            raise _core.DialFailed(self.refuses, "no", None)
        self.rounds.append((list(pairs), opener_ttl, hold))
        return len(self.rounds)

    def openers(self, addresses: Sequence[tuple[str, int]], ttl: int) -> int:
        self.opened.append((list(addresses), ttl))
        return len(addresses)

    def prepare(self, method: str, addresses: Sequence[tuple[str, int]], count: int) -> int:
        self.steps.append((method, list(addresses), count))
        return len(self.steps)

    def prepared(self, id: int, ok: bool, addresses: Sequence[tuple[str, int]]) -> None:  # noqa: A002
        self.results.append((id, ok, list(addresses)))

    def spray(self, ip: str, count: int, seconds: float) -> _core.Spray:
        assert seconds > 0
        spray = FakeSpray(ip, count)
        self.sprays.append(spray)
        return cast("_core.Spray", spray)

    def pool(self, ip: str, port: int, count: int) -> _core.Pool:
        pool = FakePool((ip, port), count)
        self.pools.append(pool)
        return cast("_core.Pool", pool)

    def punch_stats(self) -> dict[str, int]:
        return {"rounds": len(self.rounds), "refused_private": 0}

    # Ranking

    def rank_paths(self, ranks: Sequence[tuple[int, int]]) -> None:
        self.ranked.append(list(ranks))

    def close_path(self, id: int) -> bool:  # noqa: A002
        self.closed.append(id)
        return True

    def core(self) -> _core.Connection:
        return cast("_core.Connection", self)


class FakeSpray(FakeAttempt):
    """Packets to random ports."""

    def __init__(self, ip: str, count: int) -> None:
        super().__init__()
        self.ip = ip
        self.count = count
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass(eq=False)
class FakePool:
    """Sockets towards one address."""

    address: tuple[str, int]
    size: int
    adopted: list[tuple[tuple[str, int], tuple[str, int]]] = field(default_factory=list)
    refreshed: int = 0
    closed: bool = False

    def refresh(self) -> None:
        self.refreshed += 1

    def close(self) -> None:
        self.closed = True


class FakeDial(FakeAttempt):
    """An attempt that ends when the test says so."""

    def __init__(
        self,
        address: str,
        peer_id: bytes | None = None,
        *,
        via: FakeTunnel | None = None,
        relayed: bool = False,
    ) -> None:
        super().__init__()
        self.address = address
        self.peer_id = peer_id
        self.via = via
        self.relayed = relayed
        self.cancelled = False
        self.kept = False

    def keep(self) -> None:
        self.kept = True

    def cancel(self) -> None:
        self.cancelled = True

    def win(self, connection: FakeConnection) -> None:
        self.outcome.set_result(connection.core())


@dataclass(eq=False)
class FakePathAttempt:
    """A path in the making."""

    address: str
    via: FakeTunnel | None
    relayed: bool
    standby: bool
    proved: bool = False
    attempt: FakeAttempt = field(default_factory=FakeAttempt)


@dataclass(eq=False)
class FakeTunnel:
    """Shaped like ``_core.Tunnel``; its state changes when the test says so."""

    options: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    state: str = "connecting"
    relay: bytes | None = None
    carrier: str | None = None
    remote: tuple[str, int] | None = None
    public_addresses: Addresses = field(default_factory=list)
    node_addresses: Addresses = field(default_factory=list)
    rtt: float | None = None
    attempts: list[tuple[str, str, str, str, float]] = field(default_factory=list)
    changes: int = 0
    probed: int = 0
    improvements: list[list[tuple[str, float]]] = field(default_factory=list)
    sent: int = 0
    received: int = 0
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    def counters(self) -> dict[str, int]:
        return {"sent_bytes": self.sent, "received_bytes": self.received}

    def poll_change(self, *_: object) -> None:
        raise AssertionError("the fake waiter looks at the changes instead")

    def probe(self) -> None:
        self.probed += 1

    def improve(self, plan: Sequence[tuple[str, float]]) -> None:
        self.improvements.append(list(plan))

    def close(self) -> None:
        self.become("closed")

    def up(self, relay: bytes, *public: str, carrier: str = "h3") -> None:
        """It comes up, with addresses ``"IP PORT"`` there."""
        self.relay, self.carrier = relay, carrier
        self.remote = self.remote or next(iter(self.options.get("tcp", ())), None)
        self.public_addresses = [(ip, int(port)) for ip, port in map(str.split, public)]
        self.become("up")

    def fail(self, *attempts: tuple[str, str, str, str, float]) -> None:
        """No carrier works."""
        self.attempts = list(attempts)
        self.become("closed")

    def become(self, state: str) -> None:
        self.state = state
        self.changes += 1
        self._change.set()
        self._change = asyncio.Event()

    async def changed(self, seen: int) -> int:
        while self.changes == seen:
            await self._change.wait()
        return self.changes

    def core(self) -> _core.Tunnel:
        return cast("_core.Tunnel", self)


class FakeEndpoint:
    """Shaped like ``_core.Endpoint`` as far as the Python side of connecting sees it."""

    def __init__(self, ip_mode: str = "dual") -> None:
        self.ip_mode = ip_mode
        self.dials: list[FakeDial] = []
        self.known: dict[bytes, FakeConnection] = {}
        self.asked_for: list[bytes] = []
        self.primed: list[tuple[str, int]] = []
        self.tunnels: list[FakeTunnel] = []
        self.paths: list[FakePathAttempt] = []
        self.announced: list[tuple[Any, Any, bool]] = []
        self.loads: list[int | None] = []
        self._numbers = itertools.count(1)

    def dial(
        self,
        ip: str,
        port: int,
        peer_id: bytes | None,
        timeout: float,
        *,
        via: _core.Tunnel | None = None,
        relayed: bool = False,
    ) -> _core.Dial:
        assert timeout > 0
        tunnel = cast("FakeTunnel | None", via)
        dial = FakeDial(f"{ip} {port}", peer_id, via=tunnel, relayed=relayed)
        self.dials.append(dial)
        return cast("_core.Dial", dial)

    def open_path(
        self,
        connection: _core.Connection,
        ip: str,
        port: int,
        timeout: float,
        *,
        via: _core.Tunnel | None,
        relayed: bool,
        standby: bool,
        proved: bool = False,
    ) -> _core.PathAttempt:
        assert connection.close_reason is None
        assert timeout > 0
        tunnel = cast("FakeTunnel | None", via)
        path = FakePathAttempt(f"{ip} {port}", tunnel, relayed, standby, proved)
        self.paths.append(path)
        return cast("_core.PathAttempt", path.attempt)

    def prime(self, addresses: Sequence[tuple[str, int]], ttl: int) -> int:
        assert 0 < ttl < 255
        self.primed += addresses
        return len(addresses)

    def open_tunnel(self, **options: Any) -> _core.Tunnel:
        tunnel = FakeTunnel(options, next(self._numbers))
        self.tunnels.append(tunnel)
        return tunnel.core()

    def announce(
        self,
        direct: Sequence[tuple[str, int]],
        relayed: Sequence[tuple[bytes, Sequence[tuple[str, int]]]],
        findable: bool,
        load: int | None,
    ) -> None:
        self.announced.append((direct, relayed, findable))
        self.loads.append(load)

    def connection(self, peer_id: bytes) -> _core.Connection | None:
        self.asked_for.append(peer_id)
        return cast("_core.Connection | None", self.known.get(peer_id))

    def connections(self) -> list[_core.Connection]:
        return [connection.core() for connection in self.known.values()]

    def meet(self, connection: FakeConnection) -> FakeConnection:
        """A peer is connected."""
        self.known[connection.peer_id] = connection
        return connection

    async def wait(self, poll: Callable[..., T | None], *args: Any) -> T:
        owner = poll.__self__  # type: ignore[attr-defined]
        match owner:
            case FakeConnection():
                owner.asked += 1
                owner.answer = asyncio.get_running_loop().create_future()
                return cast("T", await owner.answer)
            case FakeTunnel():
                return cast("T", await owner.changed(*args))
            case FakeAttempt():
                return cast("T", await owner.outcome)
        raise AssertionError(f"nobody polls {owner}")

    async def started(self, count: int) -> list[FakeDial]:
        """Wait until ``count`` attempts were started."""
        await until(lambda: len(self.dials) >= count)
        return self.dials

    async def dug(self, count: int) -> list[FakeTunnel]:
        """Wait until ``count`` tunnels were begun."""
        await until(lambda: len(self.tunnels) >= count)
        return self.tunnels

    async def opened(self, count: int) -> list[FakePathAttempt]:
        """Wait until ``count`` further paths were tried."""
        await until(lambda: len(self.paths) >= count)
        return self.paths
