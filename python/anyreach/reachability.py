"""Whether others can reach this node by themselves, judged from evidence.

Pure. A public address proves nothing (firewalls), and neither does a NAT (port forwards): what
proves reachability is a packet from somebody this node never sent one to. Without proof the node
takes itself for unreachable and keeps reservations at relays, because that mistake costs a few
bytes, and the opposite one costs being found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from anyreach.addresses import Scope, SocketAddress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach.candidates import InterfaceAddress
    from anyreach.nat import NatReport
    from anyreach.peer import PeerId

__all__ = [
    "MAX_EVIDENCE",
    "Evidence",
    "Family",
    "FamilyVerdict",
    "Inbound",
    "Reachability",
    "SelfProbe",
    "Surroundings",
    "Verdict",
    "judge",
]

Family: TypeAlias = Literal[4, 6]
"""An address family, by the version of IP."""

Verdict: TypeAlias = Literal["reachable", "unreachable", "unknown"]

_E = TypeVar("_E", bound="SelfProbe | Inbound")

FAMILIES: Final[tuple[Family, ...]] = (6, 4)

MAX_EVIDENCE: Final = 16
"""Pieces of evidence of each kind kept per family: a few for each relay that probes, no more."""

CONTRADICTIONS: Final = 2
"""Probes in a row that must fail to overrule a proof: one may have been lost on its way."""


@dataclass(frozen=True, slots=True)
class SelfProbe:
    """The node sent a packet to its own external address, through a relay.

    Attributes:
        family: of the address it went to.
        relay: through whom.
        arrived: whether it came back in.
        at: when, in seconds of a monotonic clock.
        contacted: whether the node had already sent something to the IP address of the relay from
            its socket. Many NATs let packets of that address in from any port, so that such an
            arrival says nothing about strangers.
    """

    family: Family
    relay: PeerId
    arrived: bool
    at: float
    contacted: bool = True


@dataclass(frozen=True, slots=True)
class Inbound:
    """A peer connected without help from an address the node had never sent anything to.

    Attributes:
        remote: from where.
        at: when, in seconds of a monotonic clock.
    """

    remote: SocketAddress
    at: float

    @property
    def family(self) -> Family:
        """The family it proves something about."""
        return 6 if self.remote.version == 6 else 4


@dataclass(frozen=True, slots=True)
class Evidence:
    """What happened so far on the present network, oldest first; bounded.

    Start again with an empty one when the network changes.

    Attributes:
        probes: probes of the node's own external addresses.
        inbound: connections by strangers.
    """

    probes: tuple[SelfProbe, ...] = ()
    inbound: tuple[Inbound, ...] = ()

    def with_probe(self, probe: SelfProbe) -> Evidence:
        """With one more probe."""
        return replace(self, probes=_bounded(self.probes, probe))

    def with_inbound(self, inbound: Inbound) -> Evidence:
        """With one more connection by a stranger."""
        return replace(self, inbound=_bounded(self.inbound, inbound))

    def without(self, family: Family) -> Evidence:
        """Without what concerns ``family``; call it when its external address has changed."""
        return Evidence(
            tuple(probe for probe in self.probes if probe.family != family),
            tuple(entry for entry in self.inbound if entry.family != family),
        )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the node is.

    Attributes:
        host: its addresses on this machine, with the bound port.
        external: its addresses as peers report them, best supported first; see
            :mod:`anyreach.observed`. Those of this machine or this site may be among them.
        nat: what is known about a NAT.
        on_link: addresses of the interfaces; whoever is on one of their networks is no stranger.
        udp_blocked: whether relays answer over TCP only.
    """

    host: tuple[SocketAddress, ...]
    external: tuple[SocketAddress, ...]
    nat: NatReport
    on_link: tuple[InterfaceAddress, ...] = ()
    udp_blocked: bool = False


@dataclass(frozen=True, slots=True)
class FamilyVerdict:
    """Whether others can reach the node over one family.

    Attributes:
        family: 4 or 6.
        verdict: ``"reachable"`` only if it was proved.
        reason: why, for people.
    """

    family: Family
    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        return f"IPv{self.family} {self.verdict}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Reachability:
    """What follows from the evidence.

    Attributes:
        families: a verdict for each family the node has, IPv6 first; none for a node that only
            talks to its own machine.
    """

    families: tuple[FamilyVerdict, ...] = ()

    @property
    def needs_reservation(self) -> bool:
        """Whether relays are needed: unless every family the node has is proved reachable."""
        return any(entry.verdict != "reachable" for entry in self.families)

    @property
    def cover(self) -> frozenset[Family]:
        """Families in which relays should give the node an address, those it lacks included.

        Empty if no reservation is needed.
        """
        if not self.needs_reservation:
            return frozenset()
        open_ = {entry.family for entry in self.families if entry.verdict == "reachable"}
        return frozenset(family for family in FAMILIES if family not in open_)

    def __str__(self) -> str:
        return "; ".join(map(str, self.families)) or "no network: only this machine"


