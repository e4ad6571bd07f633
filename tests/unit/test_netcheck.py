"""What a report of a network says, and how its facts are gathered; on fakes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from anyreach._netcheck import (
    CARRIER_SECONDS,
    JOIN_SECONDS,
    MAX_PEERS,
    SETTLE_SECONDS,
    CarrierProber,
    Facts,
    Place,
    gather,
)
from anyreach.addresses import HostPort, IpMode, SocketAddress
from anyreach.nat import FamilyNat, NatReport
from anyreach.netcheck import (
    CarrierCheck,
    FamilyCheck,
    NetworkReport,
    PeerCheck,
    PortMapping,
    Switches,
    outlook,
    udp_state,
)
from anyreach.peer import KnownPeer, PeerId
from anyreach.proxies import ProxySettings
from anyreach.reachability import Inbound, Reachability, Surroundings, judge

from .fake_core import FakeConnection, FakeEndpoint, FakePath, until
from .fake_local import FakeLocal
from .virtual_time import in_virtual_time

if TYPE_CHECKING:
    from anyreach.nat import Behaviour
    from anyreach.netcheck import Way

STRICT: Behaviour = "address-and-port-dependent"
HOME = NatReport("endpoint-independent", STRICT, ports="preserving")
OPEN = NatReport("none", "endpoint-independent")
COUNTING = NatReport(STRICT, STRICT, ports="sequential", step=1)
RANDOM = NatReport(STRICT, STRICT, ports="random")

RELAY = PeerCheck(
    "r" * 52, "192.0.2.1:9000", known=True, connected=True, method="direct", relays=True
)
V4 = FamilyCheck(4, "works", "unknown", "nobody got in", ("203.0.113.7:41000",))
NO_V6 = FamilyCheck(6, "none", "unknown", "nothing is known")


def report(nat: NatReport = HOME, **fields: Any) -> NetworkReport:
    defaults: dict[str, Any] = {
        "peer_id": "m" * 52,
        "ip_mode": "dual",
        "interfaces": (),
        "families": (NO_V6, V4),
        "udp": "works",
        "nat": nat,
        "port_mapping": PortMapping("none", error="no router answered"),
        "peers": (RELAY,),
    }
    return NetworkReport(**(defaults | fields))


def ways(subject: NetworkReport, switches: Switches | None = None) -> dict[str, Way]:
    return {entry.peers: entry.way for entry in outlook(subject, switches or Switches())}


@pytest.mark.parametrize(
    ("nat", "restricted", "sequential", "random"),
    [
        (OPEN, "punched", "punched", "punched"),
        (HOME, "punched", "predicted", "birthday"),
        (COUNTING, "predicted", "predicted", "relayed"),
        (RANDOM, "birthday", "relayed", "relayed"),
    ],
)
def test_each_network_has_its_outlook(
    nat: NatReport, restricted: Way, sequential: Way, random: Way
) -> None:
    assert ways(report(nat)) == {
        "open": "direct",
        "restricted": restricted,
        "sequential": sequential,
        "random": random,
        "udp-blocked": "relayed",
    }


def test_where_udp_is_blocked_everything_is_relayed() -> None:
    assert set(ways(report(udp="blocked")).values()) == {"relayed"}


def test_without_a_relay_only_those_that_can_be_dialed_are_reached() -> None:
    found = ways(report(peers=()))
    assert found.pop("open") == "direct"
    assert set(found.values()) == {"none"}


@pytest.mark.parametrize("mapped", [True, False])
def test_a_mapped_port_makes_up_for_strict_filtering(mapped: bool) -> None:
    state = PortMapping("mapped", "203.0.113.7:41000", "pcp") if mapped else PortMapping("none")
    assert ways(report(port_mapping=state))["random"] == ("punched" if mapped else "birthday")
    hard = report(RANDOM, port_mapping=state)
    assert ways(hard)["random"] == ("punched" if mapped else "relayed")


def test_ipv6_has_an_outlook_of_its_own() -> None:
    v6 = FamilyCheck(6, "works", "unreachable", "a probe did not come in")
    families = (
        FamilyNat(6, "none", STRICT),
        FamilyNat(4, STRICT, STRICT, "random"),
    )
    found = ways(report(replace(RANDOM, families=families), families=(v6, V4)))
    assert found["ipv6"] == "punched"
    assert found["random"] == "relayed"


def test_a_node_with_ipv6_alone_meets_ipv4_nats_at_relays() -> None:
    v6 = FamilyCheck(6, "works", "reachable", "a probe came in")
    v4 = FamilyCheck(4, "none", "unknown", "nothing is known")
    subject = report(NatReport("none", "address-dependent"), families=(v6, v4))
    assert ways(subject) == {
        "open": "direct",
        "restricted": "relayed",
        "sequential": "relayed",
        "random": "relayed",
        "ipv6": "punched",
        "udp-blocked": "relayed",
    }
    assert "NAT          no NAT, and strangers get in" in str(subject)


@pytest.mark.parametrize(
    ("switches", "restricted", "random"),
    [
        (Switches(direct=False), "relayed", "relayed"),
        (Switches(punch=False), "relayed", "relayed"),
        (Switches(birthday=False), "punched", "punched"),
        (Switches(punch=False, relay=False), "none", "none"),
    ],
)
def test_what_is_turned_off_is_not_promised(
    switches: Switches, restricted: Way, random: Way
) -> None:
    found = ways(report(HOME), switches)
    assert found["restricted"] == restricted
    if switches.birthday:
        assert found["random"] == random
    else:
        assert found["random"] != "birthday"


def test_what_is_not_known_is_hedged() -> None:
    subject = report(NatReport())
    told = {entry.peers: entry.certain for entry in outlook(subject, Switches())}
    assert told == {
        "open": True,
        "restricted": False,
        "sequential": False,
        "random": False,
        "udp-blocked": True,
    }
    assert "probably punched" in str(replace(subject, outlook=outlook(subject, Switches())))


def test_an_untried_filter_is_taken_for_a_strict_one() -> None:
    entries = outlook(report(replace(HOME, filtering="unknown")), Switches())
    (random,) = [entry for entry in entries if entry.peers == "random"]
    assert (random.way, random.certain) == ("birthday", False)


def carrier(name: Any, *, ok: bool) -> CarrierCheck:
    return CarrierCheck(name, ok, 12.0, 10.0 if ok else None, "no answer")


@pytest.mark.parametrize(
    ("peers", "state"),
    [
        ((), "unknown"),
        ((RELAY,), "works"),
        ((replace(RELAY, method="relayed"),), "unknown"),
        ((replace(RELAY, method="relayed", carriers=(carrier("h3", ok=True),)),), "works"),
        (
            (
                replace(
                    RELAY,
                    method="relayed",
                    carriers=(carrier("h3", ok=False), carrier("h2", ok=True)),
                ),
            ),
            "blocked",
        ),
        ((replace(RELAY, connected=False, carriers=(carrier("h3", ok=False),)),), "unknown"),
    ],
)
def test_whether_udp_gets_out(peers: tuple[PeerCheck, ...], state: str) -> None:
    assert udp_state(peers) == state


def test_the_text_says_who_says_so_and_the_json_is_plain() -> None:
    peer = replace(
        RELAY,
        remote="192.0.2.1:9000",
        rtt_ms=20.0,
        mtu=1452,
        sees="203.0.113.7:41000",
        reserved=("192.0.2.1:5000",),
        carriers=(carrier("h3", ok=True), carrier("h2", ok=False)),
    )
    subject = report(peers=(peer,))
    subject = replace(subject, outlook=outlook(subject, Switches()))
    text = str(subject)
    for words in (
        "rrrrrrrrrr… sees 203.0.113.7:41000",
        "endpoint-independent mapping",
        "HTTP/3 over UDP: works, 12.0 ms, RTT 10.0 ms",
        "HTTP/2 over TCP: no answer",
        "1452 bytes pass",
        "lends 192.0.2.1:5000",
        "port mapping none: no router answered",
        "punched to peers behind ordinary NATs and firewalls",
    ):
        assert words in text
    assert json.loads(json.dumps(subject.to_dict()))["text"] == text
    assert subject.online


# Gathering


ME, HUB, OTHER = (PeerId(bytes([i]) * 32) for i in (1, 2, 3))
ADDRESS = ("192.0.2.1", 9000)


@dataclass
class Rig:
    """A node as the gatherer sees it."""

    local: FakeLocal = field(
        default_factory=lambda: FakeLocal.at("192.168.1.5", seen=("203.0.113.7 41000",))
    )
    entries: tuple[tuple[KnownPeer, PeerId | None, str | None], ...] = ()
    cores: list[FakeConnection] = field(default_factory=list)
    mapping: PortMapping = field(default_factory=lambda: PortMapping("none"))
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    places: list[Place] = field(default_factory=list)
    lends: bool = False
    works: bool = True

    async def gather(self, timeout: float = 20.0) -> NetworkReport:
        local = self.local.view()
        return await gather(
            Facts(
                me=ME,
                mode=IpMode.DUAL_STACK,
                switches=Switches(),
                local=local,
                nat=local.nat,
                known=lambda: self.entries,
                cores=lambda: [connection.core() for connection in self.cores],
                reserved=lambda _: (SocketAddress.of("192.0.2.1", 5000),) if self.lends else (),
                reachability=self._reachability,
                mapping=lambda: self.mapping,
                joined=self._joined,
                check=self._check,
            ),
            timeout,
        )

    def _reachability(self) -> Reachability:
        around = Surroundings(self.local.own, self.local.observed.addresses, self.local.report)
        return judge(around, self.local.evidence)

    async def _joined(self) -> None:
        await self.joined.wait()

    async def _check(self, place: Place) -> tuple[CarrierCheck, ...]:
        self.places.append(place)
        return (carrier("h3", ok=self.works),)


def known(text: str = "192.0.2.1:9000") -> KnownPeer:
    return KnownPeer.parse(text)


def hub(**fields: Any) -> FakeConnection:
    route = [FakePath(remote=ADDRESS, observed=("203.0.113.7", 41000), rtt=0.02)]
    defaults: dict[str, Any] = {
        "peer_id": bytes(HUB),
        "route": route,
        "capabilities": ("relay",),
    }
    return FakeConnection(**(defaults | fields))


@in_virtual_time
async def test_a_network_is_described() -> None:
    rig = Rig(entries=((known(), HUB, None),), cores=[hub()], lends=True)
    rig.local.report = HOME
    rig.joined.set()
    found = await rig.gather()
    (peer,) = found.peers
    assert peer.connected
    assert (peer.peer_id, peer.method, peer.remote) == (str(HUB), "direct", "192.0.2.1:9000")
    assert (peer.sees, peer.rtt_ms, peer.relays) == ("203.0.113.7:41000", 20.0, True)
    assert peer.reserved == ("192.0.2.1:5000",)
    assert [place.addresses for place in rig.places] == [(SocketAddress.of(*ADDRESS),)]
    assert found.udp == "works"
    assert {check.family: check.state for check in found.families} == {6: "none", 4: "works"}
    assert found.families[1].external == ("203.0.113.7:41000",)
    assert [entry.address for entry in found.interfaces] == ["192.168.1.5"]
    assert found.outlook
    assert found.seconds < 0.1


@in_virtual_time
async def test_what_is_about_to_be_known_is_waited_for_and_no_longer() -> None:
    rig = Rig(entries=((known(), HUB, None),), cores=[hub()], mapping=PortMapping("asking"))
    rig.joined.set()
    assert (await rig.gather()).seconds == pytest.approx(SETTLE_SECONDS, abs=0.1)
    task = asyncio.create_task(rig.gather())
    await asyncio.sleep(1)
    rig.local.report, rig.mapping = HOME, PortMapping("none")
    found = await task
    assert found.seconds == pytest.approx(1.0, abs=0.1)
    assert found.nat == HOME


@in_virtual_time
async def test_without_a_nat_it_is_waited_for_what_gets_in() -> None:
    rig = Rig(entries=((known(), HUB, None),), cores=[hub()])
    rig.local = FakeLocal.at("203.0.113.7", seen=("203.0.113.7",))
    rig.local.report = NatReport("none")
    rig.joined.set()
    task = asyncio.create_task(rig.gather())
    await asyncio.sleep(1)
    stranger = Inbound(SocketAddress.of("198.51.100.9", 4000), at=0.0)
    rig.local.evidence = rig.local.evidence.with_inbound(stranger)
    found = await task
    assert found.seconds == pytest.approx(1.0, abs=0.1)
    assert found.families[1].inbound == "reachable"
    assert ways(found)["random"] == "punched"


@in_virtual_time
async def test_a_peer_that_does_not_relay_is_not_waited_for() -> None:
    rig = Rig(entries=((known(), HUB, None),), cores=[hub(capabilities=())])
    rig.joined.set()
    found = await rig.gather()
    assert found.seconds < 0.1
    assert found.peers[0].relays is False
    assert found.peers[0].carriers == ()


@in_virtual_time
async def test_nobody_answers() -> None:
    rig = Rig(entries=((known(), None, "192.0.2.1:9000: no answer"),), works=False)
    found = await rig.gather(timeout=3.0)
    assert found.seconds == pytest.approx(3.0, abs=0.1)
    assert (await rig.gather()).seconds == pytest.approx(JOIN_SECONDS, abs=0.1)
    (peer,) = found.peers
    assert not peer.connected
    assert peer.error == "192.0.2.1:9000: no answer"
    assert not found.online


@in_virtual_time
async def test_others_that_relay_are_looked_at_as_well_up_to_a_limit() -> None:
    others = [hub(id=10 + i, peer_id=bytes([10 + i]) * 32) for i in range(MAX_PEERS + 2)]
    entries = ((known(), HUB, None), (known("192.0.2.1:9001"), HUB, None), (known(), ME, None))
    rig = Rig(entries=entries, cores=[hub(), hub(peer_id=bytes(OTHER), outbound=False), *others])
    rig.local.report = HOME
    rig.joined.set()
    found = await rig.gather()
    assert len(found.peers) == MAX_PEERS
    assert [peer.known for peer in found.peers] == [True] * 2 + [False] * (MAX_PEERS - 2)
    assert str(OTHER) not in {peer.peer_id for peer in found.peers}


@in_virtual_time
async def test_a_relayed_peer_sees_nothing_of_us() -> None:
    route = [
        FakePath(remote=ADDRESS, method="relayed", observed=("198.51.100.1", 5), tunnelled=True)
    ]
    rig = Rig(entries=((known(), HUB, None),), cores=[hub(route=route)])
    rig.local.report = HOME
    rig.joined.set()
    (peer,) = (await rig.gather()).peers
    assert (peer.sees, peer.mtu, peer.method) == (None, None, "relayed")


# Ways to a relay


def prober(endpoint: FakeEndpoint, *, proxy: str | None = None) -> CarrierProber:
    return CarrierProber(
        endpoint,
        endpoint.wait,
        mode=IpMode.IPV4_ONLY,
        proxies=ProxySettings.of(proxy),
        ca_file=None,
        allow_tls_inspection=False,
    )


def place(*hosts: str) -> Place:
    addresses = tuple(SocketAddress.of(host, 9000) for host in hosts)
    return Place(HostPort("relay.example", 9000), addresses, HUB)


@in_virtual_time
async def test_every_way_is_tried_alone_and_taken_down() -> None:
    endpoint = FakeEndpoint()
    task = asyncio.create_task(
        prober(endpoint, proxy="http://proxy.example:3128").check(place("192.0.2.1", "2001:db8::1"))
    )
    h3, h2, proxied = await endpoint.dug(3)
    assert [t.options["plan"] for t in endpoint.tunnels] == [
        (("h3", 0.0),),
        (("h2", 0.0),),
        (("h2-proxy", 0.0),),
    ]
    assert h3.options["udp"] == [ADDRESS]  # the other family is turned off
    assert [t.options["proxy"] is not None for t in endpoint.tunnels] == [False, False, True]
    await asyncio.sleep(0.5)
    h2.rtt = 0.02
    h2.up(bytes(HUB), "192.0.2.1 5000", carrier="h2")
    proxied.fail(("h2-proxy", "proxy.example:3128", "refused", "403 Forbidden", 0.1))
    checks = {check.carrier: check for check in await task}
    assert (checks["h2"].ok, checks["h2"].rtt_ms) == (True, 20.0)
    assert checks["h2"].ms == pytest.approx(500, abs=20)
    assert (checks["h2-proxy"].ok, checks["h2-proxy"].detail) == (False, "403 Forbidden")
    assert not checks["h3"].ok
    assert checks["h3"].ms == pytest.approx(CARRIER_SECONDS * 1000, abs=20)
    assert {t.state for t in endpoint.tunnels} == {"closed"}


@in_virtual_time
async def test_no_address_leaves_the_proxy() -> None:
    endpoint = FakeEndpoint()
    assert await prober(endpoint).check(place("2001:db8::1")) == ()
    task = asyncio.create_task(prober(endpoint, proxy="http://proxy.example:3128").check(place()))
    await until(lambda: endpoint.tunnels)
    endpoint.tunnels[0].up(bytes(HUB), "192.0.2.1 5000", carrier="h2-proxy")
    (check,) = await task
    assert (check.carrier, check.ok, check.detail) == ("h2-proxy", True, "through the proxy")


@in_virtual_time
async def test_a_cancelled_check_leaves_no_tunnel() -> None:
    endpoint = FakeEndpoint()
    task = asyncio.create_task(prober(endpoint).check(place("192.0.2.1")))
    await endpoint.dug(2)
    task.cancel()
    await asyncio.wait([task])
    assert {t.state for t in endpoint.tunnels} == {"closed"}
