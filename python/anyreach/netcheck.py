"""What a network allows: the report of :meth:`anyreach.Node.netcheck`, and what follows from it.

Pure. Facts are gathered elsewhere; here is what they are called, what they mean for connecting to
other kinds of networks, and a text for people.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from anyreach.explain import nat_text
from anyreach.nat import NatReport
from anyreach.punching import plan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach.carriers import Carrier
    from anyreach.reachability import Family, Verdict

__all__ = [
    "CarrierCheck",
    "FamilyCheck",
    "InterfaceCheck",
    "NetworkReport",
    "Outlook",
    "PeerCheck",
    "PortMapping",
    "Switches",
    "Way",
    "outlook",
    "udp_state",
]

Way: TypeAlias = Literal["direct", "punched", "predicted", "birthday", "relayed", "none"]
"""How two networks get together: a dial is answered; probes of both sides at once; the same at
predicted ports; at many ports at once; through a relay; or not at all."""

UdpState: TypeAlias = Literal["works", "blocked", "unknown"]


@dataclass(frozen=True, slots=True)
class InterfaceCheck:
    """One address of this machine.

    Attributes:
        name: of the interface.
        address: without the prefix.
        prefix_length: in bits.
        scope: ``"global"``, ``"private"``, ``"cgn"``, ``"unique-local"`` or ``"link-local"``.
    """

    name: str
    address: str
    prefix_length: int
    scope: str


@dataclass(frozen=True, slots=True)
class FamilyCheck:
    """One family of addresses.

    Attributes:
        family: 4 or 6.
        state: ``"works"``: a peer was reached over it; ``"silent"``: there are addresses, and no
            peer was reached; ``"local"``: only addresses that lead nowhere outside; ``"none"``: no
            address, or it is turned off.
        inbound: whether strangers can reach the node over it: ``"reachable"``, ``"unreachable"`` or
            ``"unknown"``.
        reason: why that is believed.
        external: addresses peers see the node at, ``ip:port``.
    """

    family: Family
    state: Literal["works", "silent", "local", "none"]
    inbound: Verdict
    reason: str
    external: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CarrierCheck:
    """Whether a relay can be reached in one way.

    Attributes:
        carrier: ``"h3"`` over UDP, ``"h2"`` over TCP, or ``"h2-proxy"`` through the HTTP proxy.
        ok: whether it works.
        ms: milliseconds until the relay had given an address, or the attempt failed.
        rtt_ms: round trip over it; ``None`` if it does not work or was not measured.
        detail: for people: where it led to, or why it failed.
    """

    carrier: Carrier
    ok: bool
    ms: float
    rtt_ms: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class PeerCheck:
    """A known peer, or another one that relays.

    Attributes:
        peer_id: who it is; ``None`` if it was never reached.
        address: as configured, or where it is.
        known: whether it was configured.
        connected: whether there is a connection.
        error: why there is none, for people.
        method: of the path in use.
        remote: ``ip:port`` of that path.
        rtt_ms: its round trip.
        mtu: largest UDP payload known to pass there; ``None`` through a relay.
        sees: the ``ip:port`` the peer sees this node at: what the verdicts about a NAT rest on.
        relays: whether it offers to relay; ``None`` if it was not reached.
        reserved: addresses this node holds there.
        carriers: ways to it as a relay.
    """

    peer_id: str | None
    address: str
    known: bool
    connected: bool
    error: str | None = None
    method: str | None = None
    remote: str | None = None
    rtt_ms: float | None = None
    mtu: int | None = None
    sees: str | None = None
    relays: bool | None = None
    reserved: tuple[str, ...] = ()
    carriers: tuple[CarrierCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    """What came of asking routers for a port.

    Attributes:
        state: ``"off"``: turned off by the configuration; ``"not-needed"``: there is no sign of a
            NAT; ``"asking"``; ``"mapped"``; ``"none"``: no router gave one.
        external: the ``ip:port`` that leads to the node, if mapped.
        protocol: ``"pcp"``, ``"nat-pmp"`` or ``"upnp"``, if mapped.
        error: why there is none, for people.
    """

    state: Literal["off", "not-needed", "asking", "mapped", "none"]
    external: str | None = None
    protocol: Literal["pcp", "nat-pmp", "upnp"] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """How peers in one kind of network will be connected.

    Attributes:
        peers: the kind: ``"open"``, ``"restricted"``, ``"sequential"``, ``"random"``,
            ``"udp-blocked"`` or ``"ipv6"``.
        meaning: the kind, for people.
        way: how: ``"direct"``, ``"punched"``, ``"predicted"``, ``"birthday"``, ``"relayed"`` or
            ``"none"``.
        reason: why, for people.
        certain: whether everything it rests on is known.
    """

    peers: str
    meaning: str
    way: Way
    reason: str
    certain: bool


@dataclass(frozen=True, slots=True)
class Switches:
    """What the configuration allows.

    Attributes:
        direct, punch, birthday, relay: as ``direct``, ``punch``, ``birthday`` and
            ``relay_fallback`` of :class:`anyreach.P2pConfig`.
    """

    direct: bool = True
    punch: bool = True
    birthday: bool = True
    relay: bool = True


@dataclass(frozen=True, slots=True)
class NetworkReport:
    """What this network allows. ``str()`` of it is for people.

    Attributes:
        peer_id: this node.
        ip_mode: families that are bound: ``"dual"``, ``"v4"`` or ``"v6"``.
        interfaces: addresses of this machine, without loopback.
        families: IPv6 and IPv4.
        udp: ``"works"``, ``"blocked"`` (relays answer over TCP only) or ``"unknown"`` (nobody
            answered).
        nat: the NAT in front of the node.
        port_mapping: what routers said.
        peers: known peers and others that relay.
        outlook: how other networks will be connected.
        seconds: how long this took.
    """

    peer_id: str
    ip_mode: str
    interfaces: tuple[InterfaceCheck, ...]
    families: tuple[FamilyCheck, ...]
    udp: UdpState
    nat: NatReport
    port_mapping: PortMapping
    peers: tuple[PeerCheck, ...]
    outlook: tuple[Outlook, ...] = field(default=())
    seconds: float = 0.0

    @property
    def online(self) -> bool:
        """Whether anybody was reached."""
        return any(peer.connected or any(c.ok for c in peer.carriers) for peer in self.peers)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values under the names of the attributes, and ``text``: the report for
        people."""
        return {**asdict(self), "text": str(self)}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


