"""Which of its addresses a node tells one peer, and which pairs a round of punching probes.

Pure. What a peer is told with ADD_ADDRESS is what it may send packets to: an address that means
something only in our own network is told only to those that may be on it
(:func:`anyreach.near.may_share`), and one at a relay is no address to be punched. What changes is
told when it changes ("trickled"), and nothing twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from anyreach.addresses import Scope, SocketAddress
from anyreach.candidates import (
    MAX_CANDIDATES,
    Candidate,
    CandidateKind,
    DroppedPair,
    DropReason,
    PairingResult,
)
from anyreach.near import NARROW

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Told", "for_peer", "for_round"]

_MIN_KNOWN: Final = MAX_CANDIDATES // 2
"""Places that predictions leave to addresses that are known."""


@dataclass(frozen=True, slots=True)
class Told:
    """The candidates of this node for one peer.

    Attributes:
        candidates: those to tell, best first, at most ``limit``.
        withheld: the others, and why: their scope, or the limit.
    """

    candidates: tuple[Candidate, ...]
    withheld: tuple[tuple[Candidate, DropReason], ...] = ()

    @property
    def addresses(self) -> tuple[SocketAddress, ...]:
        """What :meth:`anyreach._core.Connection.set_candidates` takes."""
        return tuple(candidate.address for candidate in self.candidates)

    def counts(self) -> dict[str, int]:
        """Number of candidates by outcome: ``kept`` and the reasons there are."""
        totals = {"kept": len(self.candidates)}
        for _, reason in self.withheld:
            totals[reason.value] = totals.get(reason.value, 0) + 1
        return totals


def for_peer(
    candidates: Iterable[Candidate],
    *,
    shared: bool,
    families: Iterable[int] = (4, 6),
    limit: int = MAX_CANDIDATES,
) -> Told:
    """What to tell one peer.

    Args:
        candidates: all of this node, as of :meth:`anyreach.candidates.CandidatePolicy.gather`.
        shared: whether the peer may be on a network with us.
        families: families the peer may have; all as long as that is not known.
        limit: most addresses.

    Addresses at relays and those of this machine alone are never told, private ones only if
    ``shared``. So are those of a carrier's network (RFC 6598), which two of its subscribers share.
    """
    known = frozenset(families)
    best: dict[SocketAddress, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (-c.priority, c.address.sort_key)):
        best.setdefault(candidate.address, candidate)
    kept: list[Candidate] = []
    withheld: list[tuple[Candidate, DropReason]] = []
    for candidate in best.values():
        reason = _withheld(candidate, shared, known)
        if reason is None:
            kept.append(candidate)
        else:
            withheld.append((candidate, reason))
    # Many interfaces must not crowd out what is known from outside, nor guesses what is known.
    over = _over(kept, limit)
    withheld += [(candidate, DropReason.LIMIT) for candidate in kept if candidate in over]
    return Told(tuple(c for c in kept if c not in over), tuple(withheld))


def for_round(pairs: PairingResult) -> PairingResult:
    """The pairs of which both ends can send to the other, which punching needs.

    A dial leaves from a private address through a NAT, and its answer comes back; but nobody
    outside can send to that address first. Such pairs, and those with an end at a relay, move to
    the dropped ones.
    """
    kept, dropped = [], list(pairs.dropped)
    for pair in pairs.kept:
        ends = pair.local, pair.remote
        ours, theirs = (_reach(end.address) for end in ends)
        if ours is theirs and all(end.kind is not CandidateKind.RELAYED for end in ends):
            kept.append(pair)
        else:
            dropped.append(DroppedPair(pair.local, pair.remote, DropReason.SCOPE))
    return PairingResult(tuple(kept), tuple(dropped))


def _withheld(candidate: Candidate, shared: bool, families: frozenset[int]) -> DropReason | None:
    address = candidate.address
    if candidate.kind is CandidateKind.RELAYED or not address.scope.dialable or not address.port:
        return DropReason.SCOPE
    if address.scope in (Scope.LINK_LOCAL, Scope.LOOPBACK):
        return DropReason.SCOPE
    if address.scope in NARROW and not shared:
        return DropReason.SCOPE
    return DropReason.CROSS_FAMILY if address.version not in families else None


def _over(kept: Sequence[Candidate], limit: int) -> set[Candidate]:
    """Those of them for which there is no room."""
    guesses = [c for c in kept if c.kind is CandidateKind.PREDICTED]
    outside = [c for c in kept if c.kind in (CandidateKind.MAPPED, CandidateKind.OBSERVED)]
    others = [c for c in kept if c not in guesses and c not in outside]
    room = max(0, limit)
    over: set[Candidate] = set()
    known = len(outside) + len(others)
    guessed = min(len(guesses), max(room - known, room - _MIN_KNOWN, 0))
    over.update(guesses[guessed:])
    room -= guessed
    first = [*outside, *others]
    over.update(first[room:])
    return over


def _reach(address: SocketAddress) -> Scope:
    """Scopes of one kind of network; IPv4 and IPv6 of one site are not told apart by pairs."""
    return Scope.PRIVATE if address.scope is Scope.UNIQUE_LOCAL else address.scope
