"""Experiments with the NAT, on a scripted core: what is sent, in which order, and what follows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from anyreach._nat_probe import AGAIN, FRESH_SAMPLES, HELD, INWARD, SILENT, NatProbe
from anyreach._proving import Contacts
from anyreach._tunnels import Tunnels
from anyreach.addresses import IpMode, SocketAddress
from anyreach.metrics import Recorder
from anyreach.nat import FamilyNat, NatReport
from anyreach.observed import Observation
from anyreach.peer import PeerId
from anyreach.proxies import ProxySettings

from .fake_core import FakeAttempt, FakeConnection, FakeEndpoint, FakePath, settle
from .fake_local import FakeLocal, FakeObserved
from .virtual_time import in_virtual_time

if TYPE_CHECKING:
    from anyreach import _core

RELAY = PeerId(bytes([9]) * 32)
RELAY_AT = ("203.0.113.11", 443)
BOUND = "203.0.113.11 5000"
SEEN = ("203.0.113.10", 9000)


class FakeReflection(FakeAttempt):
    """A packet to ourselves."""

    def __init__(self, address: str, *, via: Any, fresh: bool, local_port: int) -> None:
        super().__init__()
        self.address = address
        self.via = via
        self.fresh = fresh
        self.local_port = local_port
        self.at = asyncio.get_running_loop().time()

    def arrives(self, source: tuple[str, int] | None) -> None:
        self.outcome.set_result((source, None))


class Endpoint(FakeEndpoint):
    """One that reflects."""

    def __init__(self) -> None:
        super().__init__()
        self.reflections: list[FakeReflection] = []

    def reflect(
        self,
        ip: str,
        port: int,
        timeout: float,
        *,
        via: _core.Tunnel | None = None,
        fresh: bool = False,
    ) -> _core.Reflection:
        assert timeout > 0
        local_port = 40_000 + len(self.reflections) if fresh else 9000
        reflection = FakeReflection(f"{ip} {port}", via=via, fresh=fresh, local_port=local_port)
        self.reflections.append(reflection)
        asyncio.get_running_loop().call_later(timeout, self._time_out, reflection)
        return cast("_core.Reflection", reflection)

    @staticmethod
    def _time_out(reflection: FakeReflection) -> None:
        if not reflection.outcome.done():
            reflection.arrives(None)


class Observed(FakeObserved):
    """What the relay sees."""

    def observations(self) -> tuple[Observation, ...]:
        relay, own = SocketAddress.of(*RELAY_AT), [a for a in self.addresses if a.version == 4]
        return tuple(Observation(RELAY, relay, address, 0.0) for address in own)


@dataclass
class Rig:
    """A node that knows one relay."""

    enabled: bool = True
    endpoint: Endpoint = field(default_factory=Endpoint)
    contacts: Contacts = field(default_factory=Contacts)
    changes: int = 0

    def __post_init__(self) -> None:
        self.local = FakeLocal.at("192.168.1.2", seen=(f"{SEEN[0]} {SEEN[1]}",))
        self.local.observed = Observed(self.local.observed.addresses)
        self.tunnels = Tunnels(
            self.endpoint,
            self.endpoint.wait,
            mode=IpMode.DUAL_STACK,
            proxies=ProxySettings(),
            ca_file=None,
            allow_tls_inspection=False,
            network=lambda: "here",  # type: ignore[arg-type, return-value]
            used=lambda _: False,
            changed=lambda _: self.probe.wake(),
            contacts=self.contacts,
            recorder=Recorder(),
        )
        self.probe = NatProbe(
            self.endpoint,
            self.endpoint.wait,
            tunnels=self.tunnels,
            local=self.local.view(),
            contacts=self.contacts,
            enabled=self.enabled,
            changed=self.changed,
        )
        self.running = asyncio.create_task(self.probe.run())
        path = FakePath(0, RELAY_AT, "direct", rtt=0.02)
        relay = FakeConnection(id=1, peer_id=RELAY.raw, route=[path], capabilities=("relay",))
        self.endpoint.meet(relay)

    def changed(self) -> None:
        self.changes += 1

    def knows(self, mapping: Any, filtering: Any = "unknown", ports: Any = "unknown") -> None:
        family = FamilyNat(4, mapping, filtering, ports)
        self.local.report = NatReport(mapping, filtering, ports=ports, families=(family,))

    async def borrow(self, carrier: str = "h3") -> None:
        """Have it open a tunnel, which comes up."""
        self.probe.want()
        (tunnel,) = await self.endpoint.dug(1)
        tunnel.rtt = 0.02
        tunnel.up(RELAY.raw, BOUND, carrier=carrier)
        await settle()

    async def sent(self, count: int) -> list[FakeReflection]:
        """The packets, of which there must be so many."""
        async with asyncio.timeout(10):
            while len(self.endpoint.reflections) < count:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.001)
        await settle()
        assert len(self.endpoint.reflections) == count
        return self.endpoint.reflections

    async def end(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
        await self.tunnels.end()


def inward_of(packets: list[FakeReflection]) -> FakeReflection:
    """The one that comes in from outside."""
    (inward,) = (packet for packet in packets if packet.via is not None)
    return inward


@in_virtual_time
async def test_nothing_is_done_before_somebody_needs_to_know() -> None:
    rig = Rig()
    rig.probe.wake()
    await asyncio.sleep(1000)
    assert rig.endpoint.tunnels == []
    assert rig.endpoint.reflections == []
    await rig.end()


@in_virtual_time
async def test_what_lets_answers_in_is_sent_last() -> None:
    rig = Rig()
    await rig.borrow()
    first = await rig.sent(FRESH_SAMPLES + 1)
    fresh = [packet for packet in first if packet.fresh]
    assert [(packet.address, packet.via) for packet in fresh] == [(BOUND, None)] * FRESH_SAMPLES
    inward = inward_of(first)
    assert inward.address == "203.0.113.10 9000"
    assert inward.via is rig.endpoint.tunnels[0]
    assert not rig.probe.idle.is_set()
    for number, packet in enumerate(fresh):
        packet.arrives(("203.0.113.10", 20_001 + number))
    (*_, own) = await rig.sent(FRESH_SAMPLES + INWARD + 1)
    assert (own.address, own.fresh, own.via) == (BOUND, False, None)
    assert own.at - inward.at > 0.02  # that one is there by then
    own.arrives(("203.0.113.10", 20_004))
    await asyncio.sleep(1)
    assert rig.probe.idle.is_set()
    assert rig.local.experiments.ports(4) == ("sequential", 1)
    assert rig.local.experiments.observations == (
        (("203.0.113.11", 5000), ("203.0.113.10", 20_004)),
    )
    (probe,) = rig.local.evidence.probes
    assert (probe.arrived, probe.contacted, probe.relay) == (False, True, RELAY)
    assert rig.contacts.knows(SocketAddress.of("203.0.113.11", 5000))
    assert rig.changes >= 3
    await rig.end()


@pytest.mark.parametrize("late", [False, True])
@in_virtual_time
async def test_what_comes_in_late_may_have_been_let_in(late: bool) -> None:
    rig = Rig()
    await rig.borrow()
    inward = inward_of(await rig.sent(FRESH_SAMPLES + 1))
    if late:
        await rig.sent(FRESH_SAMPLES + INWARD + 1)
    inward.arrives(("203.0.113.11", 5000))
    await asyncio.sleep(2)
    assert [probe.arrived for probe in rig.local.evidence.probes] == ([] if late else [True])
    await rig.end()


@in_virtual_time
async def test_one_packet_that_is_lost_makes_no_firewall() -> None:
    rig = Rig()
    await rig.borrow()
    lost = inward_of(await rig.sent(FRESH_SAMPLES + 1))
    again = [p for p in await rig.sent(FRESH_SAMPLES + INWARD) if p.via is not None and p != lost]
    assert len(again) == INWARD - 1
    again[0].arrives(("203.0.113.11", 5000))
    await asyncio.sleep(2)
    assert [probe.arrived for probe in rig.local.evidence.probes] == [True]
    await rig.end()


@in_virtual_time
async def test_everything_is_tried_once_and_again_in_another_network() -> None:
    rig = Rig()
    await rig.borrow()
    for number, packet in enumerate(await rig.sent(FRESH_SAMPLES + 1)):
        if packet.fresh:
            packet.arrives(("203.0.113.10", 20_001 + number))
    await asyncio.sleep(5)
    count = len(rig.endpoint.reflections)
    for _ in range(10):
        rig.probe.wake()
        await asyncio.sleep(1)
    assert len(rig.endpoint.reflections) == count
    rig.probe.network_changed()
    await asyncio.sleep(5)
    assert len(rig.endpoint.reflections) > count
    await rig.end()


@in_virtual_time
async def test_another_external_address_is_looked_into() -> None:
    rig = Rig()
    await rig.borrow()
    await asyncio.sleep(5)
    count = len(rig.endpoint.reflections)
    rig.probe.external_gone(6)
    await asyncio.sleep(5)
    assert len(rig.endpoint.reflections) == count
    rig.probe.external_gone(4)
    await asyncio.sleep(5)
    assert len(rig.endpoint.reflections) > count
    assert rig.local.experiments.samples(4) == ()
    await rig.end()


@in_virtual_time
async def test_what_told_nothing_is_tried_again_while_somebody_needs_to_know() -> None:
    rig = Rig()
    await rig.borrow()
    await asyncio.sleep(2 * SILENT)
    fresh = [p for p in rig.endpoint.reflections if p.fresh]
    assert len(fresh) == 2 * FRESH_SAMPLES
    assert fresh[FRESH_SAMPLES].at >= SILENT
    await asyncio.sleep(HELD)
    count = len(rig.endpoint.reflections)
    await asyncio.sleep(AGAIN - 2 * HELD)
    assert len(rig.endpoint.reflections) == count  # nobody needs to any more
    await rig.end()


@in_virtual_time
async def test_a_borrowed_tunnel_is_given_back() -> None:
    rig = Rig()
    await rig.borrow()
    (tunnel,) = rig.tunnels
    assert tunnel.holders == {rig.probe}
    await asyncio.sleep(HELD + 5)
    assert tunnel.holders == set()
    await asyncio.sleep(2 * AGAIN)
    assert len(rig.endpoint.tunnels) == 1
    await rig.end()


@pytest.mark.parametrize(
    ("mapping", "filtering", "ports"),
    [
        ("endpoint-independent", "unknown", "preserving"),
        ("none", "address-and-port-dependent", "unknown"),
    ],
)
@in_virtual_time
async def test_what_is_known_needs_no_tunnel(mapping: str, filtering: str, ports: str) -> None:
    rig = Rig()
    rig.knows(mapping, filtering, ports)
    rig.probe.want()
    await asyncio.sleep(10)
    assert rig.endpoint.tunnels == []
    await rig.end()


@pytest.mark.parametrize("why", ["off", "relayed", "no relay", "blind", "nobody"])
@in_virtual_time
async def test_where_there_is_nobody_to_ask(why: str) -> None:
    rig = Rig(enabled=why != "off")
    relay = rig.endpoint.known[RELAY.raw]
    match why:
        case "relayed":
            relay.route[0].method = "relayed"
        case "no relay":
            relay.capabilities = ()
        case "blind":
            rig.local.observed.addresses = ()
        case "nobody":
            rig.endpoint.known.clear()
    rig.probe.want()
    await asyncio.sleep(10)
    assert rig.endpoint.tunnels == []
    await rig.end()


@pytest.mark.parametrize("why", ["tcp", "reachable"])
@in_virtual_time
async def test_nothing_is_tried_where_it_would_say_nothing(why: str) -> None:
    rig = Rig()
    if why == "reachable":
        rig.knows("none", "unknown")
        rig.probe.want()
        (tunnel,) = await rig.endpoint.dug(1)
        rig.knows("none", "endpoint-independent")
        tunnel.up(RELAY.raw, BOUND)
    else:
        rig.probe.want()
        (tunnel,) = await rig.endpoint.dug(1)
        rig.local.observed.addresses = ()
        tunnel.up(RELAY.raw, BOUND, carrier="h2")
    await asyncio.sleep(10)
    assert rig.endpoint.reflections == []
    await rig.end()


@in_virtual_time
async def test_a_tunnel_that_tcp_won_will_do_where_udp_gets_out() -> None:
    rig = Rig()
    await rig.borrow("h2")
    packets = await rig.sent(FRESH_SAMPLES + 1)
    assert inward_of(packets).via is rig.endpoint.tunnels[0]
    await rig.end()


# Samples for predictions


@in_virtual_time
async def test_samples_are_taken_in_one_flight_and_few_when_there_are_some() -> None:
    rig = Rig()
    assert await rig.probe.samples(4) is None  # there is no tunnel
    await rig.borrow()
    await asyncio.sleep(5)
    count = len(rig.endpoint.reflections)
    asking = asyncio.create_task(rig.probe.samples(4))
    await settle()
    flight = rig.endpoint.reflections[count:]
    assert [packet.fresh for packet in flight] == [True] * FRESH_SAMPLES
    for number, packet in enumerate(flight):
        packet.arrives(("203.0.113.10", 30_000 + number))
    found = await asking
    assert found is not None
    ip, samples = found
    assert str(ip) == "203.0.113.10"
    assert [port for _, port in samples] == [30_000, 30_001, 30_002]
    await asyncio.sleep(1)
    asking = asyncio.create_task(rig.probe.samples(4))
    await settle()
    (packet,) = rig.endpoint.reflections[count + FRESH_SAMPLES :]
    packet.arrives(("203.0.113.10", 30_003))
    found = await asking
    assert found is not None
    assert found[1][-1][1] == 30_003
    asking = asyncio.create_task(rig.probe.samples(4))
    assert await asking is None  # nothing came back
    assert await rig.probe.samples(6) is None
    await rig.end()


@in_virtual_time
async def test_nothing_is_left_at_the_end() -> None:
    before = asyncio.all_tasks()
    for after in (0.0, 0.01, 1.0):
        rig = Rig()
        await rig.borrow()
        await asyncio.sleep(after)
        await rig.end()
        assert asyncio.all_tasks() == before
