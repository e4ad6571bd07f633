"""Finding peers through peers and relays, on a scripted core and a clock that jumps."""

from __future__ import annotations

import asyncio

import pytest

from anyreach._way import MAX_RELAYED_WAYS
from anyreach._ways import ASK_AGAIN, ASK_SECONDS, LAST_RESORT, MAX_ASKED, MAX_RELAYS
from anyreach.errors import ConnectError, ConnectionLost, PeerIdMismatch
from anyreach.peer import PeerId

from .fake_core import FakeConnection, FakePath, settle, until
from .virtual_time import in_virtual_time
from .ways_rig import (
    BOUND,
    BOUND6,
    DELAY,
    DIRECT,
    DIRECT6,
    ME,
    PEER,
    RELAY,
    Around,
    Rig,
    bound_at,
    described,
    failed,
    now,
)

# Asking


@in_virtual_time
async def test_every_connected_peer_is_asked() -> None:
    rig = Rig()
    peers = [rig.peer(i) for i in range(3)]
    call = rig.call()
    await until(lambda: all(peer.questions for peer in peers))
    assert {peer.questions[0].wanted for peer in peers} == {bytes(PEER)}
    peers[1].questions[0].answer(seen=DIRECT)
    (dial,) = await rig.endpoint.started(1)
    assert described(dial) == "192.0.2.9 9000"
    dial.win(FakeConnection())
    await call
    await rig.end()


@in_virtual_time
async def test_nobody_who_knows_is_an_error_that_says_who_was_asked() -> None:
    rig = Rig()
    for number, status in enumerate(("unknown", "not-findable", "limit", "busy")):
        rig.peer(number).says(status)
    closing = rig.peer(4)
    call = rig.call()
    await until(lambda: closing.questions)
    lost = ConnectionLost("gone", reason="timeout", code=0)
    closing.questions[0].outcome.set_exception(lost)
    begun = now()
    attempts = await failed(call)
    who = [f"peer {PeerId(bytes([100 + i]) * 32).short}…" for i in range(5)]
    assert sorted(attempts) == sorted(
        [
            (who[0], "unknown-peer", "it does not know the peer"),
            (who[1], "unknown-peer", "the peer does not want to be found through it"),
            (who[2], "unknown-peer", "it was asked too much lately"),
            (who[3], "unknown-peer", "it says busy"),
            (who[4], "no-answer", "it was asked for the peer and did not answer"),
        ]
    )
    assert now() - begun < ASK_SECONDS
    await rig.end()


@in_virtual_time
async def test_a_silent_peer_is_not_waited_for_forever() -> None:
    rig = Rig()
    rig.peer(0)
    begun = now()
    ((_, reason, _),) = await failed(rig.call())
    assert reason == "no-answer"
    assert now() - begun == pytest.approx(ASK_SECONDS, abs=0.01)
    await rig.end()


@in_virtual_time
async def test_without_peers_there_is_nobody_to_ask() -> None:
    rig = Rig()
    begun = now()
    with pytest.raises(ConnectError, match="no address is known"):
        await rig.call()
    assert now() == begun
    await rig.end()


@in_virtual_time
async def test_peers_that_come_while_some_are_expected_are_asked_as_well() -> None:
    rig = Rig()
    rig.joining.expected = True
    first = rig.peer(0).says("unknown")
    call = rig.call()
    await asyncio.sleep(5)
    assert not call.done()
    second = rig.peer(1)
    rig.joining.tell(True)
    await until(lambda: second.questions)
    assert len(first.questions) <= 2, "nobody is asked anew because somebody else came"
    second.questions[0].answer(seen=DIRECT)
    (dial,) = await rig.endpoint.started(1)
    dial.win(FakeConnection())
    await call
    await rig.end()


@in_virtual_time
async def test_the_search_ends_when_nobody_is_expected_any_more() -> None:
    rig = Rig()
    rig.joining.expected = True
    call = rig.call()
    await asyncio.sleep(5)
    rig.joining.tell(False)
    begun = now()
    with pytest.raises(ConnectError, match="no peer knows it"):
        await call
    assert now() == begun
    await rig.end()


