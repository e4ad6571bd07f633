"""What observations and experiments say about the NAT in front of a node.

Pure: addresses, ports and times are arguments. Words are those of RFC 4787 (mapping and
filtering behaviour, each judged alone); nothing here is called a "cone". Two sources are merged:
what connected peers see (:mod:`anyreach.observed`), and what the node finds out with nothing but
an address of its own at a relay: packets to itself, from its socket and from fresh ones, come
back with the address the NAT gave them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from anyreach.near import is_on_link
from anyreach.ports import classify_ports
from anyreach.reachability import CONTRADICTIONS, Evidence, Family

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from anyreach.candidates import InterfaceAddress
    from anyreach.ports import PortBehaviour

__all__ = [
    "MAX_REFLECTIONS",
    "Behaviour",
    "FamilyNat",
    "NatEvidence",
    "NatReport",
    "Reflected",
    "assess",
    "classify_filtering",
    "classify_mapping",
    "revised",
]

Behaviour = Literal[
    "none",
    "endpoint-independent",
    "address-dependent",
    "address-and-port-dependent",
    "unknown",
]

Address: TypeAlias = tuple[str, int]
"""IP address in canonical text form, and port."""

MAX_REFLECTIONS: Final = 16
"""Reflections kept per family: enough for a rate of other traffic, few enough to be recent."""

_BURST_SECONDS: Final = 10.0
"""New mappings of one flight made within so long are compared with each other; between two that are
further apart other hosts may have made any number."""

_WORST_FIRST: Final[tuple[Behaviour, ...]] = (
    "address-and-port-dependent",
    "address-dependent",
    "endpoint-independent",
)


@dataclass(frozen=True, slots=True)
class FamilyNat:
    """What is known about the NAT, or the firewall, in front of one address family.

    Attributes:
        family: 4 or 6.
        mapping, filtering, ports, step: as in :class:`NatReport`, for this family alone.
    """

    family: Family
    mapping: Behaviour = "unknown"
    filtering: Behaviour = "unknown"
    ports: PortBehaviour = "unknown"
    step: int = 0


@dataclass(frozen=True, slots=True)
class NatReport:
    """What is known about the NAT in front of a node.

    A verdict stays when the peers it came from leave, until others contradict it or the addresses
    of the host change: what a NAT does does not depend on who is connected.

    Attributes:
        mapping: ``"none"`` when peers see an address of this machine itself;
            ``"endpoint-independent"`` when several peers see the same address and port;
            ``"address-and-port-dependent"`` when they see different ports of one address (a
            new mapping for each destination, so that only predicted or relayed ways help);
            ``"address-dependent"`` when only peers at different addresses see different ports;
            ``"unknown"`` before two peers have reported.
        filtering: which packets are let in: ``"endpoint-independent"`` when somebody came in to
            whom nothing had been sent; ``"address-dependent"`` when packets come in from other
            ports of addresses something was sent to; ``"address-and-port-dependent"`` when not
            even those do; ``"unknown"`` before it was tried.
        external_addresses: ``ip:port`` addresses the connected peers see this node at, or saw it at
            before the last of them left: first those that peers in several networks agree on, then
            by how many report them. One peer can report anything.
        observers: how many peers report each of ``external_addresses``.
        ports: how external ports are chosen for new mappings: ``"preserving"``: that of the
            socket; ``"sequential"``: a fixed ``step`` further each time; ``"random"``: beyond
            prediction; ``"unknown"`` before it was tried.
        step: distance from one external port to the next, if they are sequential; negative if
            they count down, 0 if they are not sequential.
        families: the same for each family by itself, as far as there is evidence. The fields above
            are those of the more troublesome one.
    """

    mapping: Behaviour = "unknown"
    filtering: Behaviour = "unknown"
    external_addresses: tuple[str, ...] = ()
    observers: tuple[int, ...] = ()
    ports: PortBehaviour = "unknown"
    step: int = 0
    families: tuple[FamilyNat, ...] = ()

    def of(self, family: Family) -> FamilyNat:
        """What is known about one family; all ``"unknown"`` if nothing is."""
        return next((f for f in self.families if f.family == family), FamilyNat(family))


@dataclass(frozen=True, slots=True)
class Reflected:
    """A packet of this node to itself, by way of one of its addresses at a relay.

    Attributes:
        at: when it was sent, in seconds of a monotonic clock.
        destination: the address at the relay it was sent to.
        seen: the source address it arrived there with.
        local_port: port of the socket it left from.
        fresh: whether that socket was made for it, so that the NAT had no mapping yet; otherwise
            it was the node's own.
        flight: which of the node's samples were taken at once. Between those of different flights
            come the mappings of the node's own rounds, as many each time: they look like a step.
    """

    at: float
    destination: Address
    seen: Address
    local_port: int
    fresh: bool = False
    flight: int = 0

    @property
    def family(self) -> Family:
        """The family it says something about."""
        return _family(self.seen)


@dataclass(frozen=True, slots=True)
class NatEvidence:
    """Reflections on the present network, oldest first; bounded.

    Start again with an empty one when the network changes.

    Attributes:
        reflections: what came back.
    """

    reflections: tuple[Reflected, ...] = ()

    def with_reflection(self, reflected: Reflected) -> NatEvidence:
        """With one more. From the node's own socket, the latest towards each address counts."""
        kept = [
            old
            for old in self.reflections
            if reflected.fresh or old.fresh or old.destination != reflected.destination
        ]
        same = [i for i, old in enumerate(kept) if old.family == reflected.family]
        if len(same) >= MAX_REFLECTIONS:
            del kept[same[0]]
        return NatEvidence(tuple(sorted((*kept, reflected), key=lambda r: r.at)))

    def without(self, family: Family) -> NatEvidence:
        """Without what concerns ``family``; call it when its external address has changed."""
        return NatEvidence(tuple(r for r in self.reflections if r.family != family))

    @property
    def observations(self) -> tuple[tuple[Address, Address], ...]:
        """Of the node's own socket, as :func:`classify_mapping` takes them."""
        return tuple((r.destination, r.seen) for r in self.reflections if not r.fresh)

    def samples(self, family: Family) -> tuple[tuple[float, int], ...]:
        """``(time, port)`` of the new mappings of ``family``, oldest first, of the external address
        used last; what :func:`anyreach.prediction.predict` takes."""
        return tuple((r.at, r.seen[1]) for r in self._fresh(family))

    def ports(self, family: Family) -> tuple[PortBehaviour, int]:
        """How ports are chosen, and the step, as the latest flight of ``family`` that tells shows.

        A single sample shows no step; it only says where the counter is.
        """
        fresh = self._fresh(family)
        for flight in dict.fromkeys(r.flight for r in reversed(fresh)):
            taken = [r for r in fresh if r.flight == flight]
            burst = [r for r in taken if taken[-1].at - r.at <= _BURST_SECONDS]
            found, step = classify_ports([(r.local_port, r.seen[1]) for r in burst])
            if found != "unknown":
                return found, step
        return "unknown", 0

    def _fresh(self, family: Family) -> list[Reflected]:
        fresh = [r for r in self.reflections if r.fresh and r.family == family]
        return [r for r in fresh if r.seen[0] == fresh[-1].seen[0]]