def judge(surroundings: Surroundings, evidence: Evidence) -> Reachability:
    """What the evidence says about each family."""
    return Reachability(
        tuple(
            _judge_family(family, surroundings, evidence)
            for family in FAMILIES
            if _has_family(family, surroundings)
        )
    )


def _judge_family(family: Family, around: Surroundings, evidence: Evidence) -> FamilyVerdict:
    if around.udp_blocked:
        return FamilyVerdict(family, "unreachable", "UDP does not get through this network")
    # One observer that sees another address is enough to ask for better proof; one inside the
    # site, who sees the address of this machine, is not enough to be content with less.
    outside = [a for a in _outward(family, around.external) if a not in around.host]
    translated = bool(outside)
    probes = sorted((p for p in evidence.probes if p.family == family), key=lambda p: p.at)
    proofs = [
        (entry.at, f"{entry.remote} connected by itself")
        for entry in evidence.inbound
        if entry.family == family and _is_stranger(entry, around)
    ]
    proofs += [
        (probe.at, f"a probe through {probe.relay.short}… came in")
        for probe in probes
        # Without a NAT what filters is a firewall that looks at ports as well.
        if probe.arrived and not (probe.contacted and translated)
    ]
    proved_at, proof = max(proofs, default=(float("-inf"), ""))
    failed = [probe for probe in probes if not probe.arrived and probe.at > proved_at]
    if proofs and len(failed) < CONTRADICTIONS:
        return FamilyVerdict(family, "reachable", proof)
    if failed:
        number = "a probe" if len(failed) == 1 else f"{len(failed)} probes"
        relays = ", ".join(dict.fromkeys(f"{probe.relay.short}…" for probe in failed))
        return FamilyVerdict(family, "unreachable", f"{number} through {relays} did not come in")
    return _without_proof(family, around, outside)


def _without_proof(
    family: Family, around: Surroundings, outside: list[SocketAddress]
) -> FamilyVerdict:
    if outside:
        if around.nat.mapping == "address-and-port-dependent":
            return FamilyVerdict(
                family, "unreachable", "the NAT gives every destination another port"
            )
        return FamilyVerdict(
            family, "unknown", f"behind a NAT at {outside[0].ip}; nobody unknown got in so far"
        )
    public = [a for a in around.host if a.version == family and a.scope is Scope.GLOBAL]
    if public:
        return FamilyVerdict(
            family, "unknown", f"{public[0].ip} is public, but nobody unknown got in so far"
        )
    return FamilyVerdict(family, "unknown", "no external address is known yet")


def _has_family(family: Family, around: Surroundings) -> bool:
    """Whether the node may talk to the world over ``family``."""
    return bool(_outward(family, around.host) or _outward(family, around.external))


def _outward(family: Family, addresses: Iterable[SocketAddress]) -> list[SocketAddress]:
    """Addresses of ``family`` a way out of this site may begin at."""
    # Private IPv4 addresses usually have a NAT that leads out; unique-local IPv6 ones do not.
    scopes = {Scope.GLOBAL, Scope.CGN, Scope.PRIVATE} if family == 4 else {Scope.GLOBAL}
    return [a for a in addresses if a.version == family and a.scope in scopes]


def _is_stranger(entry: Inbound, around: Surroundings) -> bool:
    """Whether who connected stands for everybody: outside, and not a neighbour."""
    if entry.remote.scope is not Scope.GLOBAL:
        return False
    return not any(_on_link(entry.remote, own) for own in around.on_link)


def _on_link(remote: SocketAddress, own: InterfaceAddress) -> bool:
    if own.ip.version != remote.version or own.prefix_length == 0:
        return False
    host_bits = max(0, own.ip.max_prefixlen - own.prefix_length)
    return int(own.ip) >> host_bits == int(remote.ip) >> host_bits


def _bounded(entries: tuple[_E, ...], entry: _E) -> tuple[_E, ...]:
    """``entries`` and ``entry``, without the oldest of its family if there are too many."""
    same = [index for index, old in enumerate(entries) if old.family == entry.family]
    if len(same) >= MAX_EVIDENCE:
        entries = entries[: same[0]] + entries[same[0] + 1 :]
    return (*entries, entry)