@in_virtual_time
async def test_a_search_asks_so_many_and_no_more() -> None:
    for count in (MAX_ASKED, MAX_ASKED + 1):
        rig = Rig()
        peers = [rig.peer(i).says("unknown") for i in range(count)]
        await failed(rig.call())
        assert sum(bool(peer.questions) for peer in peers) == MAX_ASKED
        await rig.end()


@in_virtual_time
async def test_neither_the_wanted_peer_nor_a_dead_connection_is_asked() -> None:
    rig = Rig()
    wanted = rig.endpoint.meet(FakeConnection(id=7, peer_id=bytes(PEER)))
    wanted.route[0].age = 3600.0
    dead = rig.peer(0, close_reason=("timeout", 0, ""))
    call = rig.call()
    await until(lambda: wanted.asked)
    await asyncio.sleep(1)
    wanted.answers(False)
    await failed(call)
    assert wanted.questions == dead.questions == []
    await rig.end()


@in_virtual_time
async def test_a_peer_that_has_just_joined_is_asked_for_again() -> None:
    rig = Rig()
    helper = rig.peer(0).says("unknown")
    call = rig.call()
    await until(lambda: helper.questions)
    await settle()
    helper.says(seen=DIRECT)
    begun = now()
    (dial,) = await rig.endpoint.started(1)
    assert now() - begun == pytest.approx(ASK_AGAIN[0], abs=0.01)
    # It gets an address at a relay a moment later.
    helper.says(seen=DIRECT, bound=bound_at(BOUND))
    await rig.endpoint.started(2)
    assert rig.dialed() == ["192.0.2.9 9000", "198.51.100.1 5000 bound"]
    dial.win(FakeConnection())
    await call
    await asyncio.sleep(10)
    assert len(helper.questions) <= 1 + len(ASK_AGAIN)
    await rig.end()


# Ways through relays


@in_virtual_time
async def test_relayed_and_direct_ways_are_tried_together() -> None:
    rig = Rig()
    rig.peer(0).says(direct=[DIRECT6], bound=bound_at(BOUND, BOUND6))
    begun = now()
    call = rig.call()
    await rig.endpoint.started(3)
    assert now() - begun < 0.01
    assert sorted(rig.dialed()) == [
        "198.51.100.1 5000 bound",
        "2001:db8:1::1 5000 bound",
        "2001:db8::9 9000",
    ]
    assert all(dial.peer_id == bytes(PEER) for dial in rig.endpoint.dials)
    (relayed,) = [dial for dial in rig.endpoint.dials if dial.address == "198.51.100.1 5000"]
    relayed.win(FakeConnection(route=[FakePath(remote=BOUND, method="relayed")]))
    await call
    assert [dial.cancelled for dial in rig.endpoint.dials if dial is not relayed] == [True, True]
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_nothing_gets_to_the_nat_of_a_peer_before_a_relay_had_its_time() -> None:
    rig = Rig()
    rig.peer(0).says(seen=DIRECT, bound=bound_at(BOUND))
    begun = now()
    call = rig.call()
    (relayed,) = await rig.endpoint.started(1)
    assert described(relayed) == "198.51.100.1 5000 bound"
    assert rig.endpoint.primed == [DIRECT]
    _, direct = await rig.endpoint.started(2)
    assert now() - begun == pytest.approx(LAST_RESORT, abs=0.01)
    assert described(direct) == "192.0.2.9 9000"
    relayed.win(FakeConnection(route=[FakePath(remote=BOUND, method="relayed")]))
    await call
    assert rig.endpoint.primed == [DIRECT]
    await rig.end()


@in_virtual_time
async def test_the_nat_of_a_peer_is_tried_once_no_relay_leads_to_it() -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(direct=[DIRECT], bound=bound_at(BOUND))
    begun = now()
    call = rig.call()
    (relayed,) = await rig.endpoint.started(1)
    relayed.fail("handshake-timeout", "nobody there")
    _, direct = await rig.endpoint.started(2)
    assert now() - begun < 0.01
    assert described(direct) == "192.0.2.9 9000"
    direct.win(FakeConnection())
    await call
    await rig.end()