def assess(
    observations: Iterable[tuple[Address, Address]],
    host: Collection[Address],
    *,
    before: NatReport | None = None,
    experiments: NatEvidence | None = None,
    evidence: Evidence | None = None,
    vouched: bool = False,
    external: Sequence[tuple[str, int]] = (),
    on_link: Iterable[InterfaceAddress] = (),
) -> NatReport:
    """Everything that is known by now.

    Args:
        observations: what the connected peers see, as for :func:`classify_mapping`.
        host: addresses of this machine with the port the node is bound to.
        before: the report so far, on the same network; what nobody contradicts stays.
        experiments: reflections.
        evidence: who and what came in.
        vouched: as for :func:`revised`.
        external: the external addresses as text with the number of their observers, best first;
            if empty, those of ``before`` stay.
        on_link: addresses of the interfaces; neighbours prove nothing about filtering.
    """
    before = before or NatReport()
    experiments = experiments or NatEvidence()
    evidence = evidence or Evidence()
    seen = [*observations, *experiments.observations]
    neighbours = tuple(on_link)
    families: list[FamilyNat] = []
    both: tuple[Family, ...] = (6, 4)
    for family in both:
        group = [(peer, own) for peer, own in seen if _family(own) == family]
        known = before.of(family)
        mapping, ports, step = known.mapping, known.ports, known.step
        if group:
            mapping = revised(mapping, classify_mapping(group, host), vouched=vouched)
        found, by = experiments.ports(family)
        if found != "unknown":
            ports, step = found, by
        filtering = classify_filtering(evidence, family, on_link=neighbours)
        if filtering == "unknown":
            filtering = known.filtering
        verdict = FamilyNat(family, mapping, filtering, ports, step)
        if verdict != FamilyNat(family):
            families.append(verdict)
    worst = max(families, key=_trouble, default=FamilyNat(4))
    mapping = before.mapping
    if seen:
        mapping = revised(mapping, classify_mapping(seen, host), vouched=vouched)
    addresses, observers = before.external_addresses, before.observers
    if external:
        addresses = tuple(address for address, _ in external)
        observers = tuple(number for _, number in external)
    return replace(
        before,
        mapping=mapping,
        filtering=worst.filtering,
        external_addresses=addresses,
        observers=observers,
        ports=worst.ports,
        step=worst.step,
        families=tuple(families),
    )