@dataclass(frozen=True, slots=True)
class _Kind:
    peers: str
    meaning: str
    nat: NatReport


_STRICT: Final = "address-and-port-dependent"

_KINDS: Final = (
    _Kind(
        "open",
        "peers strangers can reach",
        NatReport("none", "endpoint-independent"),
    ),
    _Kind(
        "restricted",
        "peers behind ordinary NATs and firewalls",
        NatReport("endpoint-independent", _STRICT, ports="preserving"),
    ),
    _Kind(
        "sequential",
        "peers behind NATs that count ports",
        NatReport(_STRICT, _STRICT, ports="sequential", step=1),
    ),
    _Kind(
        "random",
        "peers behind NATs with random ports",
        NatReport(_STRICT, _STRICT, ports="random"),
    ),
)

_IPV6: Final = _Kind("ipv6", "peers with IPv6", NatReport("none", _STRICT))

_WAYS: Final[dict[str, Way]] = {
    "simple": "punched",
    "predict": "predicted",
    "pool": "birthday",
    "spray": "birthday",
    "hopeless": "relayed",
}


def udp_state(peers: Iterable[PeerCheck]) -> UdpState:
    """Whether UDP gets out, from what works with the peers."""
    over_tcp = False
    for peer in peers:
        if peer.connected and peer.method != "relayed":
            return "works"
        for check in peer.carriers:
            if check.ok and check.carrier == "h3":
                return "works"
            over_tcp |= check.ok
    return "blocked" if over_tcp else "unknown"


def outlook(report: NetworkReport, switches: Switches) -> tuple[Outlook, ...]:
    """How peers in other kinds of networks will be connected.

    What is said about ways through NATs is what :func:`anyreach.punching.plan` says for this NAT
    and a typical one of the kind.
    """
    meets = any(peer.relays and peer.connected for peer in report.peers)
    found = [_towards(kind, report, switches, 4, meets) for kind in _KINDS]
    six = next((f for f in report.families if f.family == 6), None)
    if six is not None and six.state in ("works", "silent") and report.udp != "blocked":
        found.append(_towards(_IPV6, report, switches, 6, meets))
    way, reason = _by_relay(switches, meets, "UDP does not get to them")
    found.append(Outlook("udp-blocked", "peers in networks without UDP", way, reason, certain=True))
    return tuple(found)


def _towards(
    kind: _Kind, report: NetworkReport, switches: Switches, family: Family, meets: bool
) -> Outlook:
    def told(way: Way, reason: str, *, certain: bool = True) -> Outlook:
        return Outlook(kind.peers, kind.meaning, way, reason, certain)

    if report.udp == "blocked":
        return told(*_by_relay(switches, meets, "UDP does not get out of this network"))
    if not switches.direct:
        return told(*_by_relay(switches, meets, "direct paths are turned off"))
    known = report.udp == "works"
    has = {f.family for f in report.families if f.state in ("works", "silent")}
    alone = has == {6} and family == 4
    if kind.peers == "open":
        reason = "they answer whoever dials" + (", if they have IPv6" if alone else "")
        return told("direct", reason, certain=known)
    if alone:
        return told(*_by_relay(switches, meets, "this node has no IPv4 and such NATs no IPv6"))
    own = _own(report, family)
    if not switches.punch:
        return told(*_by_relay(switches, meets, "punching is turned off"))
    if own.filtering == "unknown":
        own = replace(own, filtering=_STRICT)  # as most are
        known = False
    judged = plan(own, kind.nat, client=True, birthday=switches.birthday)
    way = _WAYS[judged.method]
    if way == "relayed":
        return told(*_by_relay(switches, meets, judged.reason), certain=judged.certain and known)
    if not meets:
        return told("none", "it takes a connected peer that relays, to meet there")
    reason = judged.reason
    if _lets_in(report, family):
        reason = "they are let in here; direct if they dial"
    return told(way, reason, certain=judged.certain and known)


