"""Punching at the end that was dialed: what the peer is told, and what it may ask for."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from anyreach._punch_end import FEW, POOL, SPRAY
from anyreach._punch_server import MAX_ANSWERED, POOL_SECONDS
from anyreach.addresses import SocketAddress
from anyreach.prediction import MAX_PREDICTED

from .fake_core import settle
from .punch_rig import COUNTED, EASY, RANDOM, THEIRS, Rig
from .virtual_time import in_virtual_time

OUTSIDE = ("203.0.113.10", 9000)


def rig(ours: tuple[str, str, str, int] = EASY, theirs: tuple[str, str, str, int] = EASY) -> Rig:
    return Rig(ours=ours, theirs=theirs, outbound=False)


# Telling


@in_virtual_time
async def test_addresses_are_told_when_they_are_known() -> None:
    server = rig()
    await server.begin()
    assert server.connection.candidates == [[OUTSIDE]]
    server.punching.own_news()
    assert len(server.connection.candidates) == 1
    mapped = SocketAddress.of("203.0.113.10", 5555)
    server.local.routers = (mapped,)
    server.punching.own_news()
    assert server.connection.candidates[1:] == [[("203.0.113.10", 5555), OUTSIDE]]
    server.local.routers, server.local.observed.addresses = (), ()
    server.punching.network_changed()
    assert server.connection.candidates[-1] == []
    assert server.connection.rounds == []
    assert not server.punching.is_open(server.core)


@in_virtual_time
async def test_private_addresses_are_for_neighbours() -> None:
    server = rig()
    server.connection.reach = ([("192.168.1.9", 9000)], [])
    await server.begin()
    assert server.connection.candidates == [[("192.168.1.2", 9000), OUTSIDE]]
    assert server.connection.near == ()  # its own word lets it nowhere in


@in_virtual_time
async def test_of_mappings_for_single_peers_one_is_enough() -> None:
    server = rig(COUNTED)
    server.local.observed.addresses = tuple(
        SocketAddress.of("203.0.113.10", port) for port in (20_001, 20_002, 20_003)
    )
    await server.begin()
    assert server.connection.candidates == [[("203.0.113.10", 20_001)]]


# Prediction


@in_virtual_time
async def test_who_keeps_its_address_has_nothing_to_predict() -> None:
    server = rig(theirs=COUNTED)
    await server.begin()
    number = await server.prepare("predict", THEIRS)
    assert server.connection.results == [(number, True, [OUTSIDE])]
    assert server.connection.pools == []
    await server.punching.end()


@in_virtual_time
async def test_ports_are_predicted_told_and_sent_from() -> None:
    server = rig(COUNTED)
    await server.begin()
    number = await server.prepare("predict", THEIRS)
    ports = [("203.0.113.10", 20_003 + i) for i in range(MAX_PREDICTED)]
    assert server.connection.results == [(number, True, ports[:MAX_ANSWERED])]
    assert server.connection.candidates[-1] == ports
    (pool,) = server.connection.pools
    assert (pool.address, pool.size) == (THEIRS, FEW)
    await asyncio.sleep(5)
    assert pool.closed
    # The next question finds the counter further on.
    await server.prepare("predict", THEIRS)
    assert server.connection.candidates[-1][0] == ("203.0.113.10", 20_006)
    await server.punching.end()


@in_virtual_time
async def test_against_another_counter_the_usual_socket_will_do() -> None:
    server = rig(COUNTED, COUNTED)
    await server.begin()
    await server.prepare("predict", THEIRS)
    assert server.connection.results[0][1]
    assert server.connection.pools == []
    await server.punching.end()


@in_virtual_time
async def test_ports_nobody_can_predict_are_a_refusal() -> None:
    server = rig(COUNTED)
    server.probe.next_port = None
    await server.begin()
    number = await server.prepare("predict", THEIRS)
    assert server.connection.results == [(number, False, [])]
    await server.punching.end()


# Birthdays


@in_virtual_time
async def test_a_pool_is_opened_and_kept_open_for_a_while() -> None:
    server = rig(RANDOM)
    await server.begin()
    number = await server.prepare("pool", THEIRS, count=10_000)
    (pool,) = server.connection.pools
    assert (pool.address, pool.size) == (THEIRS, POOL)
    assert server.connection.results == [(number, True, [OUTSIDE])]
    assert ip_address(THEIRS[0]) in server.contacts
    await asyncio.sleep(POOL_SECONDS / 2)
    assert pool.refreshed >= 2
    assert not pool.closed
    await asyncio.sleep(POOL_SECONDS)
    assert pool.closed
    await server.punching.end()


@in_virtual_time
async def test_a_spray_is_sent() -> None:
    server = rig(theirs=RANDOM)
    await server.begin()
    number = await server.prepare("spray", THEIRS, count=10_000)
    (spray,) = server.connection.sprays
    assert (spray.ip, spray.count) == (THEIRS[0], SPRAY)
    assert server.connection.results == [(number, True, [OUTSIDE])]
    spray.outcome.set_result((1000, True))
    await settle()
    assert spray.cancelled
    await server.punching.end()


@in_virtual_time
async def test_a_spray_cut_short_says_so() -> None:
    server = rig(theirs=RANDOM)
    await server.begin()
    await server.prepare("spray", THEIRS, count=10_000)
    (spray,) = server.connection.sprays
    spray.outcome.set_result((657, False))
    await settle()
    reason = server.punching.account(server.core, ()).attempts[-1].reason
    assert reason == f"only 657 of {SPRAY} packets were allowed, none answered"
    await server.punching.end()


@pytest.mark.parametrize("method", ["pool", "spray"])
@in_virtual_time
async def test_birthday_attempts_of_one_peer_are_few(method: str) -> None:
    server = rig(RANDOM)
    await server.begin()
    for _ in range(100):
        await server.prepare(method, THEIRS)
        await asyncio.sleep(30)
    granted = [ok for _, ok, _ in server.connection.results]
    assert len(granted) == 100
    assert sum(granted) == 4
    await server.punching.end()


@in_virtual_time
async def test_birthday_attempts_may_be_switched_off() -> None:
    server = Rig(ours=RANDOM, outbound=False, birthday=False)
    await server.begin()
    for method in ("pool", "spray"):
        await server.prepare(method, THEIRS)
        await asyncio.sleep(10)
    assert [ok for _, ok, _ in server.connection.results] == [False, False]
    assert server.connection.pools == []
    await server.punching.end()


# Limits


@pytest.mark.parametrize(
    "addresses", [(), (("192.168.1.1", 80),), (("127.0.0.1", 80),)], ids=["none", "lan", "self"]
)
@in_virtual_time
async def test_steps_are_for_addresses_outside(addresses: tuple[tuple[str, int], ...]) -> None:
    server = rig(RANDOM)
    await server.begin()
    for method in ("pool", "spray"):
        await server.prepare(method, *addresses)
        await asyncio.sleep(10)
    assert [ok for _, ok, _ in server.connection.results] == [False, False]
    assert server.connection.pools == []
    assert server.connection.sprays == []
    await server.punching.end()


@in_virtual_time
async def test_questions_in_quick_succession_are_refused() -> None:
    server = rig(COUNTED)
    await server.begin()
    for number in range(50):
        server.punching.prepare(server.core, number, "predict", [THEIRS], 16)
    await asyncio.sleep(1)
    assert sum(ok for _, ok, _ in server.connection.results) == 1
    assert server.probe.asked == 1
    await server.punching.end()


@in_virtual_time
async def test_what_is_not_known_is_refused() -> None:
    server = rig()
    await server.begin()
    number = await server.prepare("dig", THEIRS)
    assert server.connection.results == [(number, False, [])]
    client = Rig()
    await client.begin()
    number = await client.prepare("predict", THEIRS)
    assert client.connection.results == [(number, False, [])]
    await server.punching.end()
    await client.punching.end()


# Accounts


@in_virtual_time
async def test_what_the_peer_did_is_in_the_log() -> None:
    server = rig()
    server.connection.reach = ([THEIRS], [])
    await server.begin()
    server.punching.round(server.core, 3)
    assert ip_address(THEIRS[0]) in server.contacts
    (attempt,) = server.punching.account(server.core, ()).attempts
    assert (attempt.technique, attempt.round, attempt.outcome) == ("simple", 3, None)
    await server.direct()
    (attempt,) = server.punching.account(server.core, ()).attempts
    assert (attempt.outcome, attempt.remote) == ("direct", ("198.51.100.10:9000",))
    server.punching.opened(server.core, "192.0.2.99", 1)
    assert ip_address("192.0.2.99") in server.contacts
    assert server.endpoint.paths == []


@in_virtual_time
async def test_nothing_is_left_at_the_end() -> None:
    before = asyncio.all_tasks()
    for method in ("predict", "pool", "spray"):
        for after in (0.0, 0.01, 0.1):
            server = rig(COUNTED)
            await server.begin()
            server.punching.prepare(server.core, 1, method, [THEIRS], 16)
            await asyncio.sleep(after)
            await server.punching.end()
            assert asyncio.all_tasks() == before
            assert all(pool.closed for pool in server.connection.pools)
            assert all(spray.cancelled for spray in server.connection.sprays)
