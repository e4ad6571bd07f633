"""What is measured of paths, and what the core is told of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from anyreach._ranking import LOSS_SECONDS, TICK, Ranking
from anyreach.paths import DefaultPathPolicy, PathDecision, PathSituation
from unit.fake_core import FakeConnection, FakePath
from unit.virtual_time import in_virtual_time

if TYPE_CHECKING:
    from anyreach.paths import PathView


class Watched(DefaultPathPolicy):
    """Remembers the latest question."""

    asked: PathSituation = PathSituation(())

    def decide(self, situation: PathSituation) -> PathDecision:
        type(self).asked = situation
        return super().decide(situation)

    @classmethod
    def view(cls, number: int) -> PathView:
        return next(path for path in cls.asked.paths if path.id == number)


def ranking() -> Ranking:
    return Ranking(Watched(), standby=30.0, declined=lambda _: None)


def pair(**more: float) -> tuple[FakeConnection, FakePath, FakePath]:
    direct = FakePath(1, method="punched", **more)  # type: ignore[arg-type]
    relayed = FakePath(0, ("198.51.100.1", 5), "relayed", rtt=0.03, current=False)
    return FakeConnection(route=[direct, relayed]), direct, relayed


@in_virtual_time
async def test_queues_of_our_own_data_are_no_distance() -> None:
    connection, direct, _ = pair(rtt=0.02)
    ranks = ranking()
    ranks.changed(connection.core())
    direct.rtt = 0.4
    await asyncio.sleep(TICK)
    ranks.changed(connection.core())
    assert Watched.view(1).rtt == 0.02
    await asyncio.sleep(100)
    ranks.changed(connection.core())
    assert Watched.view(1).rtt == 0.4


@in_virtual_time
async def test_lost_packets_are_held_against_a_path_for_a_while() -> None:
    connection, direct, _ = pair(rtt=0.02)
    ranks = ranking()
    ranks.changed(connection.core())
    assert connection.ranked == [[(1, 0), (0, 1)]]
    for look in (1, 2):
        direct.sent_bytes, direct.received_bytes = look * 100 * 1452, look * 999
        direct.lost_packets = look * 70
        await asyncio.sleep(TICK)
        ranks.changed(connection.core())
        assert Watched.view(1).loss == (None if look == 1 else 0.7)
    assert connection.ranked[-1] == [(0, 0), (1, 1)]
    await asyncio.sleep(LOSS_SECONDS)
    ranks.changed(connection.core())
    assert Watched.view(1).loss is None
    assert connection.ranked[-1] == [(1, 0), (0, 1)]


@in_virtual_time
async def test_a_path_that_answers_nothing_is_left_until_it_does() -> None:
    connection, direct, _ = pair(rtt=0.02)
    ranks = ranking()
    ranks.changed(connection.core())
    for look in (1, 2):  # a path that dies is the core's to close
        direct.sent_bytes = look * 10 * 1452
        await asyncio.sleep(TICK)
        ranks.changed(connection.core())
        assert Watched.view(1).carries is (None if look == 1 else False)
    assert connection.ranked[-1] == [(0, 0), (1, 1)]
    direct.received_bytes = 50
    await asyncio.sleep(TICK)
    ranks.changed(connection.core())
    assert connection.ranked[-1] == [(1, 0), (0, 1)]


@in_virtual_time
async def test_a_filled_path_shows_its_rate() -> None:
    connection, direct, _ = pair(rtt=0.02)
    ranks = ranking()
    ranks.changed(connection.core())
    direct.sent_bytes, direct.received_bytes = int(TICK * 12_000 / 0.02), 999
    await asyncio.sleep(TICK)
    ranks.changed(connection.core())
    assert Watched.view(1).delivery_rate == 600_000


@in_virtual_time
async def test_paths_that_keep_dying_are_not_trusted() -> None:
    connection, direct, relayed = pair(rtt=0.02)
    ranks = ranking()
    for number in range(1, 4):
        direct.id, direct.current, relayed.current = number, True, False
        connection.route = [direct, relayed]
        ranks.changed(connection.core())
        relayed.current = True
        connection.route = [relayed]
        ranks.changed(connection.core(), failed_over=True)
    direct.id, direct.current = 4, False
    connection.route = [direct, relayed]
    ranks.changed(connection.core())
    assert Watched.view(4).flaps == 3
    assert connection.ranked[-1] == [(0, 0), (4, 1)]
    ranks.network_changed()
    ranks.changed(connection.core())
    assert connection.ranked[-1] == [(4, 0), (0, 1)]


@in_virtual_time
async def test_a_second_relayed_path_is_closed_when_direct_has_lasted() -> None:
    connection, direct, relayed = pair(rtt=0.02)
    further = FakePath(2, ("198.51.100.2", 5), "relayed", rtt=0.05, current=False)
    connection.route = [direct, relayed, further]
    ranks = ranking()
    ranks.changed(connection.core())
    assert connection.closed == []
    direct.age = 30.0
    ranks.changed(connection.core())
    assert connection.closed == [2]


@in_virtual_time
async def test_of_two_paths_between_the_same_addresses_one_is_left() -> None:
    connection, direct, relayed = pair(rtt=0.02, age=10.0)
    twin = FakePath(2, method="punched", rtt=0.02, current=False, age=1.0)
    other = FakePath(3, ("192.0.2.2", 9000), "punched", current=False, age=10.0)
    connection.route = [direct, twin, other, relayed]
    ranks = ranking()
    ranks.changed(connection.core())
    assert connection.closed == []  # it may be the heir of one that is dead
    twin.age = 6.0
    ranks.changed(connection.core())
    assert connection.closed == [2]


@in_virtual_time
async def test_the_side_that_was_dialed_follows() -> None:
    connection, *_ = pair()
    connection.outbound = False
    ranking().changed(connection.core())
    assert connection.ranked == []
