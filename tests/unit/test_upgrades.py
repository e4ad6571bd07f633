"""How long connect() waits for a direct path, and what else a relayed connection gets."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pytest

from anyreach._paths import has_direct
from anyreach._proving import Contacts
from anyreach._ranking import Ranking
from anyreach._upgrades import Upgrades
from anyreach._way import Way
from anyreach.addresses import SocketAddress
from anyreach.candidates import MAX_CANDIDATES
from anyreach.errors import ConnectionLost
from anyreach.paths import DefaultPathPolicy
from anyreach.peer import PeerId

from .fake_core import FakeConnection, FakeEndpoint, FakePath, FakePathAttempt, FakeTunnel, settle
from .virtual_time import in_virtual_time

if TYPE_CHECKING:
    from anyreach._punching import Punching

RELAY, RELAY2 = (PeerId(bytes([i]) * 32) for i in (3, 4))
DIRECT = SocketAddress.of("192.0.2.9", 9000)
SPARE = Way(SocketAddress.of("198.51.100.2", 5000), relay=RELAY2)


def relayed(number: int = 0, *, current: bool = True, rtt: float = 0.04) -> FakePath:
    remote = (f"198.51.100.{number + 1}", 5000)
    return FakePath(number, remote, "relayed", rtt=rtt, current=current, via=RELAY.raw)


def direct(number: int = 5, *, current: bool = True) -> FakePath:
    return FakePath(number, (DIRECT.host, DIRECT.port), current=current)


class FakePunching:
    """Shaped like :class:`anyreach._punching.Punching`: a direct path may come, or not."""

    def __init__(self) -> None:
        self.possible = True
        self.promising = True
        self.over = asyncio.Event()
        self.begun: list[int] = []
        self.told = 0
        self.ends: list[int] = []

    def begin(self, core: Any) -> None:
        self.begun.append(core.id)

    def paths_changed(self, core: Any) -> None:
        self.told += 1
        if has_direct(core):
            self.over.set()

    def is_open(self, core: Any) -> bool:
        return self.possible and core.id in self.begun and not self.over.is_set()

    def is_promising(self, _: Any) -> bool:
        return self.promising

    async def settled(self, _: Any) -> None:
        await self.over.wait()

    def ended(self, connection_id: int) -> None:
        self.ends.append(connection_id)

    def abandon(self) -> list[asyncio.Task[None]]:
        return []


@dataclass
class Rig:
    """Upgrades on a fake endpoint, and a connection that goes through a relay."""

    grace: float | None = None
    wants_direct: bool = True
    endpoint: FakeEndpoint = field(default_factory=FakeEndpoint)
    contacts: Contacts = field(default_factory=Contacts)
    punching: FakePunching = field(default_factory=FakePunching)
    connection: FakeConnection = field(
        default_factory=lambda: FakeConnection(id=7, route=[relayed()])
    )

    def __post_init__(self) -> None:
        self.upgrades = Upgrades(
            self.endpoint,
            self.endpoint.wait,
            punching=cast("Punching", self.punching),
            direct=self.wants_direct,
            grace=self.grace,
            timeout=10.0,
            contacts=self.contacts,
        )

    def begin(self, *addresses: SocketAddress, ways: tuple[Way, ...] = ()) -> None:
        self.upgrades.begin(self.connection.core(), addresses, ways)

    async def attempts(self, count: int) -> list[FakePathAttempt]:
        """The attempts, of which there must be so many."""
        await self.endpoint.opened(count)
        await settle()
        assert len(self.endpoint.paths) == count
        return self.endpoint.paths

    def becomes(self, *route: FakePath) -> None:
        self.connection.route = list(route)
        self.upgrades.changed(self.connection.core())

    async def succeed(self, attempt: FakePathAttempt, *route: FakePath) -> None:
        attempt.attempt.outcome.set_result(route[0].id)
        self.becomes(*route)
        await settle()

    async def fail_all(self, reason: str = "handshake-timeout") -> None:
        for path in self.endpoint.paths:
            if not path.attempt.outcome.done():
                path.attempt.fail(reason)
        await settle()


def now() -> float:
    return asyncio.get_running_loop().time()


async def waited(rig: Rig) -> float:
    """Seconds connect() waits."""
    begun = now()
    await rig.upgrades.grace(rig.connection.core())
    return now() - begun


# Dialing


@in_virtual_time
async def test_what_was_being_dialed_is_tried_once_more_and_the_spare_beside_it() -> None:
    rig = Rig()
    other = SocketAddress.of("2001:db8::9", 9000)
    rig.begin(DIRECT, other, ways=(SPARE,))
    tried = await rig.attempts(3)
    assert {(path.address, path.relayed, path.standby, path.via) for path in tried} == {
        ("192.0.2.9 9000", False, False, None),
        ("2001:db8::9 9000", False, False, None),
        ("198.51.100.2 5000", True, True, None),
    }
    assert not any(path.proved for path in tried)
    assert all(ip_address(ip) in rig.contacts for ip in ("192.0.2.9", "2001:db8::9"))
    await rig.upgrades.end()


@in_virtual_time
async def test_addresses_that_did_not_answer_are_left_to_punching() -> None:
    rig = Rig()
    rig.begin(DIRECT)
    await rig.attempts(1)
    await rig.fail_all()
    for _ in range(10):
        rig.begin(DIRECT)
        await asyncio.sleep(100)
    await rig.attempts(1)
    assert rig.punching.begun == [7] * 11
    rig.begin(SocketAddress.of("192.0.2.10", 9000))
    assert (await rig.attempts(2))[1].address == "192.0.2.10 9000"
    await rig.upgrades.end()


@in_virtual_time
async def test_a_peer_that_answered_a_dial_is_dialed_again_when_that_path_is_lost() -> None:
    rig = Rig()
    rig.begin()
    await settle()
    rig.becomes(direct(), relayed(current=False))
    await asyncio.sleep(600)
    await rig.attempts(0)
    rig.becomes(relayed())
    begun, count = now(), 0
    started = []
    while now() < begun + 120:
        await asyncio.sleep(0.05)
        if len(rig.endpoint.paths) > count:
            count = len(rig.endpoint.paths)
            started.append(now() - begun)
            await rig.fail_all()
    assert {path.address for path in rig.endpoint.paths} == {"192.0.2.9 9000"}
    within = [at for at in started if at < 60]
    assert within[0] == pytest.approx(0, abs=0.1)
    assert max(b - a for a, b in pairwise(within)) < 1.2
    assert len(within) > 50
    assert len(started) - len(within) < 6
    await rig.upgrades.end()


@in_virtual_time
async def test_a_punched_path_is_no_reason_to_dial() -> None:
    rig = Rig()
    rig.begin()
    punched = direct()
    punched.method = "punched"
    rig.becomes(punched, relayed(current=False))
    rig.becomes(relayed())
    await asyncio.sleep(100)
    await rig.attempts(0)
    await rig.upgrades.end()


@in_virtual_time
async def test_a_peer_can_have_only_so_many_addresses_tried() -> None:
    rig = Rig()
    crowd = [SocketAddress.of(f"192.0.2.{i}", 9000) for i in range(MAX_CANDIDATES - 1)]
    rig.begin(*crowd)
    await rig.attempts(MAX_CANDIDATES - 1)
    await rig.fail_all()
    rig.begin(*(SocketAddress.of(f"203.0.113.{i}", 9000) for i in range(3)))
    tried = await rig.attempts(MAX_CANDIDATES)
    assert tried[-1].address == "203.0.113.0 9000"
    await rig.upgrades.end()


@in_virtual_time
async def test_an_address_in_a_zone_that_is_gone_is_passed_over() -> None:
    rig = Rig()
    rig.begin(SocketAddress.of("fe80::1%none0", 9000), DIRECT)
    (path,) = await rig.attempts(1)
    assert path.address == "192.0.2.9 9000"
    await rig.upgrades.end()


@pytest.mark.parametrize(
    "route", [[direct()], [direct(), relayed(current=False)], []], ids=["direct", "both", "none"]
)
@in_virtual_time
async def test_nothing_is_done_where_data_does_not_go_through_a_relay(
    route: list[FakePath],
) -> None:
    rig = Rig(connection=FakeConnection(id=7, route=route))
    rig.begin(DIRECT, ways=(SPARE,))
    assert await waited(rig) == 0
    await rig.attempts(0)


@in_virtual_time
async def test_without_direct_paths_only_a_spare_is_kept() -> None:
    rig = Rig(wants_direct=False)
    rig.punching.possible = False
    rig.begin(DIRECT, ways=(SPARE,))
    (path,) = await rig.attempts(1)
    assert path.standby
    assert await waited(rig) == 0
    await rig.upgrades.end()


# Spares


@in_virtual_time
async def test_spares_that_fail_are_tried_ever_more_rarely() -> None:
    rig = Rig()
    rig.begin(ways=(SPARE,))
    pauses, failed_at = [], now()
    for count in range(1, 9):
        async with asyncio.timeout(100):
            while len(rig.endpoint.paths) < count:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.01)
        pauses.append(now() - failed_at)
        await asyncio.sleep(1)
        await rig.fail_all()
        failed_at = now()
    assert pauses == pytest.approx([0, 5, 10, 20, 40, 60, 60, 60], abs=0.1)
    await rig.upgrades.end()


@in_virtual_time
async def test_one_spare_is_enough() -> None:
    rig = Rig()
    ways = [Way(SocketAddress.of(f"198.51.100.{i}", 5000), relay=RELAY2) for i in (2, 3, 4)]
    rig.begin(ways=tuple(ways))
    (first,) = await rig.attempts(1)
    first.attempt.fail("handshake-timeout")
    _, second = await rig.attempts(2)
    await rig.succeed(second, relayed(), relayed(2, current=False))
    await asyncio.sleep(600)
    await rig.attempts(2)
    # The spare is used up, or dead.
    rig.connection.route = [relayed(2)]
    rig.begin()
    assert (await rig.attempts(3))[2].address == "198.51.100.2 5000"
    await rig.upgrades.end()


@in_virtual_time
async def test_the_relayed_path_is_the_spare_of_the_direct_one() -> None:
    rig = Rig()
    rig.begin(DIRECT)
    (first,) = await rig.attempts(1)
    await rig.succeed(first, direct(), relayed(current=False))
    rig.connection.route = [relayed(), direct(current=False)]
    rig.begin(ways=(SPARE,))
    await rig.attempts(2)
    await rig.upgrades.end()


@in_virtual_time
async def test_a_spare_the_policy_let_go_stays_away_until_the_direct_path_is_lost() -> None:
    rig = Rig()
    ranking = Ranking(
        DefaultPathPolicy(dormant=300.0), standby=30.0, declined=rig.upgrades.declined
    )
    rig.begin(ways=(SPARE,))
    (first,) = await rig.attempts(1)
    await rig.succeed(first, direct(), relayed(current=False), relayed(1, current=False))
    for kept in (relayed(1, current=False),), ():  # all but the best, then that as well
        rig.connection.closed.clear()
        for path in rig.connection.route:
            path.age = 600.0
        await asyncio.sleep(300)
        ranking.changed(rig.connection.core())
        assert len(rig.connection.closed) == len(rig.connection.route) - 1 - len(kept)
        rig.becomes(direct(), *kept)
    await asyncio.sleep(600)
    rig.begin(ways=(SPARE,))  # nor do news of ways bring it back
    await asyncio.sleep(600)
    await rig.attempts(1)
    rig.becomes()
    await settle()
    assert {path.address for path in rig.endpoint.paths[1:]} == {
        "192.0.2.9 9000",
        "198.51.100.2 5000",
    }
    await rig.upgrades.end()


@in_virtual_time
async def test_the_way_in_use_is_no_spare() -> None:
    rig = Rig()
    rig.begin(ways=(Way(SocketAddress.of("198.51.100.1", 5000), relay=RELAY),))
    await asyncio.sleep(100)
    await rig.attempts(0)
    await rig.upgrades.end()


@in_virtual_time
async def test_the_same_place_through_a_tunnel_is_another_way() -> None:
    tunnel = FakeTunnel(relay=RELAY2.raw)
    way = Way(SocketAddress.of("198.51.100.1", 5000), relay=RELAY, tunnel=tunnel.core())
    rig = Rig()
    rig.begin(ways=(way,))
    (path,) = await rig.attempts(1)
    assert path.via is tunnel
    assert ip_address("198.51.100.1") not in rig.contacts
    path.attempt.fail("handshake-timeout")
    used = relayed()
    used.tunnelled, used.via = True, RELAY2.raw
    rig.connection.route = [used]
    rig.begin()
    await asyncio.sleep(100)
    await rig.attempts(1)
    await rig.upgrades.end()


# Waiting


@in_virtual_time
async def test_the_grace_is_four_round_trips_at_most_a_second() -> None:
    for rtt, expected in ((0.04, 0.21), (0.1, 0.45), (0.5, 1.0), (0.0, 0.05)):
        rig = Rig(connection=FakeConnection(id=7, route=[relayed(rtt=rtt)]))
        rig.begin()
        assert await waited(rig) == pytest.approx(expected, abs=0.01)
        await rig.upgrades.end()


@pytest.mark.parametrize("grace", [0.0, 0.3, 2.5])
@in_virtual_time
async def test_the_grace_may_be_configured(grace: float) -> None:
    rig = Rig(grace=grace)
    rig.begin()
    assert await waited(rig) == pytest.approx(grace, abs=0.01)
    await rig.upgrades.end()


@in_virtual_time
async def test_a_direct_path_ends_the_grace() -> None:
    rig = Rig(grace=10)
    rig.begin()
    waiting = asyncio.create_task(waited(rig))
    await asyncio.sleep(0.1)
    rig.becomes(direct(), relayed(current=False))
    assert await waiting == pytest.approx(0.1, abs=0.01)
    assert await waited(rig) == 0
    await rig.upgrades.end()


@in_virtual_time
async def test_nobody_waits_for_a_path_that_cannot_come() -> None:
    rig = Rig(grace=10)
    rig.punching.possible = False
    rig.begin(DIRECT, ways=(SPARE,))
    assert await waited(rig) == 0
    await rig.upgrades.end()


@in_virtual_time
async def test_without_addresses_that_go_together_the_grace_is_short() -> None:
    for promising, expected in ((False, 0.075), (True, 0.45)):
        rig = Rig(connection=FakeConnection(id=7, route=[relayed(rtt=0.1)]))
        rig.punching.promising = promising
        rig.begin()
        assert await waited(rig) == pytest.approx(expected, abs=0.01)
        await rig.upgrades.end()
    rig = Rig(grace=2.5)
    rig.punching.promising = False
    rig.begin()
    assert await waited(rig) == pytest.approx(2.5, abs=0.01)
    await rig.upgrades.end()


@in_virtual_time
async def test_the_grace_ends_when_it_turns_out_that_none_can_come() -> None:
    rig = Rig(grace=10)
    rig.begin()
    waiting = asyncio.create_task(waited(rig))
    await asyncio.sleep(0.1)
    rig.punching.over.set()
    assert await waiting == pytest.approx(0.1, abs=0.01)
    await rig.upgrades.end()


# The end


@pytest.mark.parametrize(
    "error", [ConnectionLost("gone", reason="timeout", code=0), None], ids=["told", "seen"]
)
@in_virtual_time
async def test_the_end_of_the_connection_ends_the_search(error: Exception | None) -> None:
    before = asyncio.all_tasks()
    rig = Rig()
    rig.begin(DIRECT)
    (path,) = await rig.attempts(1)
    rig.connection.close_reason = ("timeout", 0, "")
    rig.connection.route = []
    if error is not None:
        path.attempt.outcome.set_exception(error)
        await asyncio.sleep(6)
        assert asyncio.all_tasks() == before
    rig.upgrades.ended(rig.connection.id)
    await settle()
    assert asyncio.all_tasks() == before
    rig.upgrades.ended(rig.connection.id)
    assert rig.punching.ends == [7, 7]


@in_virtual_time
async def test_nothing_is_left_at_the_end() -> None:
    before = asyncio.all_tasks()
    rig = Rig()
    rig.begin(DIRECT, ways=(SPARE,))
    await rig.attempts(2)
    await rig.upgrades.end()
    assert asyncio.all_tasks() == before


@in_virtual_time
async def test_attempts_know_how_long_they_may_take() -> None:
    seen: list[Any] = []
    rig = Rig()
    original = rig.endpoint.open_path

    def open_path(*args: Any, **options: Any) -> Any:
        seen.append(args[3])
        return original(*args, **options)

    rig.endpoint.open_path = open_path  # type: ignore[method-assign]
    rig.begin(DIRECT, ways=(SPARE,))
    await rig.attempts(2)
    assert seen == [4.0, 4.0]
    await rig.upgrades.end()
