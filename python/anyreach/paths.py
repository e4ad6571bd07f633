"""Which of the paths of a connection data should take, and which to give up.

Pure; ages stand for times. The core chooses by a ranking it was given and fails over by itself;
what is decided here, a few times a second at most, is the ranking. :class:`PathPolicy` is the seam
a user replaces.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from anyreach.reachability import Family

__all__ = [
    "DefaultPathPolicy",
    "FlapRecord",
    "PathDecision",
    "PathMethod",
    "PathPolicy",
    "PathSituation",
    "PathView",
    "RttFloor",
]

PathMethod: TypeAlias = Literal["direct", "punched", "relayed"]

MIN_MTU: Final = 1200
"""Bytes of UDP payload every path of QUIC must carry (RFC 9000 14.1)."""

FLAP_WINDOW: Final = 300.0
"""Seconds for which the loss of a path is held against its successors on the same way."""

MAX_WAYS: Final = 64
"""Ways whose losses are remembered; a connection has eight paths at once."""


@dataclass(frozen=True, slots=True)
class PathView:
    """One path of a connection, as measured.

    Attributes:
        id: number of the path within the connection.
        method: ``"direct"``, ``"punched"`` or ``"relayed"``.
        family: IP version of its packets on our side.
        rtt: round-trip time in seconds, without the queue that our own data makes: the least of
            the last while, see :class:`RttFloor`. Otherwise a busy path would always look worse
            than an idle one, and data would go to and fro.
        age: seconds since it was established.
        relay: through whom, as text; ``None`` for direct paths, or if it is not known.
        delivery_rate: bytes per second it was seen to deliver under load; ``None`` if it was not.
        mtu: largest UDP payload it carries, in bytes.
        loss: share of packets lost lately, 0 to 1; ``None`` if too few were sent to tell.
        carries: whether data gets through: ``False`` only by evidence, such as data sent and
            nothing acknowledged while other paths work; ``None`` if there is none.
        black_hole: whether packets of its ``mtu`` get lost and smaller ones do not, right now; no
            more once its MTU has fallen back.
        flaps: how often paths on the same way were lost lately; see :class:`FlapRecord`.
    """

    id: int
    method: PathMethod
    family: Family
    rtt: float
    age: float
    relay: str | None = None
    delivery_rate: float | None = None
    mtu: int = MIN_MTU
    loss: float | None = None
    carries: bool | None = None
    black_hole: bool = False
    flaps: int = 0


@dataclass(frozen=True, slots=True)
class PathSituation:
    """What a decision is made from.

    Attributes:
        paths: the open paths, in any order.
        current: number of the path data takes now; ``None`` if there is none.
        relay_standby: seconds a relayed path is kept after a direct one has come up.
        idle: seconds since the application last sent or received something.
    """

    paths: tuple[PathView, ...]
    current: int | None = None
    relay_standby: float = 30.0
    idle: float = 0.0


@dataclass(frozen=True, slots=True)
class PathDecision:
    """What to do now.

    Attributes:
        ranking: ``(number of the path, rank)``, best first; ranks count from 0.
        close: numbers of paths to close.
        again_in: seconds after which time alone can change the decision; ``None`` if it cannot.
    """

    ranking: tuple[tuple[int, int], ...]
    close: tuple[int, ...] = ()
    again_in: float | None = None


@runtime_checkable
class PathPolicy(Protocol):
    """Ranks paths. ``decide`` must be pure and quick: it runs on the loop, after any change."""

    def decide(self, situation: PathSituation) -> PathDecision:
        """Which path to use, and which to close now."""
        ...


@dataclass(frozen=True, slots=True)
class DefaultPathPolicy:
    """The policy used unless a :class:`PathPolicy` is configured.

    Paths that need no relay come before those that do, whatever their round-trip times: relays are
    the last resort for data. Behind both come paths of which there is evidence that they carry
    nothing, and those whose predecessors on the same way kept dying, until they have lasted.

    Within a tier the shorter round trip wins, IPv6 with a bonus because it needs no NAT to
    remember it; the path in use is left only for a clear gain. Where round trips do not differ
    clearly, a much higher measured rate does.

    Attributes:
        ipv6_bonus: seconds an IPv6 path counts as shorter.
        gain: seconds of round trip that are worth a switch.
        gain_share: share of the round trip that is worth a switch as well,
        least_gain: if it is at least so many seconds; below, it is noise.
        rate_gain: how many times the delivery rate must be for it to be worth a switch.
        lossy: share of packets lost from which on a path counts as one that carries nothing.
        flapping: losses on the same way from which on its next path is quarantined.
        quarantine: seconds a path must last then, doubled by each further loss,
        longest_quarantine: up to so many.
        dormant: seconds without data after which also the last relayed path is closed, while a
            direct one works; ``None`` for never. As long as it is there, a connection falls back to
            it within half a second.
    """

    ipv6_bonus: float = 0.003
    gain: float = 0.005
    gain_share: float = 0.1
    least_gain: float = 0.0005
    rate_gain: float = 1.5
    lossy: float = 0.5
    flapping: int = 3
    quarantine: float = 5.0
    longest_quarantine: float = 120.0
    dormant: float | None = None

    def decide(self, situation: PathSituation) -> PathDecision:
        """See :class:`PathDecision`."""
        order = self.order(situation.paths, situation.current)
        ranking = tuple((path.id, rank) for rank, path in enumerate(order))
        close, wait = self.standby(situation, order)
        waits = [self._quarantined(path) for path in order]
        if wait is not None:
            waits.append(wait)
        return PathDecision(ranking, close, min((w for w in waits if w > 0), default=None))

    def order(self, paths: Sequence[PathView], current: int | None) -> tuple[PathView, ...]:
        """The paths, best first; the one in use stays unless another is clearly better."""
        order = sorted(paths, key=self._key)
        used = next((path for path in order if path.id == current), None)
        if used is None:
            return tuple(order)
        first = next((p for p in order if self._is_worth_it(used, p)), used)
        return (first, *(path for path in order if path is not first))

    def standby(
        self, situation: PathSituation, order: Sequence[PathView]
    ) -> tuple[tuple[int, ...], float | None]:
        """What becomes of relayed paths: those to close, and when to ask again.

        All are kept for ``relay_standby`` seconds after a direct path has come up: that may be as
        short-lived as it is young. Then the best is left, for as long as :attr:`dormant` says.
        """
        relayed = [path for path in order if path.method == "relayed"]
        direct = [p for p in order if p.method != "relayed" and self.tier(p) == 0]
        if not relayed or not direct:
            return (), None
        proved = max(path.age for path in direct)
        if proved < situation.relay_standby:
            return (), situation.relay_standby - proved
        best, *others = relayed
        close = tuple(path.id for path in others)
        if self.dormant is None:
            return close, None
        if situation.idle < self.dormant:
            return close, self.dormant - situation.idle
        return (*close, best.id), None

    def tier(self, path: PathView) -> int:
        """0 for paths without a relay, 1 for relayed ones, 2 for those in quarantine, 3 for those
        that carry nothing."""
        lossy = path.loss is not None and path.loss >= self.lossy
        if path.carries is False or path.black_hole or lossy or path.mtu < MIN_MTU:
            return 3
        if self._quarantined(path) > 0:
            return 2
        return 1 if path.method == "relayed" else 0

    def _quarantined(self, path: PathView) -> float:
        """Seconds a path has yet to last before it is trusted."""
        if path.flaps < self.flapping:
            return 0.0
        more = min(path.flaps - self.flapping, 16)
        return max(0.0, min(self.longest_quarantine, self.quarantine * 2.0**more) - path.age)

    def _key(self, path: PathView) -> tuple[int, float, float, int]:
        return (self.tier(path), self._trip(path), -(path.delivery_rate or 0.0), path.id)

    def _trip(self, path: PathView) -> float:
        return max(0.0, path.rtt) - (self.ipv6_bonus if path.family == 6 else 0.0)

    def _is_worth_it(self, used: PathView, other: PathView) -> bool:
        """Whether data should move over from the path it takes now."""
        tiers = self.tier(used), self.tier(other)
        if tiers[0] != tiers[1]:
            return tiers[1] < tiers[0]
        saved = self._trip(used) - self._trip(other)
        if self._is_gain(saved, used):
            return not self._is_much_slower(other, than=used)
        # Each may cost less than what a switch must gain, so that none leads back.
        return not self._is_gain(-saved, other) and self._is_much_slower(used, than=other)

    def _is_gain(self, saved: float, of: PathView) -> bool:
        share = saved >= self.gain_share * max(0.0, of.rtt) and saved >= self.least_gain
        return saved >= self.gain or share

    def _is_much_slower(self, path: PathView, *, than: PathView) -> bool:
        """Whether ``than`` was measured to deliver so much more."""
        if path.delivery_rate is None or than.delivery_rate is None:
            return False
        return than.delivery_rate >= self.rate_gain * max(path.delivery_rate, 1.0)


class FlapRecord:
    """How often paths on each way were lost lately. Pure state; time is an argument.

    A way is whatever stays the same when a path is opened again: its method and remote address.
    """

    __slots__ = ("_lost",)

    def __init__(self) -> None:
        self._lost: dict[Hashable, deque[float]] = {}

    def lost(self, way: Hashable, now: float) -> None:
        """A path on this way has died."""
        losses = self._lost.pop(way, None) or deque(maxlen=16)
        losses.append(now)
        self._lost[way] = losses
        if len(self._lost) > MAX_WAYS:
            del self._lost[next(iter(self._lost))]

    def count(self, way: Hashable, now: float) -> int:
        """How many died within :data:`FLAP_WINDOW`."""
        return sum(now - at < FLAP_WINDOW for at in self._lost.get(way, ()))

    def network_changed(self) -> None:
        """This host is somewhere else: what was lost before says nothing."""
        self._lost.clear()


class RttFloor:
    """The least round-trip time of a path in the last :attr:`WINDOW` seconds or somewhat more.

    Pure state; time is an argument. Kept in two halves, so that it costs no memory.
    """

    __slots__ = ("_began", "_least", "_previous")

    WINDOW: Final = 30.0
    """Longer than most transfers fill a queue without a pause, short enough to notice another
    route."""

    def __init__(self) -> None:
        self._began = float("-inf")
        self._previous = self._least = float("inf")

    def sample(self, rtt: float, now: float) -> float:
        """Take in a measurement; the least by now."""
        if now - self._began >= self.WINDOW:
            stale = now - self._began >= 2 * self.WINDOW
            self._previous = float("inf") if stale else self._least
            self._began, self._least = now, rtt
        self._least = min(self._least, rtt)
        return min(self._previous, self._least)