def classify_mapping(
    observations: Iterable[tuple[Address, Address]], host: Collection[Address]
) -> Behaviour:
    """The mapping behaviour that fits what the peers see.

    Args:
        observations: one ``(address of the peer, address it sees us at)`` per connected peer.
        host: addresses of this machine with the port the node is bound to.

    Peers on the same network see a host address whatever NAT stands at its edge, so they only
    decide when nobody sees anything else. Families are judged apart; the more troublesome
    verdict wins.
    """
    mapped: dict[Family, list[tuple[Address, Address]]] = defaultdict(list)
    unmapped = False
    for peer, seen in observations:
        if seen in host:
            unmapped = True
        else:
            mapped[_family(seen)].append((peer, seen))
    if not mapped:
        return "none" if unmapped else "unknown"
    verdicts = [_family_mapping(group) for group in mapped.values()]
    return next((v for v in _WORST_FIRST if v in verdicts), "unknown")


def classify_filtering(
    evidence: Evidence, family: Family, *, on_link: Iterable[InterfaceAddress] = ()
) -> Behaviour:
    """The filtering behaviour that fits what came in and what did not.

    Args:
        evidence: probes of our own external addresses through relays, and strangers that came.
        family: the family to judge.
        on_link: addresses of the interfaces; who is on one of their networks is no stranger.

    The latest evidence counts; one probe that did not come in may have been lost, so it takes
    :data:`~anyreach.reachability.CONTRADICTIONS` of them against something that did. Where nothing
    ever came in, one is enough to believe what most networks do.
    """
    neighbours = tuple(on_link)
    probes = [p for p in evidence.probes if p.family == family]
    strangers = [
        entry.at
        for entry in evidence.inbound
        if entry.family == family and not is_on_link(entry.remote.ip, neighbours)
    ]
    strangers += [p.at for p in probes if p.arrived and not p.contacted]
    open_since = max(strangers, default=float("-inf"))
    # Whom even an acquaintance cannot reach, no stranger can.
    failed = [p for p in probes if not p.arrived]
    if strangers and sum(p.at > open_since for p in failed) < CONTRADICTIONS:
        return "endpoint-independent"
    acquainted = [p.at for p in probes if p.arrived and p.contacted]
    known_since = max(acquainted, default=float("-inf"))
    against = [p for p in failed if p.contacted and p.at > known_since]
    if acquainted and len(against) < CONTRADICTIONS:
        return "address-dependent"
    return "address-and-port-dependent" if against else "unknown"


def revised(before: Behaviour, verdict: Behaviour, *, vouched: bool) -> Behaviour:
    """What to believe now if the peers connected now alone would justify ``verdict``.

    Args:
        before: what was believed so far.
        verdict: from :func:`classify_mapping`, with at least one report.
        vouched: whether somebody outside the local network sees an address of this machine
            itself.
    """
    if verdict == "unknown":
        # Too few to tell which NAT, but they see some other address than one of ours.
        return "unknown" if before == "none" else before
    if verdict == "none" and before != "unknown" and not vouched:
        return before  # neighbours see our own address whatever NAT is at the edge
    return verdict


def _trouble(nat: FamilyNat) -> tuple[int, int, bool]:
    """How hard it is to get through; only to be compared."""
    mapping = _WORST_FIRST.index(nat.mapping) if nat.mapping in _WORST_FIRST else 3
    filtering = _WORST_FIRST.index(nat.filtering) if nat.filtering in _WORST_FIRST else 3
    return (-mapping, -filtering, nat.family == 4)


def _family(address: Address) -> Family:
    return 6 if ":" in address[0] else 4


def _family_mapping(observations: Sequence[tuple[Address, Address]]) -> Behaviour:
    # The external IP most peers see; others are a second uplink or an outlier.
    (ip, _), *_ = Counter(seen[0] for _, seen in observations).most_common(1)
    ports = {peer: seen[1] for peer, seen in observations if seen[0] == ip}
    if len(ports) < 2:
        return "unknown"
    port, agreeing = Counter(ports.values()).most_common(1)[0]
    if agreeing * 2 > len(ports):
        if len({peer_ip for (peer_ip, _), seen in ports.items() if seen == port}) > 1:
            return "endpoint-independent"
        if agreeing == len(ports):
            # One destination address: an address-dependent mapping would look the same.
            return "unknown"
    by_ip: dict[str, list[int]] = defaultdict(list)
    for (peer_ip, _), seen in ports.items():
        by_ip[peer_ip].append(seen)
    shared = [seen for seen in by_ip.values() if len(seen) > 1]
    if shared and all(len(set(seen)) == 1 for seen in shared):
        return "address-dependent"
    return "address-and-port-dependent"