def _own(report: NetworkReport, family: Family) -> NatReport:
    """Our NAT as far as this family is concerned."""
    part = report.nat.of(family)
    nat = report.nat
    if part.mapping != "unknown":
        nat = replace(
            nat, mapping=part.mapping, filtering=part.filtering, ports=part.ports, step=part.step
        )
    if _lets_in(report, family):
        # What leads here from anywhere makes up for what a NAT does to other packets.
        return replace(nat, mapping="none", filtering="endpoint-independent")
    return nat


def _lets_in(report: NetworkReport, family: Family) -> bool:
    mapped = report.port_mapping.state == "mapped" and family == 4
    return mapped or _inbound(report, family) == "reachable"


def _inbound(report: NetworkReport, family: Family) -> Verdict:
    return next((f.inbound for f in report.families if f.family == family), "unknown")


def _by_relay(switches: Switches, meets: bool, reason: str) -> tuple[Way, str]:
    if not switches.relay:
        return "none", f"{reason}, and relays are turned off"
    if not meets:
        return "none", f"{reason}, and no connected peer relays"
    return "relayed", reason


# For people


def _lines(report: NetworkReport) -> Iterable[str]:
    yield f"UDP          {_UDP[report.udp]}"
    for check in report.families:
        yield f"IPv{check.family}         {_family_text(check)}"
    nat = report.nat
    if nat.mapping == "none" and any(f.inbound == "reachable" for f in report.families):
        # What came in from somebody the node had contacted is proof enough where there is no NAT.
        nat = replace(nat, filtering="endpoint-independent")
    yield f"NAT          {nat_text(nat)}"
    for peer in report.peers:
        if peer.sees is not None:
            yield f"             {_who(peer)} sees {peer.sees}"
    yield f"port mapping {_mapping_text(report.port_mapping)}"
    yield "interfaces   " + (
        ", ".join(f"{i.name} {i.address}/{i.prefix_length}" for i in report.interfaces)
        or "none but loopback"
    )
    yield "peers" if report.peers else "peers        none are configured (--known-peer)"
    for peer in report.peers:
        yield f"  {_who(peer)} {_peer_text(peer)}"
        for carrier in peer.carriers:
            yield f"    {_carrier_text(carrier)}"
    yield "connections from here will be"
    for entry in report.outlook:
        hedge = "" if entry.certain else "probably "
        yield f"  {hedge}{_WAY_WORDS[entry.way]} to {entry.meaning}: {entry.reason}"


_UDP: Final = {
    "works": "gets out",
    "blocked": "is blocked: relays answer over TCP only",
    "unknown": "nobody answered, over UDP or TCP",
}

_WAY_WORDS: Final[dict[Way, str]] = {
    "direct": "direct",
    "punched": "punched",
    "predicted": "punched at predicted ports",
    "birthday": "punched by trying many ports",
    "relayed": "relayed",
    "none": "impossible",
}

_CARRIERS: Final[dict[Carrier, str]] = {
    "h3": "HTTP/3 over UDP",
    "h2": "HTTP/2 over TCP",
    "h2-proxy": "HTTP/2 through the HTTP proxy",
}


def _who(peer: PeerCheck) -> str:
    return f"{peer.peer_id[:10]}…" if peer.peer_id else peer.address


def _family_text(check: FamilyCheck) -> str:
    match check.state:
        case "none":
            return "no address"
        case "local":
            return "no address that leads out of this network"
        case "silent":
            text = "no peer was reached over it"
        case "works":
            text = "works"
    at = f", seen at {', '.join(check.external)}" if check.external else ""
    return f"{text}{at}; from outside {check.inbound}: {check.reason}"


def _mapping_text(mapping: PortMapping) -> str:
    match mapping.state:
        case "off":
            return "turned off"
        case "not-needed":
            return "not asked for: no sign of a NAT"
        case "asking":
            return "no router has answered yet"
        case "mapped":
            return f"{mapping.external} leads here, by {mapping.protocol}"
        case "none":
            return f"none: {mapping.error or 'no router answered'}"


def _peer_text(peer: PeerCheck) -> str:
    if not peer.connected:
        return f"is not connected: {peer.error or 'no answer yet'}"
    text = f"{peer.method} at {peer.remote}, RTT {_ms(peer.rtt_ms)}"
    if peer.mtu is not None:
        text += f", {peer.mtu} bytes pass"
    if peer.reserved:
        text += f", lends {', '.join(peer.reserved)}"
    elif peer.relays is False:
        text += ", does not relay"
    return text


def _carrier_text(check: CarrierCheck) -> str:
    name = _CARRIERS[check.carrier]
    if check.ok:
        rtt = "" if check.rtt_ms is None else f", RTT {_ms(check.rtt_ms)}"
        return f"{name}: works, {_ms(check.ms)}{rtt}"
    return f"{name}: {check.detail}"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f} ms"
