"""Addresses a node can be reached at, and which pairs of them are worth a packet.

Pure: the interfaces, the bound addresses and what peers observed are arguments. Priorities
follow RFC 8445 5.1.2 and 6.1.2.3; pairs never cross families, and never join addresses whose
scopes cannot reach each other. :class:`CandidatePolicy` is the seam a user replaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from anyreach.addresses import (
    IpAddress,
    IpMode,
    Scope,
    SocketAddress,
    canonical_ip,
    parse_ip,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "MAX_CANDIDATES",
    "MAX_PAIRS",
    "Candidate",
    "CandidateKind",
    "CandidatePair",
    "CandidatePolicy",
    "DefaultCandidatePolicy",
    "DropReason",
    "DroppedPair",
    "InterfaceAddress",
    "LocalNetwork",
    "PairingResult",
    "gather",
    "offer",
    "pair",
]

MAX_CANDIDATES: Final = 32
"""Most candidates of one side: as many as a peer may make us store per connection."""

MAX_PAIRS: Final = 100
"""Most pairs kept; the bound RFC 8445 6.1.2.5 recommends against amplification."""

# Room for them must be left on hosts with dozens of virtual interfaces, whose addresses rank
# higher and help nobody outside.
_MAX_OBSERVED: Final = 8
_MAX_MAPPED: Final = 4
_MAX_PREDICTED: Final = 16


class CandidateKind(Enum):
    """Where a candidate comes from."""

    HOST = "host"
    """An address of an interface of this host."""
    GIVEN = "given"
    """Written by a user: an argument, a configuration or a ticket."""
    MAPPED = "mapped"
    """Opened on a router by PCP, NAT-PMP or UPnP."""
    OBSERVED = "observed"
    """What a peer sees (draft-ietf-quic-address-discovery), "server reflexive" in ICE."""
    PREDICTED = "predicted"
    """Guessed from how a NAT chose ports before."""
    RELAYED = "relayed"
    """An address at a relay."""


# Type preferences, RFC 8445 5.1.2.2: host 126, server reflexive 100, relayed 0. Given ones rank
# just below host; a mapping lets everybody in, so it beats an observed address, whose NAT
# may filter; a guess is tried after what is known to exist.
_TYPE_PREFERENCE: Final = {
    CandidateKind.HOST: 126,
    CandidateKind.GIVEN: 120,
    CandidateKind.MAPPED: 105,
    CandidateKind.OBSERVED: 100,
    CandidateKind.PREDICTED: 60,
    CandidateKind.RELAYED: 0,
}
_ORDERED: Final = frozenset(
    {CandidateKind.GIVEN, CandidateKind.MAPPED, CandidateKind.OBSERVED, CandidateKind.PREDICTED}
)
# Wider scopes first: they work from more places. Loopback last: it works from one host only.
_SCOPE_PREFERENCE: Final = {
    Scope.GLOBAL: 5,
    Scope.CGN: 4,
    Scope.UNIQUE_LOCAL: 3,
    Scope.PRIVATE: 3,
    Scope.LINK_LOCAL: 2,
    Scope.LOOPBACK: 1,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address with its origin and rank.

    Attributes:
        address: canonical address and port.
        kind: where it comes from.
        priority: RFC 8445 5.1.2.1 priority, 1 to 2^31 - 1; higher is tried first.
    """

    address: SocketAddress
    kind: CandidateKind
    priority: int

    @classmethod
    def of(cls, address: SocketAddress, kind: CandidateKind, index: int = 0) -> Candidate:
        """With the priority of its kind, and within that of its local preference.

        All but host and relayed addresses come in an order that means more than we could guess
        (of RFC 6724, of the user, of trust, of a counter), so ``index``, the place in it, decides
        alone. For the others the 16 bits are three of scope, one of family (IPv6 first, RFC 8421
        4) and twelve of ``index``.
        """
        if kind in _ORDERED:
            local = max(0, 0xFFFF - index)
        else:
            local = (
                _SCOPE_PREFERENCE.get(address.scope, 0) << 13
                | (address.version == 6) << 12
                | max(0, 0xFFF - index)
            )
        # One component: QUIC has one flow per pair.
        return cls(address, kind, _TYPE_PREFERENCE[kind] << 24 | local << 8 | 256 - 1)


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address of one network interface.

    Attributes:
        interface: its name, which is also the zone of link-local addresses.
        ip: canonical address without a zone.
        prefix_length: length of the on-link prefix in bits.
    """

    interface: str
    ip: IpAddress
    prefix_length: int

    @classmethod
    def of(cls, interface: str, address: str, prefix_length: int) -> InterfaceAddress | None:
        """From text as ``_core.interface_addresses()`` gives it; ``None`` if not an address."""
        ip = parse_ip(address.partition("%")[0])
        return None if ip is None else cls(interface, ip, prefix_length)


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """What the node knows about its own addresses.

    Attributes:
        bound: addresses the socket is bound to; the wildcard stands for all interfaces.
        ip_mode: families the socket serves.
        interfaces: addresses of the host.
        observed: own addresses as peers report them, most trusted first.
        mapped: addresses of routers that lead here, by PCP, NAT-PMP or UPnP.
        predicted: addresses a NAT will probably use next, in the order in which it comes to them.
    """

    bound: tuple[SocketAddress, ...]
    ip_mode: IpMode = IpMode.DUAL_STACK
    interfaces: tuple[InterfaceAddress, ...] = ()
    observed: tuple[SocketAddress, ...] = ()
    mapped: tuple[SocketAddress, ...] = ()
    predicted: tuple[SocketAddress, ...] = ()


class DropReason(Enum):
    """Why a pair is not tried; the outcomes of ``anyreach_candidate_pairs_total``."""

    CROSS_FAMILY = "cross_family"
    """One end is IPv4, the other IPv6."""
    SCOPE = "scope"
    """The addresses cannot reach each other, as loopback and a remote host."""
    LIMIT = "limit"
    """Beyond :data:`MAX_CANDIDATES` or :data:`MAX_PAIRS`."""


@dataclass(frozen=True, slots=True)
class CandidatePair:
    """A local and a remote candidate of one family.

    Attributes:
        local: where packets leave from.
        remote: where they go.
        priority: RFC 8445 6.1.2.3 pair priority, the same on both ends.
    """

    local: Candidate
    remote: Candidate
    priority: int


@dataclass(frozen=True, slots=True)
class DroppedPair:
    """A pair that is not tried, and why."""

    local: Candidate
    remote: Candidate
    reason: DropReason


@dataclass(frozen=True, slots=True)
class PairingResult:
    """Outcome of :func:`pair`.

    Attributes:
        kept: pairs to try, best first.
        dropped: all other pairs.
    """

    kept: tuple[CandidatePair, ...]
    dropped: tuple[DroppedPair, ...]

    @property
    def remotes(self) -> tuple[SocketAddress, ...]:
        """The remote addresses of the kept pairs, each once, best first.

        One wildcard socket lets the system choose the source, so this is what is dialed.
        """
        return tuple(dict.fromkeys(kept.remote.address for kept in self.kept))

    def counts(self) -> dict[str, int]:
        """Number of pairs by outcome: ``kept`` and every :class:`DropReason`."""
        totals = {"kept": len(self.kept)} | {reason.value: 0 for reason in DropReason}
        for dropped in self.dropped:
            totals[dropped.reason.value] += 1
        return totals


@runtime_checkable
class CandidatePolicy(Protocol):
    """Chooses candidates and pairs. Methods must be pure and quick: they run on the loop."""

    def gather(self, network: LocalNetwork) -> tuple[Candidate, ...]:
        """The node's own candidates, best first."""
        ...

    def offer(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Those of the node's candidates that are worth telling others."""
        ...

    def pair(
        self, local: Sequence[Candidate], remote: Sequence[Candidate], *, controlling: bool
    ) -> PairingResult:
        """The pairs to try, and the dropped ones with reasons."""
        ...


@dataclass(frozen=True, slots=True)
class DefaultCandidatePolicy:
    """The policy used unless a :class:`CandidatePolicy` is configured."""

    def gather(self, network: LocalNetwork) -> tuple[Candidate, ...]:
        """See :func:`gather`."""
        return gather(network)

    def offer(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """See :func:`offer`."""
        return offer(candidates)

    def pair(
        self, local: Sequence[Candidate], remote: Sequence[Candidate], *, controlling: bool = True
    ) -> PairingResult:
        """See :func:`pair`."""
        return pair(local, remote, controlling=controlling)


def gather(network: LocalNetwork) -> tuple[Candidate, ...]:
    """All candidates of this node, best first, at most :data:`MAX_CANDIDATES`.

    A socket bound to a wildcard contributes every interface address of the families it
    serves, under the bound port; one bound to an address contributes that address. Mapped,
    observed and predicted addresses follow; one that is known already (no NAT) is not repeated.
    """
    hosts = [host for bound in network.bound for host in _hosts(bound, network)]
    local = _best_first(Candidate.of(a, CandidateKind.HOST, i) for i, a in enumerate(hosts))
    known = {candidate.address for candidate in local}
    outside: tuple[Candidate, ...] = ()
    for kind, addresses, most in (
        (CandidateKind.MAPPED, network.mapped, _MAX_MAPPED),
        (CandidateKind.OBSERVED, network.observed, _MAX_OBSERVED),
        (CandidateKind.PREDICTED, network.predicted, _MAX_PREDICTED),
    ):
        new = [
            a
            for a in dict.fromkeys(addresses)
            if network.ip_mode.allows(a.ip) and a.scope.dialable and a.port and a not in known
        ]
        known.update(new)
        outside += _best_first(Candidate.of(a, kind, i) for i, a in enumerate(new))[:most]
    return local[: MAX_CANDIDATES - len(outside)] + outside


def offer(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Candidates another host can use: what goes into tickets and to peers.

    Link-local addresses need a zone only this host knows; loopback is offered only if there
    is nothing else, which is the case of a node bound to it, for peers on the same host.
    """
    usable = [c for c in _best_first(candidates) if c.address.scope is not Scope.LINK_LOCAL]
    remote = [c for c in usable if c.address.scope is not Scope.LOOPBACK]
    return tuple((remote or usable)[:MAX_CANDIDATES])


def pair(
    local: Iterable[Candidate], remote: Iterable[Candidate], *, controlling: bool = True
) -> PairingResult:
    """Pair up candidates: same family, matching scopes, best first.

    Equal addresses count once. Both ends get the same pairs with the same priorities when
    each passes its own view and one says it is ``controlling`` (RFC 8445 6.1.2.3).

    Args:
        local: candidates of this node; beyond the :data:`MAX_CANDIDATES` best they are dropped.
        remote: candidates of the peer; likewise.
        controlling: whether this node dialed, which breaks ties.
    """
    locals_, remotes = _best_first(local), _best_first(remote)
    kept: list[CandidatePair] = []
    dropped: list[DroppedPair] = []
    for i, ours in enumerate(locals_):
        for j, theirs in enumerate(remotes):
            reason = _drop_reason(ours.address, theirs.address)
            if reason is None and max(i, j) >= MAX_CANDIDATES:
                reason = DropReason.LIMIT
            if reason is None:
                priority = _pair_priority(ours.priority, theirs.priority, controlling)
                kept.append(CandidatePair(ours, theirs, priority))
            else:
                dropped.append(DroppedPair(ours, theirs, reason))
    kept.sort(key=lambda p: _pair_order(p, controlling))
    over = (DroppedPair(p.local, p.remote, DropReason.LIMIT) for p in kept[MAX_PAIRS:])
    return PairingResult(tuple(kept[:MAX_PAIRS]), (*dropped, *over))


def _hosts(bound: SocketAddress, network: LocalNetwork) -> list[SocketAddress]:
    if bound.scope is not Scope.UNSPECIFIED:
        return [bound] if bound.scope.dialable else []
    families = network.ip_mode if bound.version == 6 else IpMode.IPV4_ONLY
    return [
        SocketAddress(_with_zone(entry), bound.port)
        for entry in network.interfaces
        if families.allows(entry.ip) and SocketAddress(entry.ip, bound.port).scope.dialable
    ]


def _with_zone(entry: InterfaceAddress) -> IpAddress:
    ip = canonical_ip(entry.ip)
    if isinstance(ip, IPv6Address) and ip.is_link_local and ip.scope_id is None:
        return parse_ip(f"{ip}%{entry.interface}") or ip
    return ip


def _best_first(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Sorted by priority, ties by address so that both ends agree; the first of equals stays."""
    ordered = sorted(candidates, key=lambda c: (-c.priority, c.address.sort_key))
    unique: dict[SocketAddress, Candidate] = {}
    for candidate in ordered:
        unique.setdefault(candidate.address, candidate)
    return tuple(unique.values())


def _drop_reason(local: SocketAddress, remote: SocketAddress) -> DropReason | None:
    if local.version != remote.version:
        return DropReason.CROSS_FAMILY
    ours, theirs = local.scope, remote.scope
    if not (ours.dialable and theirs.dialable):
        return DropReason.SCOPE
    for narrow in (Scope.LOOPBACK, Scope.LINK_LOCAL):
        if (ours is narrow) != (theirs is narrow):
            return DropReason.SCOPE
    zones = {_zone(local), _zone(remote)} - {None}
    return DropReason.SCOPE if len(zones) > 1 else None


def _zone(address: SocketAddress) -> str | None:
    return address.ip.scope_id if isinstance(address.ip, IPv6Address) else None


def _pair_priority(local: int, remote: int, controlling: bool) -> int:
    ours, theirs = (local, remote) if controlling else (remote, local)
    return (min(ours, theirs) << 32) + 2 * max(ours, theirs) + (ours > theirs)


def _pair_order(
    pair: CandidatePair, controlling: bool
) -> tuple[int, tuple[int, bytes, str, int], tuple[int, bytes, str, int]]:
    ends = pair.local.address.sort_key, pair.remote.address.sort_key
    first, second = ends if controlling else ends[::-1]
    return -pair.priority, first, second
