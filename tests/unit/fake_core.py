"""A scripted stand-in for the Rust endpoint, for orderings no real machine produces on demand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anyreach import _core

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


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
    age: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0


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
    asked: int = 0
    answer: asyncio.Future[bool] | None = None

    def poll_answers(self, *_: object) -> None:
        raise AssertionError("the fake waiter looks at the answer instead")

    def answers(self, answer: bool) -> None:
        assert self.answer is not None
        self.answer.set_result(answer)

    first_path = None
    capabilities: tuple[str, ...] = ()
    reach = None

    def paths(self) -> list[FakePath]:
        return self.route

    def stats(self) -> dict[str, int]:
        received = self.received_packets
        return {"sent_bytes": 0, "received_bytes": 0, "received_packets": received}

    def core(self) -> _core.Connection:
        return cast("_core.Connection", self)


class FakeDial:
    """An attempt that ends when the test says so."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.outcome: asyncio.Future[_core.Connection] = asyncio.Future()
        self.cancelled = False
        self.kept = False

    def keep(self) -> None:
        self.kept = True

    def cancel(self) -> None:
        self.cancelled = True

    def poll(self, *_: object) -> None:
        raise AssertionError("the fake waiter looks at the outcome instead")

    def win(self, connection: FakeConnection) -> None:
        self.outcome.set_result(connection.core())

    def fail(self, reason: str, detail: str = "no", actual: bytes | None = None) -> None:
        self.outcome.set_exception(_core.DialFailed(reason, detail, actual))


class FakeEndpoint:
    """Shaped like ``_core.Endpoint`` as far as a dialer sees it."""

    def __init__(self, ip_mode: str = "dual") -> None:
        self.ip_mode = ip_mode
        self.dials: list[FakeDial] = []
        self.known: dict[bytes, FakeConnection] = {}
        self.asked_for: list[bytes] = []
        self._dialed = asyncio.Condition()

    def dial(self, ip: str, port: int, *_: object, **__: object) -> _core.Dial:
        dial = FakeDial(f"{ip} {port}")
        self.dials.append(dial)
        return cast("_core.Dial", dial)

    def connection(self, peer_id: bytes) -> _core.Connection | None:
        self.asked_for.append(peer_id)
        return cast("_core.Connection | None", self.known.get(peer_id))

    async def wait(self, poll: Callable[..., T | None], *_: Any) -> T:
        owner = poll.__self__  # type: ignore[attr-defined]
        if isinstance(owner, FakeConnection):
            owner.asked += 1
            owner.answer = asyncio.get_running_loop().create_future()
            return cast("T", await owner.answer)
        return cast("T", await cast("FakeDial", owner).outcome)

    async def started(self, count: int) -> list[FakeDial]:
        """Wait until ``count`` attempts were started."""
        async with asyncio.timeout(10):
            while len(self.dials) < count:  # noqa: ASYNC110 (the code under test does not tell)
                await asyncio.sleep(0.001)
        return self.dials
