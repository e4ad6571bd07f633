"""Punching at the end that dialed: when rounds begin, between which addresses, and what follows."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from anyreach._punch_client import MAX_OPENING
from anyreach._punch_end import FEW, POOL, SPRAY
from anyreach._punch_steps import MAX_ROUND_PAIRS, cover, matched
from anyreach.addresses import SocketAddress
from anyreach.events import Punch
from anyreach.prediction import MAX_PREDICTED

from .fake_core import settle
from .punch_rig import COUNTED, EASY, RANDOM, THEIRS, Rig
from .virtual_time import in_virtual_time

OUTSIDE = ("203.0.113.10", 9000)


def now() -> float:
    return asyncio.get_running_loop().time()


# Taking part


@in_virtual_time
async def test_a_relayed_connection_begins_a_round_when_the_peer_told_an_address() -> None:
    rig = Rig()
    await rig.begin()
    await asyncio.sleep(5)
    assert rig.connection.rounds == []
    assert rig.connection.candidates == [[OUTSIDE]]
    begun = now()
    await rig.tells(THEIRS)
    ((pairs, ttl, hold),) = await rig.rounds(1)
    assert now() - begun < 0.02
    assert pairs == [(OUTSIDE, THEIRS)]
    assert (ttl, hold) == (2, pytest.approx(0.02))
    assert ip_address(THEIRS[0]) in rig.contacts
    assert rig.endpoint.near == [["192.168.1.0/24"]]
    await rig.punching.end()


@in_virtual_time
async def test_private_addresses_stay_private_unless_the_peer_is_near() -> None:
    rig = Rig()
    await rig.begin(("192.168.1.7", 9000), THEIRS)
    ((pairs, _, _),) = await rig.rounds(1)
    assert pairs == [(("192.168.1.2", 9000), ("192.168.1.7", 9000)), (OUTSIDE, THEIRS)]
    await rig.punching.end()


@pytest.mark.parametrize("why", ["off", "direct", "cannot", "closed"])
@in_virtual_time
async def test_who_does_not_take_part(why: str) -> None:
    rig = Rig(enabled=why != "off")
    match why:
        case "direct":
            rig.connection.route = [rig.punched()]
        case "cannot":
            rig.connection.can_punch = False
        case "closed":
            rig.connection.close_reason = ("closed", 0, "")
    await rig.begin(THEIRS)
    await asyncio.sleep(5)
    assert rig.connection.rounds == []
    assert rig.connection.candidates == []
    assert not rig.punching.is_open(rig.core)


@in_virtual_time
async def test_a_connection_that_becomes_relayed_takes_part() -> None:
    rig = Rig()
    rig.connection.route = [rig.punched()]
    await rig.begin(THEIRS)
    await rig.lost()
    await rig.rounds(1)
    await rig.punching.end()


# Rounds


@in_virtual_time
async def test_a_path_before_any_round_is_told() -> None:
    rig = Rig()
    await rig.begin()
    await asyncio.sleep(0.1)
    await rig.direct()
    assert rig.connection.rounds == []
    (event,) = rig.events
    assert isinstance(event, Punch)
    assert (event.method, event.result) == ("simple", "direct")
    assert event.remote == "198.51.100.10:9000"
    assert event.ms == pytest.approx(100, abs=5)
    assert rig.results() == {"direct": 1}
    (attempt,) = rig.punching.account(rig.core, ()).attempts
    assert (attempt.round, attempt.outcome) == (None, "direct")
    await rig.punching.end()


@in_virtual_time
async def test_a_path_ends_the_rounds_and_is_told() -> None:
    rig = Rig()
    await rig.begin(THEIRS)
    await rig.rounds(1)
    assert rig.punching.is_open(rig.core)
    waiting = asyncio.create_task(rig.punching.settled(rig.core))
    await asyncio.sleep(0.1)
    await rig.direct()
    assert waiting.done()
    assert not rig.punching.is_open(rig.core)
    (event,) = rig.events
    assert isinstance(event, Punch)
    assert (event.method, event.result) == ("simple", "direct")
    assert event.remote == "198.51.100.10:9000"
    assert event.ms == pytest.approx(100, abs=5)
    assert rig.results() == {"direct": 1}
    (attempt,) = rig.punching.account(rig.core, ()).attempts
    assert (attempt.technique, attempt.round, attempt.outcome) == ("simple", 1, "direct")
    assert attempt.local == ("203.0.113.10:9000",)
    assert attempt.remote == ("198.51.100.10:9000",)
    assert rig.recorder.snapshot(connections={}, rejected={}).candidates_total["peer", "connected"]
    await asyncio.sleep(1000)
    await rig.rounds(1)
    await rig.punching.end()


@in_virtual_time
async def test_a_lost_path_is_looked_for_at_once_and_often() -> None:
    rig = Rig()
    await rig.begin(THEIRS)
    await rig.rounds(1)
    await rig.direct()
    await asyncio.sleep(100)
    begun = now()
    await rig.lost()
    await rig.rounds(2)
    assert now() - begun < 0.02
    await asyncio.sleep(30)
    assert len(rig.connection.rounds) >= 20
    await rig.punching.end()


@in_virtual_time
async def test_rounds_that_fail_become_rare_and_are_told() -> None:
    rig = Rig()
    await rig.begin(THEIRS)
    await asyncio.sleep(3600)
    assert 20 < len(rig.connection.rounds) < 90
    assert len(rig.punching.account(rig.core, ()).attempts) <= 32
    assert rig.results()["failed"] == pytest.approx(len(rig.connection.rounds), abs=1)
    event = rig.events[0]
    assert isinstance(event, Punch)
    assert (event.result, event.remote) == ("failed", None)
    await rig.punching.end()


@in_virtual_time
async def test_a_round_that_may_not_begin_is_refused() -> None:
    rig = Rig()
    rig.connection.refuses = "limit"
    await rig.begin(THEIRS)
    await asyncio.sleep(0.1)
    assert rig.results() == {"refused": 1}
    rig.connection.refuses = None
    await rig.rounds(1)
    await rig.punching.end()


@in_virtual_time
async def test_openers_go_out_again_when_the_peer_has_let_them_in() -> None:
    rig = Rig()
    await rig.begin(THEIRS)
    await rig.rounds(1)
    assert rig.connection.opened == []
    await asyncio.sleep(0.06)
    assert rig.connection.opened == [([THEIRS], 255)]
    await rig.punching.end()


@in_virtual_time
async def test_another_network_is_news_at_once() -> None:
    rig = Rig()
    await rig.begin(THEIRS)
    await rig.rounds(1)
    await asyncio.sleep(600)
    count = len(rig.connection.rounds)
    rig.local.observed.addresses = (SocketAddress.of("192.0.2.77", 1234),)
    begun = now()
    rig.punching.network_changed()
    await rig.rounds(count + 1)
    assert now() - begun < 2
    assert rig.connection.candidates[-1] == [("192.0.2.77", 1234)]
    await rig.punching.end()


# What answers


@in_virtual_time
async def test_an_address_that_answers_becomes_a_path() -> None:
    rig = Rig()
    await rig.begin(THEIRS)
    rig.punching.opened(rig.core, "198.51.100.10", 4444)
    (path,) = await rig.endpoint.opened(1)
    assert (path.address, path.proved, path.relayed, path.standby) == (
        "198.51.100.10 4444",
        True,
        False,
        False,
    )
    rig.punching.opened(rig.core, "198.51.100.10", 4444)
    await settle()
    assert len(rig.endpoint.paths) == 1
    await rig.direct(("198.51.100.10", 4444))
    path.attempt.outcome.set_result(1)
    await settle()
    rig.punching.opened(rig.core, "198.51.100.10", 4445)
    await settle()
    assert len(rig.endpoint.paths) == 1
    await rig.punching.end()


@in_virtual_time
async def test_few_paths_are_opened_at_once() -> None:
    rig = Rig()
    await rig.begin(THEIRS)
    for port in range(5000, 5010):
        rig.punching.opened(rig.core, "198.51.100.10", port)
    await settle()
    assert len(rig.endpoint.paths) == MAX_OPENING
    rig.endpoint.paths[0].attempt.fail("handshake-timeout")
    await settle()
    rig.punching.opened(rig.core, "198.51.100.10", 6000)
    await settle()
    assert len(rig.endpoint.paths) == MAX_OPENING + 1
    await rig.punching.end()


# Prediction


@in_virtual_time
async def test_our_ports_are_predicted_and_sent_from() -> None:
    rig = Rig(ours=COUNTED)
    await rig.begin(THEIRS)
    ((pairs, ttl, _),) = await rig.rounds(1)
    assert rig.connection.steps == []
    own = [local for local, _ in pairs]
    assert own[0] == ("203.0.113.10", 20_003)
    assert len(own) == MAX_PREDICTED
    assert {remote for _, remote in pairs} == {THEIRS}
    assert ttl == 0
    (pool,) = rig.connection.pools
    assert (pool.address, pool.size, pool.closed) == (THEIRS, FEW, False)
    await rig.direct()
    assert pool.closed
    await rig.punching.end()


@in_virtual_time
async def test_the_peer_is_asked_for_its_ports() -> None:
    rig = Rig(theirs=COUNTED)
    await rig.begin(THEIRS)
    ((method, addresses, count),) = await rig.asked(1)
    assert (method, addresses, count) == ("predict", [OUTSIDE], MAX_PREDICTED)
    fresh = [("198.51.100.10", port) for port in (30_003, 30_001, 30_002)]
    await rig.prepared(*fresh)
    assert rig.connection.rounds == []  # they come by another way
    await rig.tells(*fresh)
    ((pairs, ttl, hold),) = await rig.rounds(1)
    assert pairs == [(OUTSIDE, remote) for remote in sorted(fresh)]
    assert (ttl, hold) == (255, 0)
    assert rig.connection.pools == []
    await rig.punching.end()


@in_virtual_time
async def test_the_ports_of_both_are_matched() -> None:
    rig = Rig(ours=COUNTED, theirs=COUNTED)
    await rig.begin(THEIRS)
    await rig.asked(1)
    fresh = [("198.51.100.10", 30_001 + i) for i in range(MAX_PREDICTED)]
    await rig.prepared(*fresh[:4])
    await rig.tells(*fresh)
    ((pairs, _, _),) = await rig.rounds(1)
    own = [("203.0.113.10", 20_003 + i) for i in range(MAX_PREDICTED)]
    assert pairs == list(zip(own, fresh, strict=True))
    assert rig.connection.pools == []
    await rig.punching.end()


@in_virtual_time
async def test_predictions_bring_no_rounds_forward() -> None:
    rig = Rig(theirs=COUNTED)
    await rig.begin(THEIRS)
    await rig.asked(1)
    fresh = [("198.51.100.10", 30_001 + i) for i in range(4)]
    await rig.prepared(*fresh)
    await rig.tells(*fresh)
    await rig.rounds(1)
    await asyncio.sleep(3)
    await rig.rounds(1)
    await rig.punching.end()


@pytest.mark.parametrize("how", ["refused", "silent"])
@in_virtual_time
async def test_a_peer_that_does_not_help_is_a_refusal(how: str) -> None:
    rig = Rig(theirs=COUNTED)
    await rig.begin(THEIRS)
    await rig.asked(1)
    if how == "refused":
        await rig.prepared(ok=False)
    await asyncio.sleep(2)
    assert rig.connection.rounds == []
    assert rig.results()["refused"] >= 1
    assert rig.punching.account(rig.core, ()).attempts[0].outcome == "refused"
    await rig.punching.end()


@in_virtual_time
async def test_a_nat_that_does_not_show_its_ports_is_a_failure() -> None:
    rig = Rig(ours=COUNTED)
    rig.probe.next_port = None
    await rig.begin(THEIRS)
    await asyncio.sleep(0.5)
    assert rig.results() == {"failed": 1}
    assert "did not show" in rig.punching.account(rig.core, ()).attempts[0].reason
    await rig.punching.end()


@in_virtual_time
async def test_what_is_about_to_be_known_is_waited_for() -> None:
    rig = Rig(ours=("unknown", "unknown", "sequential", 1))
    rig.probe.idle.clear()
    begun = now()
    await rig.begin(THEIRS)
    await asyncio.sleep(0.1)
    assert rig.connection.rounds == []
    rig.probe.idle.set()
    await rig.rounds(1)
    assert now() - begun < 0.2
    assert rig.probe.wanted
    await rig.punching.end()


# Birthdays


@in_virtual_time
async def test_we_spray_where_the_ports_of_the_peer_are_random() -> None:
    rig = Rig(theirs=RANDOM)
    await rig.begin(THEIRS)
    assert (await rig.asked(1))[0] == ("pool", [OUTSIDE], POOL)
    assert rig.connection.sprays == []
    await rig.prepared(("198.51.100.10", 40_000))
    (spray,) = rig.connection.sprays
    assert (spray.ip, spray.count, spray.cancelled) == ("198.51.100.10", SPRAY, False)
    rig.punching.opened(rig.core, "198.51.100.10", 41_234)
    (path,) = await rig.endpoint.opened(1)
    await rig.direct(("198.51.100.10", 41_234))
    path.attempt.outcome.set_result(1)
    await settle()
    assert spray.cancelled
    assert rig.results() == {"direct": 1}
    await rig.punching.end()


@in_virtual_time
async def test_we_open_a_pool_where_ours_are() -> None:
    rig = Rig(ours=RANDOM)
    await rig.begin(THEIRS)
    assert (await rig.asked(1))[0] == ("spray", [OUTSIDE], SPRAY)
    (pool,) = rig.connection.pools
    assert (pool.address, pool.size) == (THEIRS, POOL)
    await rig.prepared(THEIRS)
    await asyncio.sleep(5)
    assert pool.refreshed == 1
    assert not pool.closed
    await asyncio.sleep(2)
    assert pool.closed
    assert rig.results()["failed"] == 1
    await rig.punching.end()


@in_virtual_time
async def test_birthday_attempts_are_few() -> None:
    rig = Rig(theirs=RANDOM)
    await rig.begin(THEIRS)
    for count in range(1, 5):
        async with asyncio.timeout(3600):
            while len(rig.connection.steps) < count:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.1)
        await rig.prepared(ok=False)
    await asyncio.sleep(3000)
    assert len(rig.connection.steps) == 4
    await rig.punching.end()


@pytest.mark.parametrize("birthday", [False, True])
@in_virtual_time
async def test_the_hopeless_is_recognised_at_once(birthday: bool) -> None:
    rig = Rig(ours=RANDOM, theirs=RANDOM, birthday=birthday)
    await rig.begin(THEIRS)
    await asyncio.sleep(0.01)
    assert not rig.punching.is_open(rig.core)
    await rig.punching.settled(rig.core)
    await asyncio.sleep(60)
    assert rig.connection.rounds == []
    await rig.punching.end()


# The end


@pytest.mark.parametrize("ours", [EASY, COUNTED, RANDOM], ids=["easy", "counted", "random"])
@pytest.mark.parametrize("theirs", [EASY, COUNTED, RANDOM], ids=["easy", "counted", "random"])
@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 2.0])
@in_virtual_time
async def test_nothing_is_left_at_the_end(
    ours: tuple[str, str, str, int], theirs: tuple[str, str, str, int], after: float
) -> None:
    before = asyncio.all_tasks()
    rig = Rig(ours=ours, theirs=theirs)
    await rig.begin(THEIRS)
    rig.punching.opened(rig.core, "198.51.100.10", 4444)
    await asyncio.sleep(after)
    if after == 2.0:
        rig.punching.ended(7)
        await settle()
    else:
        await rig.punching.end()
    assert asyncio.all_tasks() == before
    assert all(pool.closed for pool in rig.connection.pools)
    assert all(spray.cancelled for spray in rig.connection.sprays)


@in_virtual_time
async def test_an_account_says_what_there_is() -> None:
    rig = Rig()
    rig.connection.capabilities = ()
    await rig.begin(THEIRS, ("2001:db8::9", 9000))
    await rig.rounds(1)
    account = rig.punching.account(rig.core, ())
    assert account.own_candidates == (("203.0.113.10:9000", "observed"),)
    assert "198.51.100.10:9000" in account.peer_candidates
    assert dict(account.no_pair)["[2001:db8::9]:9000"]
    assert [attempt.technique for attempt in account.attempts] == ["simple"]
    assert account.plan is not None
    assert account.plan.methods[0] == "simple"
    assert account.peer is not None
    await rig.punching.end()


# Pairs


def address(number: int) -> SocketAddress:
    return SocketAddress.of("192.0.2.1", 1000 + number)


def test_every_address_is_in_a_round_once() -> None:
    pairs = tuple((address(i), address(100 + j)) for i in range(4) for j in range(3))
    covered = cover(pairs)
    assert {own for own, _ in covered} == {address(i) for i in range(4)}
    assert {remote for _, remote in covered} == {address(100 + j) for j in range(3)}
    assert len(covered) == 6
    crowd = tuple((address(i), address(100 + i)) for i in range(50))
    assert len(cover(crowd)) == MAX_ROUND_PAIRS


def test_predictions_are_matched_in_their_order() -> None:
    own, remote = [address(i) for i in range(3)], [address(100 + i) for i in range(5)]
    assert matched(own, remote) == tuple((own[i % 3], remote[i]) for i in range(5))
    assert matched(own, []) == ()
    assert matched([], remote) == ()