@in_virtual_time
async def test_a_failed_relayed_way_is_an_attempt() -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(bound=bound_at(BOUND))
    call = rig.call()
    (dial,) = await rig.endpoint.started(1)
    dial.fail("handshake-timeout", "nobody there")
    with pytest.raises(ConnectError) as caught:
        await call
    (attempt,) = caught.value.attempts
    assert attempt.method == "relayed"
    assert attempt.address == f"198.51.100.1:5000 at relay {str(RELAY)[:8]}"
    assert attempt.detail == "nobody there"
    await rig.end()


@in_virtual_time
async def test_addresses_at_ourselves_are_left_out() -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(
        bound=[*bound_at(BOUND, relay=ME), *bound_at(BOUND6, relay=RELAY)]
    )
    call = rig.call()
    await rig.endpoint.started(1)
    await asyncio.sleep(1)
    assert rig.dialed() == ["2001:db8:1::1 5000 bound"]
    rig.endpoint.dials[0].win(FakeConnection())
    await call
    await rig.end()


@pytest.mark.parametrize("port", [53, 123, 0])
@pytest.mark.parametrize("host", ["224.0.0.1", "192.0.2.9", "0.0.0.0"])
@in_virtual_time
async def test_what_is_no_address_of_a_relay_is_not_sent_to(host: str, port: int) -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(bound=bound_at((host, port)))
    assert await failed(rig.call()) == []
    assert rig.endpoint.dials == []
    await rig.end()


@in_virtual_time
async def test_so_many_relays_of_a_peer_are_tried() -> None:
    for count in (MAX_RELAYS, MAX_RELAYS + 1):
        rig = Rig()
        relays = [(bytes([i]) * 32, [(f"198.51.100.{i}", 5000)]) for i in range(10, 10 + count)]
        rig.peer(0, capabilities=()).says(bound=relays)
        call = rig.call()
        await rig.endpoint.started(MAX_RELAYS)
        await settle()
        assert len(rig.endpoint.dials) == MAX_RELAYS
        call.cancel()
        await asyncio.wait([call])
        await rig.end()


@in_virtual_time
async def test_so_many_relayed_ways_are_tried() -> None:
    for count in (MAX_RELAYED_WAYS, MAX_RELAYED_WAYS + 1):
        rig = Rig()
        addresses = [(f"198.51.100.{i}", 5000) for i in range(count)]
        rig.peer(0, capabilities=()).says(bound=bound_at(*addresses))
        call = rig.call()
        await rig.endpoint.started(MAX_RELAYED_WAYS)
        await settle()
        assert len(rig.endpoint.dials) == MAX_RELAYED_WAYS
        call.cancel()
        await asyncio.wait([call])
        await rig.end()


@in_virtual_time
async def test_one_way_named_by_many_is_tried_once() -> None:
    rig = Rig()
    for number in range(3):
        rig.peer(number).says(seen=DIRECT, bound=bound_at(BOUND))
    call = rig.call()
    await rig.endpoint.started(2)
    await asyncio.sleep(LAST_RESORT / 2)
    assert len(rig.endpoint.dials) == 2
    rig.endpoint.dials[0].win(FakeConnection())
    await call
    await rig.end()


@in_virtual_time
async def test_the_relayed_way_that_made_the_connection_says_so_itself() -> None:
    rig = Rig()
    rig.peer(0).says(bound=bound_at(BOUND))
    call = rig.call()
    (dial,) = await rig.endpoint.started(1)
    made = FakeConnection(peer_id=bytes(PEER), route=[FakePath(remote=BOUND, method="relayed")])
    rig.dialer.arrived(made.core(), PEER)
    await settle()
    dial.win(made)
    assert await call is made.core()
    assert dial.kept
    assert not dial.cancelled
    await rig.end()


