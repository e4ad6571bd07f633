"""Who shares a tunnel, how long it stays, and what is said when there is none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from anyreach._proving import Contacts
from anyreach._tunnels import (
    IDLE_SECONDS,
    MAX_TUNNELS,
    PARTING_SECONDS,
    SWEEP_SECONDS,
    Target,
    Tunnel,
    TunnelFailed,
    Tunnels,
)
from anyreach.addresses import HostPort, IpMode, SocketAddress
from anyreach.carriers import SECOND_BEST_SECONDS
from anyreach.metrics import Recorder
from anyreach.peer import PeerId
from anyreach.proxies import ProxySettings

from .fake_core import FakeEndpoint, FakeTunnel, settle
from .virtual_time import in_virtual_time

RELAY, OTHER = (PeerId(bytes([i]) * 32) for i in (1, 2))
HOST = HostPort("192.0.2.1", 9000)
V4, V6 = SocketAddress.of("192.0.2.1", 9000), SocketAddress.of("2001:db8::1", 9000)


def target(number: int = 0, **fields: Any) -> Target:
    """A relay, each number another one."""
    address = SocketAddress.of(f"192.0.2.{number + 1}", 9000)
    known: dict[str, Any] = {"addresses": (address,)}
    return Target(HostPort(address.host, address.port), **(known | fields))


@dataclass
class Rig:
    """The tunnels of a node on a fake endpoint."""

    mode: IpMode = IpMode.DUAL_STACK
    proxy: str | None = None
    inspected: bool = False
    endpoint: FakeEndpoint = field(default_factory=FakeEndpoint)
    recorder: Recorder = field(default_factory=Recorder)
    contacts: Contacts = field(default_factory=Contacts)
    used: set[Tunnel] = field(default_factory=set)
    told: list[Tunnel] = field(default_factory=list)
    network: frozenset[str] = frozenset({"203.0.113.0/24"})

    def __post_init__(self) -> None:
        self.tunnels = Tunnels(
            self.endpoint,
            self.endpoint.wait,
            mode=self.mode,
            proxies=ProxySettings.of(self.proxy),
            ca_file=None,
            allow_tls_inspection=self.inspected,
            network=lambda: self.network,
            used=lambda tunnel: tunnel in self.used,
            changed=self.told.append,
            contacts=self.contacts,
            recorder=self.recorder,
        )

    def plan(self, number: int = -1) -> list[str]:
        """The carriers the core was told to try."""
        return [carrier for carrier, _ in self.endpoint.tunnels[number].options["plan"]]

    def carried(self) -> tuple[int, int]:
        counted = self.recorder.snapshot(connections={}, rejected={}).relay_bytes_total
        return counted["client", "sent"], counted["client", "received"]


async def up(rig: Rig, tunnel: Tunnel, relay: PeerId = RELAY, carrier: str = "h3") -> FakeTunnel:
    core = rig.endpoint.tunnels[-1]
    assert tunnel.core is core.core()
    core.up(bytes(relay), "203.0.113.1 5000", carrier=carrier)
    await settle()
    return core


@in_virtual_time
async def test_those_who_want_the_same_relay_share_a_tunnel() -> None:
    rig = Rig()
    first = rig.tunnels.hold(target(peer_id=RELAY), "a")
    assert rig.tunnels.hold(target(1, peer_id=RELAY), "b") is first  # wherever it is said to be
    assert rig.tunnels.hold(target(peer_id=OTHER), "c") is not first
    await up(rig, rig.tunnels.hold(target(peer_id=OTHER), "c"), OTHER)
    assert len(rig.endpoint.tunnels) == 2
    await rig.tunnels.end()


@in_virtual_time
async def test_a_relay_known_by_place_is_the_same_once_it_has_proved_who_it_is() -> None:
    rig = Rig()
    tunnel = rig.tunnels.hold(target(), "a")
    assert tunnel.relay is None
    assert rig.tunnels.hold(target(), "b") is tunnel
    assert rig.tunnels.find(RELAY) is None
    await up(rig, tunnel)
    assert tunnel.relay == RELAY
    assert rig.tunnels.find(RELAY) is tunnel
    assert rig.tunnels.hold(target(7, peer_id=RELAY), "c") is tunnel
    await rig.tunnels.end()


@in_virtual_time
async def test_a_tunnel_is_ready_when_it_is_up() -> None:
    rig = Rig()
    tunnel = rig.tunnels.hold(target(), "a")
    waiting = [asyncio.create_task(tunnel.ready()) for _ in range(3)]
    await settle()
    assert not any(task.done() for task in waiting)
    core = await up(rig, tunnel)
    await asyncio.gather(*waiting)
    await tunnel.ready()
    assert tunnel.public == (SocketAddress.of("203.0.113.1", 5000),)
    assert rig.told == [tunnel]
    core.become("down")
    again = asyncio.create_task(tunnel.ready())
    await settle()
    assert tunnel.down
    assert not again.done()
    core.become("up")
    await again
    assert rig.told == [tunnel] * 3
    await rig.tunnels.end()


@in_virtual_time
async def test_a_failure_tells_what_was_tried() -> None:
    rig = Rig()
    tunnel = rig.tunnels.hold(target(), "a")
    tried = ("h3", "192.0.2.1:9000", "handshake-timeout", "no answer", 3.0)
    rig.endpoint.tunnels[0].fail(tried, ("h2", "192.0.2.1:9000", "refused", "no", 0.1))
    with pytest.raises(TunnelFailed) as caught:
        await tunnel.ready()
    assert caught.value.attempts[0] == tried
    assert "h2 192.0.2.1:9000: no" in str(caught.value)
    await settle()
    assert list(rig.tunnels) == []
    assert rig.tunnels.hold(target(), "a") is not tunnel
    await rig.tunnels.end()


@in_virtual_time
async def test_a_tunnel_that_has_ended_is_replaced_before_its_end_was_told() -> None:
    rig = Rig()
    tunnel = rig.tunnels.hold(target(peer_id=RELAY), "a")
    core = await up(rig, tunnel)
    core.sent = 100
    core.become("closed")
    again = rig.tunnels.hold(target(peer_id=RELAY), "a")
    assert again is not tunnel
    await settle()
    assert list(rig.tunnels) == [again]
    assert rig.carried() == (100, 0)
    await rig.tunnels.end()


@in_virtual_time
async def test_what_nobody_needs_is_closed_a_minute_later() -> None:
    rig = Rig()
    sweeping = asyncio.create_task(rig.tunnels.run())
    held, used, idle = (rig.tunnels.hold(target(i), "a") for i in range(3))
    for tunnel in (used, idle):
        rig.tunnels.release(tunnel, "a")
    rig.used.add(used)
    await asyncio.sleep(IDLE_SECONDS - 1)
    assert list(rig.tunnels) == [held, used, idle]
    await asyncio.sleep(2 * SWEEP_SECONDS)
    assert list(rig.tunnels) == [held, used]
    assert idle.ended
    # Whoever needed it last, the minute starts when that is over.
    rig.used.clear()
    await asyncio.sleep(IDLE_SECONDS - 1)
    assert list(rig.tunnels) == [held, used]
    await asyncio.sleep(2 * SWEEP_SECONDS)
    assert list(rig.tunnels) == [held]
    sweeping.cancel()
    await rig.tunnels.end()


@in_virtual_time
async def test_releasing_twice_or_for_others_is_no_harm() -> None:
    rig = Rig()
    tunnel = rig.tunnels.hold(target(), "a")
    rig.tunnels.hold(target(), "b")
    rig.tunnels.release(tunnel, "a")
    rig.tunnels.release(tunnel, "a")
    rig.tunnels.release(tunnel, "stranger")
    assert tunnel.holders == {"b"}
    await rig.tunnels.end()


@in_virtual_time
async def test_giving_up_closes_at_once_what_nobody_else_needs() -> None:
    rig = Rig()
    shared, used, own = (rig.tunnels.hold(target(i), "a") for i in range(3))
    rig.tunnels.hold(target(0), "b")
    rig.used.add(used)
    for tunnel in (shared, used, own):
        rig.tunnels.give_up(tunnel, "a")
    assert list(rig.tunnels) == [shared, used]
    assert own.ended
    assert not used.ended
    await rig.tunnels.end()


@in_virtual_time
async def test_there_is_room_for_so_many_and_the_longest_idle_goes_first() -> None:
    rig = Rig()
    tunnels = []
    for number in range(MAX_TUNNELS):
        tunnels.append(rig.tunnels.hold(target(number), "a"))
        await asyncio.sleep(1)
    with pytest.raises(TunnelFailed, match="16 tunnels"):
        rig.tunnels.hold(target(MAX_TUNNELS), "a")
    assert len(rig.endpoint.tunnels) == MAX_TUNNELS
    for number in (9, 5, 7):
        rig.tunnels.release(tunnels[number], "a")
        await asyncio.sleep(1)
    rig.used.add(tunnels[9])  # the longest idle one carries something
    rig.tunnels.hold(target(MAX_TUNNELS), "a")
    assert tunnels[5].ended
    rig.tunnels.hold(target(MAX_TUNNELS + 1), "a")
    assert tunnels[7].ended
    with pytest.raises(TunnelFailed, match="16 tunnels"):
        rig.tunnels.hold(target(MAX_TUNNELS + 2), "a")
    assert not tunnels[9].ended
    # One that is there already needs no room.
    assert rig.tunnels.hold(target(3), "b") is tunnels[3]
    await rig.tunnels.end()


@in_virtual_time
async def test_only_addresses_of_our_families_are_tried() -> None:
    rig = Rig(mode=IpMode.IPV4_ONLY)
    rig.tunnels.hold(target(addresses=(V6, V4)), "a")
    options = rig.endpoint.tunnels[0].options
    assert options["udp"] == options["tcp"] == [("192.0.2.1", 9000)]
    with pytest.raises(TunnelFailed, match="could reach"):
        rig.tunnels.hold(Target(HostPort("2001:db8::1", 9000), (V6,)), "a")
    with pytest.raises(TunnelFailed, match="could reach"):
        rig.tunnels.hold(Target(HostPort("relay.example", 9000), ()), "a")
    assert len(rig.endpoint.tunnels) == 1
    await rig.tunnels.end()


@in_virtual_time
async def test_a_proxy_resolves_what_we_cannot() -> None:
    rig = Rig(proxy="http://user:secret@proxy.example:3128")
    host = HostPort("relay.example", 443)
    assert rig.tunnels.has_proxy(host)
    rig.tunnels.hold(Target(host, (), udp=False), "a")
    options = rig.endpoint.tunnels[0].options
    assert (options["host"], options["port"]) == ("relay.example", 443)
    assert options["proxy"] == "http://user:secret@proxy.example:3128"
    assert rig.plan() == ["h2-proxy"]
    await rig.tunnels.end()


@in_virtual_time
async def test_the_carrier_that_worked_here_goes_first_the_next_time() -> None:
    rig = Rig()
    await up(rig, rig.tunnels.hold(target(0), "a"), carrier="h2")
    assert rig.plan() == ["h3", "h2"]
    rig.tunnels.hold(target(1), "a")
    assert rig.plan() == ["h2", "h3"]
    rig.network = frozenset({"198.51.100.0/24"})
    rig.tunnels.hold(target(2), "a")
    assert rig.plan() == ["h3", "h2"]
    await rig.tunnels.end()


@in_virtual_time
async def test_a_change_of_network_has_every_carrier_looked_at() -> None:
    rig = Rig(network=frozenset({"192.168.1.0/24"}))
    await up(rig, rig.tunnels.hold(target(0), "a"), carrier="h2")
    rig.tunnels.hold(target(1), "a")
    rig.tunnels.network_changed()
    assert [core.probed for core in rig.endpoint.tunnels] == [1, 1]
    # Another network of that name may be anywhere.
    rig.tunnels.hold(target(2), "a")
    assert rig.plan() == ["h3", "h2"]
    await rig.tunnels.end()


@in_virtual_time
async def test_whom_udp_is_sent_to_is_remembered() -> None:
    rig = Rig()
    rig.tunnels.hold(target(0, udp=False), "a")
    rig.tunnels.hold(target(1), "a")
    assert rig.plan(0) == ["h2"]
    for number in range(2):  # UDP is tried again where it was blocked
        assert target(number).addresses[0].ip in rig.contacts
    assert target(2).addresses[0].ip not in rig.contacts
    await rig.tunnels.end()


@in_virtual_time
async def test_what_tunnels_carry_is_counted_also_after_their_end() -> None:
    rig = Rig()
    first, second = (rig.tunnels.hold(target(i), "a") for i in range(2))
    cores = rig.endpoint.tunnels
    cores[0].sent, cores[0].received, cores[1].sent = 10, 20, 5
    rig.tunnels.count()
    rig.tunnels.count()
    assert rig.carried() == (15, 20)
    cores[0].sent = 17
    rig.tunnels.close(first)
    cores[1].received = 3
    cores[1].fail()
    await settle()
    assert second.ended
    assert rig.carried() == (22, 23)
    await rig.tunnels.end()
    assert rig.carried() == (22, 23)


@in_virtual_time
async def test_the_end_closes_all_and_opens_none() -> None:
    rig = Rig()
    held, idle = (rig.tunnels.hold(target(i), "a") for i in range(2))
    rig.tunnels.release(idle, "a")
    before = asyncio.all_tasks()
    await rig.tunnels.end()
    assert held.ended
    assert idle.ended
    assert len(asyncio.all_tasks()) == len(before) - 2
    with pytest.raises(TunnelFailed, match="closed"):
        rig.tunnels.hold(target(2), "a")
    assert len(rig.endpoint.tunnels) == 2
    await rig.tunnels.end()


@in_virtual_time
async def test_udp_is_looked_for_again_while_tcp_carries() -> None:
    rig = Rig()
    sweeping = asyncio.create_task(rig.tunnels.run())
    slow = await up(rig, rig.tunnels.hold(target(0), "a"), carrier="h2")
    fast = await up(rig, rig.tunnels.hold(target(1), "a"), OTHER, carrier="h3")
    await asyncio.sleep(SECOND_BEST_SECONDS - SWEEP_SECONDS)
    assert slow.improvements == []
    await asyncio.sleep(3 * SWEEP_SECONDS)
    assert slow.improvements == [[("h3", 0.0)]]
    await asyncio.sleep(SECOND_BEST_SECONDS + SWEEP_SECONDS)
    assert len(slow.improvements) == 2
    assert fast.improvements == []
    sweeping.cancel()
    await rig.tunnels.end()


@in_virtual_time
async def test_where_tls_is_inspected_the_relay_must_be_named() -> None:
    rig = Rig(proxy="http://proxy.example:3128", inspected=True)
    with pytest.raises(TunnelFailed, match="ID@HOST:PORT"):
        rig.tunnels.hold(target(), "a")
    rig.tunnels.hold(target(peer_id=RELAY), "a")
    assert rig.endpoint.tunnels[0].options["allow_tls_inspection"]
    await rig.tunnels.end()


@in_virtual_time
async def test_connections_are_closed_while_their_tunnels_can_tell_it() -> None:
    rig = Rig()
    carrying, idle = (rig.tunnels.hold(target(i), "a") for i in range(2))
    cores = rig.endpoint.tunnels
    for core, relay in zip(cores, (RELAY, OTHER), strict=True):
        core.up(relay.raw, "203.0.113.1 5000")
    rig.used.add(carrying)
    states: list[str] = []

    def part() -> None:
        states.extend(core.state for core in cores)
        asyncio.get_running_loop().call_later(0.03, setattr, cores[0], "sent", 50)

    begun = asyncio.get_running_loop().time()
    await rig.tunnels.end(part)
    assert states == ["up", "up"]
    assert 0.03 <= asyncio.get_running_loop().time() - begun < PARTING_SECONDS
    assert carrying.ended
    assert idle.ended


@in_virtual_time
async def test_a_tunnel_that_sends_nothing_is_not_waited_for_long() -> None:
    for states, least in (("up", PARTING_SECONDS), ("down", 0.0)):
        rig = Rig()
        rig.used.add(rig.tunnels.hold(target(), "a"))
        rig.endpoint.tunnels[0].become(states)
        begun = asyncio.get_running_loop().time()
        await rig.tunnels.end(lambda: None)
        assert least <= asyncio.get_running_loop().time() - begun <= 2 * least
