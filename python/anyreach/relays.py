"""Which relays to hold reservations at.

Pure; time is an argument. A node that cannot be reached from outside lives on its reservations:
they must exist before anybody dials, at relays that do not fail together, and they must not
wander, because a bound address is only worth what others know of it. :class:`RelayPolicy` is the
seam a user replaces.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, runtime_checkable

from anyreach.observed import network_of
from anyreach.scores import Score

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach.addresses import SocketAddress
    from anyreach.carriers import Carrier
    from anyreach.peer import PeerId
    from anyreach.reachability import Family

__all__ = [
    "DefaultRelayPolicy",
    "RelayCandidate",
    "RelayDecision",
    "RelayPolicy",
    "RelaySituation",
    "Reservation",
    "ReservationState",
]

ReservationState: TypeAlias = Literal["requested", "reserved", "lost"]

UNMEASURED_RTT: Final = 0.25
"""Seconds assumed for a relay never measured: farther than most, so that a measured relay on the
same continent goes first, and nearer than one measured to be on the other side of the world."""

POOR_RECORD: Final = 0.25
"""Probability of success below which a relay is taken only when there is no other; an untried one
gets there with its third failure in a row."""

_TCP_FACTOR: Final = 1.5
"""What a relay known to work over TCP only costs more: one lost packet there delays all others."""

_RTT_GRAIN: Final = 0.02
"""Seconds of difference that nobody feels; within them load and acquaintance may decide."""


@dataclass(frozen=True, slots=True)
class RelayCandidate:
    """A peer that says it relays, and what was measured of it.

    Attributes:
        peer_id: who it is.
        addresses: where it is.
        rtt: round-trip time in seconds, as measured by this node; ``None`` before.
        score: its record as a relay.
        families: families it is known to bind addresses of, besides those of ``addresses``.
        load: how busy it says it is, from 0 (idle) to 1 (full); ``None`` if it does not say.
        carriers: carriers that have worked to it from this network; empty before the first.
        known: whether the user named it, as one of ``known_peers``.
    """

    peer_id: PeerId
    addresses: tuple[SocketAddress, ...] = ()
    rtt: float | None = None
    score: Score = Score()  # noqa: RUF009 (frozen)
    families: frozenset[Family] = frozenset()
    load: float | None = None
    carriers: frozenset[Carrier] = frozenset()
    known: bool = False

    @property
    def networks(self) -> frozenset[str]:
        """The networks it is in; relays that share one tend to fail together."""
        return frozenset(network_of(address.ip) for address in self.addresses)

    @property
    def serves(self) -> frozenset[Family]:
        """Families of the addresses others can reach this node at through it."""
        own: frozenset[Family] = frozenset(6 if a.version == 6 else 4 for a in self.addresses)
        return own | self.families


@dataclass(frozen=True, slots=True)
class Reservation:
    """A bound address at a relay: asked for, held, or lost. One per relay.

    Attributes:
        relay: at whom.
        state: ``"requested"``: no answer yet; ``"reserved"``: it works; ``"lost"``: refused,
            broken, or taken away.
        since: when it came into this state, in seconds of a monotonic clock.
        rtt: round-trip time of its carrier in seconds, if known.
        failures: how often it failed in a row; 0 for one that works. Only one that was held for a
            while starts to count again: see :data:`anyreach.backoff.STABLE_AFTER`.
    """

    relay: PeerId
    state: ReservationState
    since: float
    rtt: float | None = None
    failures: int = 0

    @property
    def live(self) -> bool:
        """Whether it is held, or may soon be."""
        return self.state != "lost"


@dataclass(frozen=True, slots=True)
class RelaySituation:
    """What a decision is made from.

    Attributes:
        me: this node; makes the waits of different nodes different.
        candidates: relays there are to choose from.
        reservations: what is held, asked for, or was lost.
        now: the time, in seconds of a monotonic clock.
        wanted: reservations to hold; 0 when the node can be reached without.
        cover: families in which others cannot reach the node otherwise. Both for a node that has
            one family only: peers with the other one need a dual-stack relay.
    """

    me: PeerId
    candidates: tuple[RelayCandidate, ...]
    reservations: tuple[Reservation, ...]
    now: float
    wanted: int = 2
    cover: frozenset[Family] = frozenset((4, 6))


@dataclass(frozen=True, slots=True)
class RelayDecision:
    """What to do now.

    Attributes:
        reserve: relays to ask for a reservation, most wanted first.
        release: relays to give the reservation back to.
        again_at: when to decide again if nothing happens before; ``None`` if only an event can
            change the decision.
    """

    reserve: tuple[PeerId, ...] = ()
    release: tuple[PeerId, ...] = ()
    again_at: float | None = None


@runtime_checkable
class RelayPolicy(Protocol):
    """Chooses relays. ``decide`` must be pure and quick: it runs on the loop, after any change."""

    def decide(self, situation: RelaySituation) -> RelayDecision:
        """What to reserve and what to release now."""
        ...


@dataclass(frozen=True, slots=True)
class DefaultRelayPolicy:
    """The policy used unless a :class:`RelayPolicy` is configured.

    Relays are ranked by, in this order: not having a poor record; serving every family that needs
    it; not sharing a network with a relay already chosen; cost, which is the measured round-trip
    time divided by the measured probability of success; being held already; being named by the
    user; the load they claim. The last is the only thing a relay can say about itself that counts,
    and it decides only between relays that are otherwise alike.

    A reservation that was lost is replaced at once. One that works is replaced only by a clearly
    better one, one at a time, and given back only when its successor works.

    Attributes:
        gain: share of the cost a replacement must save.
        least_gain: seconds of cost a replacement must save. Both are needed: 30 % of 5 ms is
            nothing, and neither is 20 ms of 300.
        dwell: seconds a reservation is kept at least. Long enough for its address to be told and
            used; it bounds how often addresses change whatever the measurements do.
        cool_down: seconds a relay is left alone after its first failure, doubled by each further
            one.
        longest_cool_down: most seconds it is left alone.
        longest_alone: the same while the node holds no reservation and every relay failed, so
            that a node whose only relay restarts is soon reachable again.
    """

    gain: float = 0.3
    least_gain: float = 0.02
    dwell: float = 120.0
    cool_down: float = 1.0
    longest_cool_down: float = 300.0
    longest_alone: float = 15.0

    def decide(self, situation: RelaySituation) -> RelayDecision:
        """See :class:`RelayDecision`."""
        view = _View(self, situation)
        wanted = view.wanted()
        missing = situation.wanted - len(view.live)
        fresh = [relay for relay in wanted if relay not in view.live]
        requested = any(held.state == "requested" for held in view.live.values())
        # A better relay is worth one attempt at a time; an empty place is filled at once.
        reserve = fresh[: missing if missing > 0 else 0 if requested else 1]
        release: list[PeerId] = []
        if all(relay in view.live and view.live[relay].state == "reserved" for relay in wanted):
            release = [r for r in view.live if r not in wanted and not view.is_dwelling(r)]
            # More than wanted are held only while one replaces another, however young they are.
            surplus = len(view.live) - max(len(wanted), 1)
            young = [r for r in view.live if r not in wanted and r not in release]
            if wanted:
                release += young[: max(0, surplus - len(release))]
        return RelayDecision(tuple(reserve), tuple(release), view.again_at())

    def retry_at(self, lost: Reservation, me: PeerId, *, alone: bool = False) -> float:
        """When a relay that failed may be asked again.

        Nodes that lost the same relay at the same moment come back at different ones: half of the
        wait depends on who asks whom, and how often.
        """
        ceiling = min(self.longest_cool_down, self.longest_alone if alone else float("inf"))
        # 2^30 is past any ceiling; the exponent is bounded before it can overflow.
        full = min(ceiling, self.cool_down * 2.0 ** min(max(lost.failures, 1) - 1, 30))
        salt = b"%b%b%d" % (me.raw, lost.relay.raw, lost.failures)
        fraction = int.from_bytes(hashlib.sha256(salt).digest()[:4], "big") / 2**32
        return lost.since + full * (1.0 + fraction) / 2.0


Rank: TypeAlias = "tuple[bool, int, bool, int, bool, bool, float, float, bytes]"


@dataclass(slots=True)
class _View:
    """One situation, indexed, as one policy sees it."""

    policy: DefaultRelayPolicy
    situation: RelaySituation
    live: dict[PeerId, Reservation] = field(init=False)
    lost: dict[PeerId, Reservation] = field(init=False)
    candidates: dict[PeerId, RelayCandidate] = field(init=False)

    def __post_init__(self) -> None:
        latest = {held.relay: held for held in self.situation.reservations}
        self.live = {relay: held for relay, held in latest.items() if held.live}
        self.lost = {relay: held for relay, held in latest.items() if not held.live}
        # One that works stays in the choice when nobody offers the relay any more.
        self.candidates = {relay: RelayCandidate(relay) for relay in self.live}
        self.candidates |= {c.peer_id: c for c in self.situation.candidates}
        self.candidates.pop(self.situation.me, None)

    def wanted(self) -> tuple[PeerId, ...]:
        """The relays to hold reservations at, best first."""
        chosen: list[RelayCandidate] = []
        kept, others = [], []
        for relay, candidate in self.candidates.items():
            if self.is_dwelling(relay):
                kept.append(candidate)
            elif self.is_open(relay):
                others.append(candidate)
        for pool in (kept, others):
            while pool and len(chosen) < self.situation.wanted:
                best = min(pool, key=lambda candidate: self._rank(candidate, chosen))
                pool.remove(best)
                chosen.append(best)
        return tuple(candidate.peer_id for candidate in chosen)

    def is_open(self, relay: PeerId) -> bool:
        """Whether ``relay`` may be chosen: held already, or not left alone after a failure."""
        lost = self.lost.get(relay)
        return lost is None or self._retry_at(lost) <= self.situation.now

    def is_dwelling(self, relay: PeerId) -> bool:
        """Whether a reservation at ``relay`` is too young to be given up for a better one."""
        held = self.live.get(relay)
        if self.situation.wanted == 0:
            return False  # it is not given up for another one
        return held is not None and self.situation.now < held.since + self.policy.dwell

    def again_at(self) -> float | None:
        """The next moment at which the passing of time alone can change the decision."""
        times = [held.since + self.policy.dwell for held in self.live.values()]
        if self.situation.wanted > 0:
            times += [
                self._retry_at(lost)
                for relay, lost in self.lost.items()
                if relay in self.candidates
            ]
        return min((t for t in times if t > self.situation.now), default=None)

    def _retry_at(self, lost: Reservation) -> float:
        alone = not self.live and all(relay in self.lost for relay in self.candidates)
        return self.policy.retry_at(lost, self.situation.me, alone=alone)

    def _rank(self, candidate: RelayCandidate, chosen: Iterable[RelayCandidate]) -> Rank:
        """Sort key of ``candidate`` for the next place after ``chosen``; the least is the best."""
        held = self.live.get(candidate.peer_id)
        success = candidate.score.mean(self.situation.now)
        cost = self._cost(candidate, held, success)
        if held is not None:
            cost = min(cost * (1 - self.policy.gain), cost - self.policy.least_gain)
        networks = candidate.networks
        return (
            success < POOR_RECORD,
            # A relay that is held, but that nobody offers any more, has no addresses here.
            len(self.situation.cover - candidate.serves) if candidate.serves else 0,
            any(networks & other.networks for other in chosen),
            max(0, int(cost / _RTT_GRAIN)),
            held is None,
            not candidate.known,
            # Quarters: a claim of 0.41 against 0.42 must not outweigh a measurement.
            round(4 * min(max(candidate.load if candidate.load is not None else 0.5, 0.0), 1.0)),
            cost,
            candidate.peer_id.raw,
        )

    @staticmethod
    def _cost(candidate: RelayCandidate, held: Reservation | None, success: float) -> float:
        """Seconds per successful round trip, so to speak."""
        rtt = held.rtt if held is not None and held.rtt is not None else candidate.rtt
        cost = (UNMEASURED_RTT if rtt is None else max(rtt, 0.0)) / success
        tcp_only = bool(candidate.carriers) and "h3" not in candidate.carriers
        return cost * _TCP_FACTOR if tcp_only else cost
