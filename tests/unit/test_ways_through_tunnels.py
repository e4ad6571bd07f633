"""Tunnels of our own to peers and relays, and when they are tried, on a scripted core."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from anyreach._tunnels import Target
from anyreach._ways import LAST_RESORT
from anyreach.addresses import HostPort, IpMode, SocketAddress
from anyreach.candidates import InterfaceAddress

from .fake_core import FakeConnection, FakeEndpoint, FakePath, settle, until
from .virtual_time import in_virtual_time
from .ways_rig import (
    BOUND,
    BOUND6,
    DELAY,
    DIRECT,
    DIRECT6,
    PEER,
    RELAY,
    RELAY2,
    Around,
    Rig,
    bound_at,
    described,
    failed,
    now,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach._tunnels import Tunnel
    from anyreach.peer import PeerId


# Ways through tunnels of our own


@in_virtual_time
async def test_tunnels_are_a_last_resort_where_udp_works() -> None:
    rig = Rig()
    rig.peer(0).says(bound=bound_at(BOUND))
    begun = now()
    call = rig.call()
    (tunnel,) = await rig.endpoint.dug(1)
    assert now() - begun == pytest.approx(LAST_RESORT, abs=0.01)
    assert tunnel.options["udp"] == [("192.0.2.100", 9000)]
    tunnel.up(bytes([100]) * 32, "203.0.113.1 6000")
    _, second = await rig.endpoint.started(2)
    assert rig.dialed()[1] == "198.51.100.1 5000 bound by tunnel"
    second.win(FakeConnection())
    await call
    assert next(iter(rig.tunnels)).holders == set()
    await rig.end()


@in_virtual_time
async def test_whoever_answers_in_time_saves_the_tunnel() -> None:
    rig = Rig()
    rig.peer(0).says(seen=DIRECT)
    call = rig.call()
    (dial,) = await rig.endpoint.started(1)
    await asyncio.sleep(LAST_RESORT - 0.1)
    dial.win(FakeConnection())
    await call
    await asyncio.sleep(10)
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_a_tunnel_is_tried_at_once_where_no_family_fits() -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.peer(0).says(seen=DIRECT6, bound=bound_at(BOUND6))
    begun = now()
    call = rig.call()
    (tunnel,) = await rig.endpoint.dug(1)
    assert now() - begun < 0.01
    tunnel.up(bytes([100]) * 32, "203.0.113.1 6000", "2001:db8:2::1 6000")
    await until(lambda: sum(dial.via is not None for dial in rig.endpoint.dials) == 2)
    tunnelled = [described(dial) for dial in rig.endpoint.dials if dial.via is not None]
    assert tunnelled == [
        "2001:db8:1::1 5000 bound by tunnel",
        "2001:db8::9 9000 by tunnel",
    ]
    call.cancel()
    await asyncio.wait([call])
    await rig.end()


@in_virtual_time
async def test_a_tunnel_leads_only_where_its_relay_has_addresses() -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.peer(0).says(bound=bound_at(BOUND6))
    call = rig.call()
    (tunnel,) = await rig.endpoint.dug(1)
    tunnel.up(bytes([100]) * 32, "203.0.113.1 6000")
    assert await failed(call) == []
    assert rig.endpoint.dials == []
    await rig.end()


def blocked(rig: Rig) -> FakeConnection:
    """A peer reached through a tunnel over TCP: UDP is blocked here."""
    path = FakePath(
        remote=("192.0.2.100", 9000), method="relayed", via=bytes(RELAY2), tunnelled=True
    )
    return rig.peer(0, peer_id=bytes(RELAY2), route=[path])


async def tunnel_to(rig: Rig, relay: PeerId, *public: str, carrier: str = "h2") -> Tunnel:
    """A tunnel that is up already, as a reservation."""
    tunnel = rig.tunnels.hold(target_of(relay), "somebody")
    rig.endpoint.tunnels[-1].up(bytes(relay), *public, carrier=carrier)
    await settle()
    return tunnel


def target_of(relay: PeerId) -> Any:
    address = SocketAddress.of("192.0.2.100", 443)
    return Target(HostPort("192.0.2.100", 443), (address,), relay)


@in_virtual_time
async def test_where_udp_is_blocked_everything_goes_through_the_tunnel_there_is() -> None:
    rig = Rig()
    await tunnel_to(rig, RELAY2, "203.0.113.1 6000")
    blocked(rig).says(seen=DIRECT, bound=bound_at(BOUND))
    begun = now()
    call = rig.call()
    await until(lambda: sum(dial.via is not None for dial in rig.endpoint.dials) == 2)
    assert now() - begun < 0.01
    tunnelled = [described(dial) for dial in rig.endpoint.dials if dial.via is not None]
    assert tunnelled == ["198.51.100.1 5000 bound by tunnel", "192.0.2.9 9000 by tunnel"]
    assert not any(dial.relayed and dial.via is None for dial in rig.endpoint.dials)
    assert len(rig.endpoint.tunnels) == 1
    call.cancel()
    await asyncio.wait([call])
    await rig.end()


@in_virtual_time
async def test_private_addresses_are_not_asked_of_a_relay() -> None:
    rig = Rig(around=Around(usable=frozenset((4,)), interfaces=interfaces("10.0.0.5")))
    await tunnel_to(rig, RELAY2, "203.0.113.1 6000")
    blocked(rig).says(seen=("10.0.0.9", 9000), bound=bound_at(BOUND))
    call = rig.call()
    await until(lambda: any(dial.via is not None for dial in rig.endpoint.dials))
    await settle()
    tunnelled = [described(dial) for dial in rig.endpoint.dials if dial.via is not None]
    assert tunnelled == ["198.51.100.1 5000 bound by tunnel"]
    call.cancel()
    await asyncio.wait([call])
    await rig.end()


def interfaces(*ips: str) -> tuple[InterfaceAddress, ...]:
    entries: Iterable[InterfaceAddress | None] = (InterfaceAddress.of("eth0", ip, 24) for ip in ips)
    return tuple(entry for entry in entries if entry is not None)


@in_virtual_time
async def test_only_peers_that_relay_and_are_reached_directly_are_asked_for_a_tunnel() -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.peer(0, capabilities=()).says(bound=bound_at(BOUND6))
    rig.peer(1, route=[FakePath(remote=BOUND, method="relayed")]).says("unknown")
    rig.peer(2, route=[]).says("unknown")
    rig.peer(3).says("unknown")
    call = rig.call()
    (tunnel,) = await rig.endpoint.dug(1)
    assert tunnel.options["peer_id"] == bytes([103]) * 32
    call.cancel()
    await asyncio.wait([call])
    assert len(rig.endpoint.tunnels) == 1
    await rig.end()


@in_virtual_time
async def test_a_tunnel_that_fails_is_explained_and_the_next_relay_asked() -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.peer(0).says(bound=bound_at(BOUND6))
    rig.peer(1).says("unknown")
    call = rig.call()
    (first,) = await rig.endpoint.dug(1)
    first.fail(
        ("h3", "192.0.2.100:9000", "handshake-timeout", "no answer", 3.0),
        ("h2", "", "refused", "connection refused", 0.1),
    )
    _, second = await rig.endpoint.dug(2)
    second.fail()
    attempts = [entry for entry in await failed(call) if not entry[0].startswith("peer ")]
    assert attempts == [
        ("192.0.2.100:9000 by h3", "handshake-timeout", "no answer"),
        ("192.0.2.100:9000 by h2", "refused", "connection refused"),
    ]
    await rig.end()


@in_virtual_time
async def test_no_relays_means_no_relays() -> None:
    rig = Rig(relayed=False)
    rig.peer(0).says(seen=DIRECT, bound=bound_at(BOUND))
    call = rig.call("192.0.2.50:9000")
    await rig.endpoint.started(2)
    for dial in rig.endpoint.dials:
        dial.fail("handshake-timeout")
    await failed(call)
    assert sorted(rig.dialed()) == ["192.0.2.50 9000", "192.0.2.9 9000"]
    assert rig.endpoint.tunnels == []
    await rig.end()


# Detours


@in_virtual_time
async def test_a_given_address_is_tried_over_tcp_a_moment_later() -> None:
    rig = Rig()
    begun = now()
    call = rig.call("192.0.2.50:9000")
    (tunnel,) = await rig.endpoint.dug(1)
    assert now() - begun == pytest.approx(DELAY, abs=0.01)
    assert tunnel.options["peer_id"] == bytes(PEER)
    assert [carrier for carrier, _ in tunnel.options["plan"]] == ["h2"]
    tunnel.node_addresses = [("127.0.0.1", 9000), ("192.0.2.50", 9000)]
    tunnel.up(bytes(PEER), "192.0.2.50 6000", carrier="h2")
    await rig.endpoint.started(3)
    assert rig.dialed() == [
        "192.0.2.50 9000",
        "127.0.0.1 9000 by tunnel",
        "192.0.2.50 9000 by tunnel",
    ]
    rig.endpoint.dials[1].win(FakeConnection())
    await call
    await rig.end()


@pytest.mark.parametrize("reason", ["peer-id-mismatch", "refused", "tls"])
@in_virtual_time
async def test_no_detour_around_somebody_who_said_no(reason: str) -> None:
    rig = Rig()
    call = rig.call("192.0.2.50:9000")
    (dial,) = await rig.endpoint.started(1)
    dial.fail(reason, "no", bytes(RELAY) if reason == "peer-id-mismatch" else None)
    await failed(call)
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_no_detour_once_somebody_answered() -> None:
    rig = Rig()
    call = rig.call("192.0.2.50:9000")
    (dial,) = await rig.endpoint.started(1)
    dial.win(FakeConnection())
    await call
    await asyncio.sleep(10)
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_silence_and_missing_routes_are_worth_a_detour() -> None:
    for reason in ("handshake-timeout", "unreachable"):
        rig = Rig()
        call = rig.call("192.0.2.50:9000")
        (dial,) = await rig.endpoint.started(1)
        dial.fail(reason)
        (tunnel,) = await rig.endpoint.dug(1)
        tunnel.fail(("h2", "192.0.2.50:9000", "refused", "connection refused", 0.1))
        assert [reason for _, reason, _ in await failed(call)] == [reason, "refused"]
        await rig.end()


@in_virtual_time
async def test_addresses_that_cannot_be_sent_to_get_no_detour() -> None:
    rig = Rig(mode=IpMode.IPV4_ONLY, endpoint=FakeEndpoint("v4"))
    assert [reason for _, reason, _ in await failed(rig.call("[2001:db8::50]:9000"))] == ["family"]
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_addresses_peers_name_get_no_detour() -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(seen=DIRECT)
    call = rig.call()
    (dial,) = await rig.endpoint.started(1)
    await asyncio.sleep(5)
    assert rig.endpoint.tunnels == []
    dial.fail("handshake-timeout")
    await failed(call)
    await rig.end()