@in_virtual_time
async def test_somebody_else_at_a_found_address_is_no_error_of_its_own() -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(seen=DIRECT, bound=bound_at(BOUND))
    call = rig.call()
    for dial in await rig.endpoint.started(2):
        dial.fail("peer-id-mismatch", "another", bytes(RELAY))
    with pytest.raises(ConnectError) as caught:
        await call
    assert not isinstance(caught.value, PeerIdMismatch)
    assert [a.reason for a in caught.value.attempts] == ["peer-id-mismatch"] * 2
    await rig.end()


# Without direct paths


@in_virtual_time
async def test_nothing_is_dialed_directly_if_that_is_off() -> None:
    rig = Rig(direct=False)
    rig.peer(0).says(seen=DIRECT, direct=[DIRECT6], bound=bound_at(BOUND))
    call = rig.call("192.0.2.50:9000")
    (detour,) = await rig.endpoint.dug(1)
    assert [carrier for carrier, _ in detour.options["plan"]] == ["h3", "h2"]
    (dial,) = await rig.endpoint.started(1)
    assert rig.dialed() == ["198.51.100.1 5000 bound"]
    await asyncio.sleep(5)
    assert all(dial.relayed or dial.via is not None for dial in rig.endpoint.dials)
    dial.win(FakeConnection())
    await call
    await rig.end()


@in_virtual_time
async def test_known_peers_are_dialed_all_the_same() -> None:
    rig = Rig(direct=False)
    user, known = rig.call("192.0.2.50:9000"), rig.call("192.0.2.51:9000", search=False)
    await rig.endpoint.started(2)
    assert rig.dialed() == ["192.0.2.50 9000", "192.0.2.51 9000"]
    rig.endpoint.dials[0].win(FakeConnection())
    assert await user is await known
    await rig.end()


@in_virtual_time
async def test_known_peers_get_no_tunnel_before_they_had_time_to_answer() -> None:
    rig = Rig(direct=False)
    begun = now()
    call = rig.call("192.0.2.51:9000", search=False)
    (tunnel,) = await rig.endpoint.dug(1)
    assert now() - begun == pytest.approx(DELAY, abs=0.01)
    assert [carrier for carrier, _ in tunnel.options["plan"]] == ["h2"]
    rig.endpoint.dials[0].win(FakeConnection())
    await call
    await rig.end()


# The end


@pytest.mark.parametrize("stage", range(7))
@in_virtual_time
async def test_a_cancelled_call_leaves_nothing_whatever_it_waited_for(stage: int) -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.joining.expected = stage == 0
    helper = rig.peer(0)
    before = asyncio.all_tasks()
    call = rig.call("192.0.2.50:9000")
    await until(lambda: helper.questions)
    if stage > 1:
        helper.questions[0].answer(bound=bound_at(BOUND, BOUND6))
        await rig.endpoint.started(2)
    if stage > 2:
        await rig.endpoint.dug(2)  # a detour, and a way to the other family
    if stage > 3:
        for tunnel in rig.endpoint.tunnels:
            tunnel.up(bytes([100]) * 32, "203.0.113.1 6000", "2001:db8:2::1 6000")
    if stage > 4:
        await until(lambda: any(dial.via is not None for dial in rig.endpoint.dials))
    if stage > 5:
        await asyncio.sleep(5)
    call.cancel()
    await asyncio.wait([call])
    assert all(tunnel.holders == set() for tunnel in rig.tunnels)
    assert all(dial.cancelled for dial in rig.endpoint.dials)
    assert not rig.dialer._flows
    await rig.end()
    await settle()
    assert asyncio.all_tasks() == before


@in_virtual_time
async def test_time_running_out_says_what_was_under_way() -> None:
    rig = Rig()
    rig.peer(0).says(bound=bound_at(BOUND))
    call = rig.call("192.0.2.50:9000", timeout=3.0)
    attempts = await failed(call)
    assert {(address, reason) for address, reason, _ in attempts} >= {
        ("192.0.2.50:9000", "handshake-timeout"),
        (f"198.51.100.1:5000 at relay {str(RELAY)[:8]}", "handshake-timeout"),
        ("relay 192.0.2.50:9000", "handshake-timeout"),
        ("relay 192.0.2.100:9000", "handshake-timeout"),
    }
    await rig.end()
