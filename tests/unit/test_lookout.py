"""Who is asked where this node is, and how often."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from anyreach._lookout import ASK_PAUSE, MAX_ASKED, Lookout

from .fake_core import FakePath
from .virtual_time import in_virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach import _core

DIRECT = ("198.51.100.10", 9000)


@dataclass
class Peer:
    """A connection."""

    id: int
    method: str = "direct"
    outbound: bool = True

    def paths(self) -> list[FakePath]:
        return [FakePath(0, DIRECT, method=self.method)]

    def poll_answers(self) -> None: ...

    def core(self) -> _core.Connection:
        return cast("_core.Connection", self)


class Rig:
    """A node with connections, some of which are asked."""

    def __init__(self, *peers: Peer) -> None:
        self.peers = peers
        self.asked: Counter[int] = Counter()
        self.lookout = Lookout(self, self.wait)
        self.running = asyncio.create_task(self.lookout.run())

    def connections(self) -> list[_core.Connection]:
        return [peer.core() for peer in self.peers]

    async def wait(self, poll: Callable[..., Any], *_: object) -> Any:
        peer = poll.__self__  # type: ignore[attr-defined]  # a bound method
        self.asked[peer.id] += 1
        return True


@in_virtual_time
async def test_those_that_see_the_node_directly_are_asked_at_once() -> None:
    failed = Peer(4)
    rig = Rig(Peer(1), Peer(2, method="relayed"), Peer(3, outbound=False), failed)
    rig.lookout.failed_over(failed.core())
    await asyncio.sleep(ASK_PAUSE / 2)
    assert rig.asked == {1: 1, 3: 1}
    for _ in range(10):
        rig.lookout.failed_over(failed.core())
        await asyncio.sleep(0)
    await asyncio.sleep(2 * ASK_PAUSE)
    assert rig.asked == {1: 2, 3: 2}
    rig.running.cancel()


@in_virtual_time
async def test_a_few_are_enough_and_known_peers_come_first() -> None:
    rig = Rig(*(Peer(n, outbound=n > MAX_ASKED) for n in range(1, 2 * MAX_ASKED + 1)))
    rig.lookout.failed_over(Peer(99).core())
    await asyncio.sleep(ASK_PAUSE / 2)
    assert sorted(rig.asked) == list(range(MAX_ASKED + 1, 2 * MAX_ASKED + 1))
    rig.running.cancel()
