"""When a node holds addresses at relays, at whom, and whom it tells."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from anyreach._proving import Contacts
from anyreach._relaying import OUTAGE, SETTLE, Relaying
from anyreach._tunnels import Target, Tunnels
from anyreach.addresses import HostPort, IpMode, SocketAddress
from anyreach.events import Relay
from anyreach.metrics import Recorder
from anyreach.peer import PeerId
from anyreach.proxies import ProxySettings
from anyreach.relays import DefaultRelayPolicy, RelayDecision, RelayPolicy, RelaySituation

from .fake_core import FakeConnection, FakeEndpoint, FakePath, FakeTunnel, settle, until
from .fake_local import FakeLocal, FakeObserved, address
from .virtual_time import in_virtual_time

if TYPE_CHECKING:
    from anyreach._tunnels import Tunnel
    from anyreach.events import Event

ME = PeerId(bytes([255]) * 32)
RELAYS = [PeerId(bytes([i]) * 32) for i in range(1, 9)]
NAT4 = "203.0.113.77"


@dataclass
class Watched:
    """The default policy, and what it was asked."""

    policy: RelayPolicy = field(default_factory=DefaultRelayPolicy)
    asked: list[RelaySituation] = field(default_factory=list)

    def decide(self, situation: RelaySituation) -> RelayDecision:
        self.asked.append(situation)
        return self.policy.decide(situation)


@dataclass
class Rig:
    """The reservations of a node behind a NAT, on a fake endpoint."""

    wanted: int = 2
    direct: bool = True
    findable: bool = True
    load: int | None = None
    local: FakeLocal = field(default_factory=lambda: FakeLocal.at("10.0.0.7", seen=(NAT4,)))
    endpoint: FakeEndpoint = field(default_factory=FakeEndpoint)
    recorder: Recorder = field(default_factory=Recorder)
    policy: Watched = field(default_factory=Watched)
    used: set[Tunnel] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        contacts = Contacts()
        self.tunnels = Tunnels(
            self.endpoint,
            self.endpoint.wait,
            mode=IpMode.DUAL_STACK,
            proxies=ProxySettings.of(None),
            ca_file=None,
            allow_tls_inspection=False,
            network=frozenset,
            used=lambda tunnel: tunnel in self.used,
            changed=lambda _: self.relaying.tunnels_changed(),
            contacts=contacts,
            recorder=self.recorder,
        )
        self.relaying = Relaying(
            ME,
            self.endpoint,
            self.endpoint.wait,
            tunnels=self.tunnels,
            policy=self.policy,
            wanted=self.wanted,
            direct=self.direct,
            findable=self.findable,
            load=lambda: self.load,
            local=self.local.view(),
            contacts=contacts,
            emit=self.events.append,
            recorder=self.recorder,
        )
        self._running = asyncio.create_task(self.relaying.run())

    def meet(self, number: int, *, known: bool = False, **fields: Any) -> FakeConnection:
        """A peer that relays is connected, each number another one."""
        defaults: dict[str, Any] = {
            "peer_id": RELAYS[number].raw,
            "capabilities": ("relay",),
            "route": [FakePath(remote=(f"192.0.{number}.1", 9000))],
        }
        connection = FakeConnection(id=100 + number, **(defaults | fields))
        self.relaying.arrived(self.endpoint.meet(connection).core(), known=known)
        return connection

    async def tunnel(self, relay: int) -> FakeTunnel:
        """The latest tunnel to a relay."""
        raw = RELAYS[relay].raw
        await until(lambda: any(t.options["peer_id"] == raw for t in self.endpoint.tunnels))
        return [t for t in self.endpoint.tunnels if t.options["peer_id"] == raw][-1]

    async def reserve(self, relay: int, carrier: str = "h3") -> FakeTunnel:
        """Have the tunnel to a relay come up."""
        tunnel = await self.tunnel(relay)
        public = (f"192.0.{relay}.1 5000", f"2001:db8:{relay}::1 5000")
        tunnel.up(RELAYS[relay].raw, *public, carrier=carrier)
        await asyncio.sleep(2 * SETTLE)
        return tunnel

    def told(self) -> list[tuple[int, str]]:
        """(relay, state) of the events."""
        events = [event for event in self.events if isinstance(event, Relay)]
        return [(RELAYS.index(e.peer_id), e.state) for e in events if e.peer_id is not None]

    def counted(self) -> dict[tuple[str, str], int]:
        snapshot = self.recorder.snapshot(connections={}, rejected={})
        return dict(snapshot.relay_reservations_total)

    def bound(self) -> list[int]:
        """At which relays the peers were told last that the node has addresses."""
        return [RELAYS.index(PeerId(relay)) for relay, _ in self.endpoint.announced[-1][1]]

    async def prove(self, tunnel: FakeTunnel) -> None:
        """Have a stranger come in."""
        stranger = FakeConnection(
            id=900, peer_id=bytes([99]) * 32, outbound=False, route=[FakePath(remote=STRANGER)]
        )
        self.relaying.arrived(stranger.core(), known=False)
        await until(lambda: tunnel.state == "closed" or self.used)

    async def end(self) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])
        await self.tunnels.end()


STRANGER = ("192.0.200.200", 4000)


# At whom


@in_virtual_time
async def test_a_node_that_may_be_unreachable_reserves_at_peers_that_relay() -> None:
    rig = Rig()
    await settle()
    assert rig.endpoint.tunnels == []
    rig.meet(0)
    rig.meet(1)
    rig.meet(2)
    first, second = await rig.endpoint.dug(2)
    await asyncio.sleep(1)
    assert len(rig.endpoint.tunnels) == rig.wanted
    assert first.options["udp"] == first.options["tcp"] == [("192.0.0.1", 9000)]
    await rig.reserve(0)
    await rig.reserve(1)
    assert rig.told() == [(0, "reserved"), (1, "reserved")]
    assert rig.relaying.reservations == 2
    assert rig.counted() == {("h3", "reserved"): 2}
    assert second.state == "up"
    await rig.end()


@pytest.mark.parametrize(
    "fields",
    [
        {"capabilities": ()},
        {"outbound": False},
        {"route": []},
        {"route": [FakePath(method="relayed", via=bytes(32))]},
        {"route": [FakePath(method="relayed", via=None)]},
        {"close_reason": ("timeout", 0, "")},
    ],
    ids=["no relay", "it came to us", "no path", "behind a relay", "unknown relay", "gone"],
)
@in_virtual_time
async def test_who_is_no_relay(fields: dict[str, Any]) -> None:
    rig = Rig()
    rig.meet(0, **fields)
    await asyncio.sleep(1)
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_a_known_peer_may_have_come_to_us() -> None:
    rig = Rig()
    rig.meet(0, known=True, outbound=False)
    await rig.reserve(0)
    assert rig.told() == [(0, "reserved")]
    await rig.end()


@in_virtual_time
async def test_a_relay_reached_through_our_tunnel_to_it_keeps_that() -> None:
    rig = Rig()
    place = ("192.0.0.1", 9000)
    target = Target(HostPort(*place), (SocketAddress.of(*place),), RELAYS[0], udp=False)
    tunnel = rig.tunnels.hold(target, "a call")
    await rig.reserve(0, "h2")
    rig.tunnels.release(tunnel, "a call")
    path = FakePath(remote=place, method="relayed", via=RELAYS[0].raw, tunnelled=True)
    rig.meet(0, route=[path])
    await until(rig.told)
    assert len(rig.endpoint.tunnels) == 1
    assert rig.counted() == {("h2", "reserved"): 1}
    assert rig.relaying.reachability.families[0].verdict == "unreachable"
    await rig.end()


@in_virtual_time
async def test_the_policy_hears_what_was_measured() -> None:
    rig = Rig()
    rig.meet(0, known=True).route[0].rtt = 0.07
    tunnel = await rig.tunnel(0)
    (candidate,) = rig.policy.asked[-1].candidates
    assert (candidate.peer_id, candidate.rtt, candidate.known) == (RELAYS[0], 0.07, True)
    assert (candidate.families, candidate.carriers) == (frozenset(), frozenset())
    assert candidate.addresses == (SocketAddress.of("192.0.0.1", 9000),)
    tunnel.rtt = 0.05
    await rig.reserve(0, "h2")
    rig.relaying.changed()
    await asyncio.sleep(1)
    situation = rig.policy.asked[-1]
    (candidate,) = situation.candidates
    assert candidate.families == {4, 6}  # more than the path to it shows
    assert candidate.carriers == {"h2"}
    assert candidate.score.mean(situation.now) > 0.5
    (held,) = situation.reservations
    assert (held.state, held.rtt, held.failures) == ("reserved", 0.05, 0)
    assert situation.wanted == 2
    assert situation.me == ME
    await rig.end()


@in_virtual_time
async def test_a_machine_without_a_network_needs_no_relay() -> None:
    rig = Rig(local=FakeLocal.at("127.0.0.1", "::1", "fe80::1"))
    rig.meet(0)
    await asyncio.sleep(1)
    assert rig.endpoint.tunnels == []
    assert rig.endpoint.announced == [((), (), True)]
    await rig.end()


@in_virtual_time
async def test_without_direct_paths_relays_are_needed_everywhere() -> None:
    rig = Rig(direct=False, local=FakeLocal.at("127.0.0.1"))
    rig.meet(0)
    tunnel = await rig.reserve(0)
    assert rig.told() == [(0, "reserved")]
    assert rig.policy.asked[-1].cover == {4, 6}
    assert all(direct == () for direct, _, _ in rig.endpoint.announced)
    rig.relaying.arrived(
        FakeConnection(outbound=False, route=[FakePath(remote=STRANGER)]).core(), known=False
    )
    await asyncio.sleep(300)
    assert tunnel.state == "up"
    await rig.end()


@in_virtual_time
async def test_no_reservations_means_none_but_peers_are_told() -> None:
    rig = Rig(wanted=0)
    rig.meet(0)
    await asyncio.sleep(1)
    assert rig.endpoint.tunnels == []
    ((direct, bound, findable),) = rig.endpoint.announced
    assert direct == ((NAT4, 9000), ("10.0.0.7", 9000))
    assert (bound, findable) == ((), True)
    await rig.end()


# How long


@in_virtual_time
async def test_a_short_outage_is_waited_for() -> None:
    rig = Rig(wanted=1)
    rig.meet(0)
    rig.meet(1)
    tunnel = await rig.reserve(0)
    tunnel.become("down")
    await asyncio.sleep(OUTAGE - 0.5)
    assert rig.told() == [(0, "reserved"), (0, "lost")]
    assert rig.relaying.reservations == 0
    assert len(rig.endpoint.tunnels) == 1
    tunnel.become("up")
    await asyncio.sleep(OUTAGE)
    assert rig.told() == [(0, "reserved"), (0, "lost"), (0, "reserved")]
    assert len(rig.endpoint.tunnels) == 1
    assert rig.counted() == {("h3", "reserved"): 2, ("h3", "lost"): 1}
    await rig.end()


@in_virtual_time
async def test_a_longer_one_has_the_relay_replaced() -> None:
    rig = Rig(wanted=1)
    rig.meet(0)
    tunnel = await rig.reserve(0)
    rig.meet(1)
    await asyncio.sleep(1)
    tunnel.become("down")
    await asyncio.sleep(OUTAGE + 1)
    assert tunnel.state == "closed"
    await rig.reserve(1)
    assert rig.told() == [(0, "reserved"), (0, "lost"), (1, "reserved")]
    assert rig.bound() == [1]
    await rig.end()


@in_virtual_time
async def test_a_tunnel_that_is_down_is_given_as_long_as_a_loss() -> None:
    rig = Rig(wanted=1)
    place = ("192.0.0.1", 9000)
    target = Target(HostPort(*place), (SocketAddress.of(*place),), RELAYS[0])
    rig.tunnels.hold(target, "a call")
    tunnel = await rig.reserve(0)
    tunnel.become("down")
    rig.meet(0)
    await asyncio.sleep(OUTAGE - 1)
    rig.meet(1)
    await asyncio.sleep(2)
    await rig.reserve(1)
    assert rig.told() == [(1, "reserved")]
    assert rig.counted() == {("h3", "failed"): 1, ("h3", "reserved"): 1}
    assert tunnel.state == "down", "the call still hopes"
    await rig.end()


@in_virtual_time
async def test_a_relay_that_refuses_is_asked_again_ever_more_rarely() -> None:
    rig = Rig()
    rig.meet(0)
    for attempt in range(1, 6):
        (await rig.endpoint.dug(attempt))[-1].fail(("h3", "", "refused", "full", 0.1))
        await settle()
    begun = asyncio.get_running_loop().time()
    await asyncio.wait_for(rig.endpoint.dug(6), 60)
    assert asyncio.get_running_loop().time() - begun > 5
    assert rig.told() == []
    assert rig.counted() == {("h3", "failed"): 5}
    assert len(rig.endpoint.tunnels) == 6
    await rig.end()


@in_virtual_time
async def test_no_room_for_a_tunnel_is_a_failure_to_try_again() -> None:
    rig = Rig(wanted=1)
    for number in range(16):
        place = SocketAddress.of(f"198.51.100.{number}", 9000)
        rig.tunnels.hold(Target(HostPort(place.host, 9000), (place,)), "a call")
    rig.meet(0)
    await asyncio.sleep(1)
    assert rig.counted()["h3", "failed"] >= 1
    rig.tunnels.give_up(next(iter(rig.tunnels)), "a call")
    await asyncio.sleep(60)
    assert rig.endpoint.tunnels[-1].options["peer_id"] == RELAYS[0].raw
    await rig.end()


@in_virtual_time
async def test_a_relay_that_leaves_keeps_the_reservation_but_not_a_lost_one() -> None:
    rig = Rig(wanted=1)
    rig.meet(0)
    tunnel = await rig.reserve(0)
    rig.relaying.left(RELAYS[0])
    await asyncio.sleep(300)
    assert rig.relaying.reservations == 1
    tunnel.become("closed")
    await asyncio.sleep(300)
    assert rig.told() == [(0, "reserved"), (0, "lost")]
    assert rig.policy.asked[-1].reservations == ()
    assert len(rig.endpoint.tunnels) == 1
    await rig.end()


@in_virtual_time
async def test_a_proof_gives_the_reservations_back() -> None:
    rig = Rig()
    rig.meet(0)
    tunnel = await rig.reserve(0)
    await rig.prove(tunnel)
    assert tunnel.state == "closed"
    assert rig.told() == [(0, "reserved"), (0, "lost")]
    await asyncio.sleep(1)
    assert rig.bound() == []
    assert rig.relaying.reservations == 0
    # A change of network voids the proof.
    rig.relaying.network_changed()
    await rig.endpoint.dug(2)
    await rig.reserve(0)
    assert rig.relaying.reservations == 1
    await rig.end()


@in_virtual_time
async def test_a_tunnel_somebody_else_needs_outlives_the_reservation() -> None:
    rig = Rig()
    rig.meet(0)
    core = await rig.reserve(0)
    (tunnel,) = rig.tunnels
    rig.used.add(tunnel)
    await rig.prove(core)
    await asyncio.sleep(1)
    assert rig.told() == [(0, "reserved"), (0, "lost")]
    assert core.state == "up"
    # Its addresses still stand for this node, and peers must know what they see.
    assert rig.bound() == [0]
    assert tunnel.holders == set()
    await rig.end()


@in_virtual_time
async def test_a_lost_address_may_mean_that_relays_are_needed_again() -> None:
    rig = Rig()
    rig.meet(0)
    await rig.prove(await rig.reserve(0))
    rig.local.observed = FakeObserved((address("203.0.113.78"),))
    rig.relaying.address_gone(address(NAT4))
    await rig.endpoint.dug(2)
    await rig.reserve(0)
    assert rig.relaying.reservations == 1
    await rig.end()


# Evidence


@in_virtual_time
async def test_reservations_are_used_to_probe_our_own_address() -> None:
    rig = Rig(local=FakeLocal.at("198.51.100.7"))
    rig.meet(0)
    tunnel = await rig.reserve(0)
    (dial,) = await rig.endpoint.started(1)
    assert dial.address == "198.51.100.7 9000"
    assert dial.via is tunnel
    dial.fail("self")
    await until(lambda: tunnel.state == "closed")
    assert rig.told() == [(0, "reserved"), (0, "lost")]
    await asyncio.sleep(60)
    assert len(rig.endpoint.tunnels) == 1
    await rig.end()


@in_virtual_time
async def test_an_address_seen_later_is_probed_through_the_reservation_there_is() -> None:
    rig = Rig(local=FakeLocal.at("10.0.0.7"))
    rig.meet(0)
    await rig.reserve(0)
    assert rig.endpoint.dials == []
    rig.local.observed = FakeObserved((address(NAT4),))
    rig.relaying.changed()
    (dial,) = await rig.endpoint.started(1)
    assert dial.address == f"{NAT4} 9000"
    await rig.end()
    assert dial.cancelled


# Telling


@in_virtual_time
async def test_peers_are_told_how_busy_the_relay_is() -> None:
    rig = Rig()
    await asyncio.sleep(1)
    for load in (0, 0, 40):
        rig.load = load
        rig.relaying.changed()
        await asyncio.sleep(1)
    assert rig.endpoint.loads == [None, 0, 40]
    await rig.end()


@in_virtual_time
async def test_the_less_busy_of_two_relays_is_asked() -> None:
    rig = Rig(wanted=1)
    rig.meet(0, relay_load=0.9)
    rig.meet(1, relay_load=0.1)
    await asyncio.sleep(1)
    (tunnel,) = rig.endpoint.tunnels
    assert tunnel.options["peer_id"] == RELAYS[1].raw
    await rig.end()


@in_virtual_time
async def test_peers_are_told_what_changed_and_nothing_else() -> None:
    rig = Rig()
    await asyncio.sleep(1)
    assert rig.endpoint.announced == [(((NAT4, 9000), ("10.0.0.7", 9000)), (), True)]
    for _ in range(5):
        rig.relaying.changed()
        await asyncio.sleep(1)
    assert len(rig.endpoint.announced) == 1
    rig.meet(0)
    await rig.reserve(0)
    assert len(rig.endpoint.announced) == 2
    _, ((relay, addresses),), _ = rig.endpoint.announced[-1]
    assert relay == RELAYS[0].raw
    assert addresses == (("192.0.0.1", 5000), ("2001:db8::1", 5000))
    (await rig.tunnel(0)).become("down")
    await asyncio.sleep(1)
    assert rig.bound() == []
    await rig.end()


@in_virtual_time
async def test_a_tunnel_is_told_of_before_anybody_dials_through_it() -> None:
    rig = Rig(wanted=0, findable=False)
    await settle()
    place = ("192.0.0.1", 9000)
    target = Target(HostPort(*place), (SocketAddress.of(*place),), RELAYS[0], udp=False)
    tunnel = rig.tunnels.hold(target, "a call")
    ready = asyncio.create_task(tunnel.ready())
    await settle()
    rig.endpoint.tunnels[0].up(RELAYS[0].raw, "192.0.0.1 5000", carrier="h2")
    await ready
    assert rig.bound() == [0]
    assert rig.endpoint.announced[-1][2] is False
    assert rig.told() == []
    await rig.end()


@in_virtual_time
async def test_reservations_are_named_before_other_tunnels() -> None:
    rig = Rig(wanted=1)
    for number in (3, 4):
        place = SocketAddress.of(f"192.0.{number}.1", 9000)
        rig.tunnels.hold(Target(HostPort(place.host, 9000), (place,), RELAYS[number]), "a call")
        await rig.reserve(number)
    rig.meet(0)
    await rig.reserve(0)
    assert rig.bound() == [0, 3, 4]
    await rig.end()


@in_virtual_time
async def test_an_address_at_a_relay_that_moves_is_told() -> None:
    rig = Rig()
    rig.meet(0)
    tunnel = await rig.reserve(0)
    tunnel.public_addresses = [("192.0.0.1", 6000)]
    tunnel.become("up")
    await asyncio.sleep(1)
    assert [e.address for e in rig.events if isinstance(e, Relay)] == [
        "[2001:db8::1]:5000",
        "192.0.0.1:6000",
    ]
    assert rig.endpoint.announced[-1][1] == ((RELAYS[0].raw, (("192.0.0.1", 6000),)),)
    await rig.end()


@in_virtual_time
async def test_addresses_that_mean_nothing_elsewhere_are_kept_back() -> None:
    rig = Rig(local=FakeLocal.at("198.51.100.7", "127.0.0.1", "fe80::1", "fd00::7"))
    await settle()
    ((direct, _, _),) = rig.endpoint.announced
    assert [ip for ip, _ in direct] == ["198.51.100.7", "fd00::7"]
    await rig.end()


@in_virtual_time
async def test_nothing_is_left_at_the_end() -> None:
    before = asyncio.all_tasks()
    rig = Rig(local=FakeLocal.at("198.51.100.7", "2001:db8:7::7"))
    rig.meet(0)
    rig.meet(1)
    await rig.reserve(0)
    await rig.endpoint.started(2)
    await rig.end()
    await settle()
    assert asyncio.all_tasks() == before
    assert all(dial.cancelled for dial in rig.endpoint.dials)
    assert {tunnel.state for tunnel in rig.endpoint.tunnels} == {"closed"}
