"""When the next round of punching is due, and what is different in it.

Pure state; time is an argument. Between two ordinary NATs the first round does it, mostly (97.6 %
of the successes of arXiv:2510.27500). What a later one can add is to do something else: a router
that answers packets it does not know gives our next packet another port, so ours must come first
and theirs must not arrive (few hops to live, held back); others want the usual ones.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from anyreach.punching import Plan

__all__ = [
    "BIRTHDAY_METHODS",
    "FAST_SECONDS",
    "MAX_HISTORY",
    "ROUND_SPACING",
    "BirthdayBudget",
    "Method",
    "Outcome",
    "Round",
    "Schedule",
    "Tried",
    "Wait",
    "pause_after",
]

Method: TypeAlias = Literal["simple", "predict", "pool", "spray"]
"""A way through, as in :class:`anyreach.punching.Plan`."""

Outcome: TypeAlias = Literal["direct", "failed", "refused"]
"""How a round ended: with a path; without one; not begun, because the peer or a limit said no."""

BIRTHDAY_METHODS: Final[frozenset[Method]] = frozenset({"pool", "spray"})

ROUND_SPACING: Final = 1.2
"""Least seconds between two rounds. A peer refuses those that come within a second (safety rules
of the protocol); the rest is for requests that are delayed on their way by different times."""

FAST_SECONDS: Final = 60.0
"""So many seconds after a direct path was lost rounds follow each other as soon as they may: most
outages are over soon, and direct is to be back within five seconds after the end of one."""

LONGEST_USUAL_PAUSE: Final = 60.0
LONGEST_PAUSE: Final = 900.0
"""Seconds between rounds that fail, after the first few and after many. A round costs some hundred
bytes; what changes without telling us (a firewall, a NAT of the carrier) changes rarely."""

_USUAL_ROUNDS: Final = 16
"""Rounds that fail before pauses grow beyond :data:`LONGEST_USUAL_PAUSE`: some ten minutes."""

_IMPROVING_FIRST: Final = 60.0
"""First pause while a direct path is up and only a better one is looked for."""

MAX_HISTORY: Final = 32
"""Rounds remembered, for explanations."""

_MAX_NEWS: Final = 16
_NEWS_PAUSE: Final = 15.0
"""Rounds after which new candidates bring the next one forward no further than that: a peer that
keeps changing its mind must not keep us sending."""

_PATIENCE: Final = 4.0
_PATIENCE_BIRTHDAY: Final = 20.0
"""Seconds after which a round of whose end nothing was heard counts as failed."""

_LONGEST_ROUND_TRIP: Final = 1.0
"""Most seconds of round trip a hold is made of."""

USUAL_TTL: Final = 255
"""Openers that go all the way."""


@dataclass(frozen=True, slots=True)
class Round:
    """A round to begin now.

    Attributes:
        method: what to do.
        opener_ttl: time to live of the openers before the probes; 0 for none, 255 as usual. Low
            ones pass our own NATs and end before those of the peer.
        hold: seconds to hold our probes back, unless the peer is heard before: until it was told
            to begin as well.
        again: seconds after the beginning at which openers are to be sent once more, all the way:
            by then the other side has let them in, and learns where they come from.
        crossed: whether our openers go out in the descending order of the ports instead. Between
            two NATs that count, every pair of packets matches in the ascending one as long as
            nobody else is counted in between; in opposite ones a pair matches in every second
            case whatever is in between.
        attempt: how many there were before since the start or the last change.
    """

    method: Method
    opener_ttl: int
    hold: float
    again: tuple[float, ...]
    attempt: int
    crossed: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now.

    Attributes:
        until: when to ask again; ``None``: only if something happens.
    """

    until: float | None


@dataclass(frozen=True, slots=True)
class Tried:
    """One round that is over.

    Attributes:
        at: when it began, in seconds of a monotonic clock.
        seconds: how long it took.
        method: what was done.
        outcome: what came of it.
    """

    at: float
    seconds: float
    method: Method
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Style:
    """How a round differs from others of its method; times in round trips of the relayed path."""

    ttl: int
    hold: float
    again: tuple[float, ...] = ()
    crossed: bool = False


# Half a round trip is what the request takes to the peer: our probes then arrive after its own
# have left. Two hops are a router at home and nothing beyond, three are for those whose carrier
# translates as well, four for one more. Some NATs forget a mapping whose packet died on its way:
# for them everything goes out as usual. The last one is the draft's own: probes only.
_STYLES: Final[dict[Method, tuple[_Style, ...]]] = {
    "simple": (
        _Style(2, 0.5, (1.0,)),
        _Style(3, 1.0, (1.5,)),
        _Style(USUAL_TTL, 0.0, (1.0,)),
        _Style(4, 1.0, (1.5,)),
        _Style(0, 0.0),
    ),
    "predict": (
        _Style(2, 0.5),
        _Style(2, 0.5, crossed=True),
        _Style(USUAL_TTL, 0.0),
        _Style(3, 1.0, crossed=True),
        _Style(3, 1.0),
        _Style(USUAL_TTL, 0.0, crossed=True),
    ),
    "pool": (_Style(0, 0.0),),
    "spray": (_Style(0, 0.0),),
}


def pause_after(failures: int, first: float = 1.0) -> float:
    """Seconds from the end of a round until the next, after so many failures in a row (from 1)."""
    usual = min(LONGEST_USUAL_PAUSE, first * 2.0 ** min(max(failures, 1) - 1, 16))
    beyond = max(0, failures - _USUAL_ROUNDS)
    return min(LONGEST_PAUSE, usual * 2.0 ** min(beyond, 8))


class BirthdayBudget:
    """How often a pool or a spray may be used: thousands of packets, most of them to nobody.

    Args:
        per_hour: attempts within an hour; 0 for never.
    """

    __slots__ = ("_in_vain", "_per_hour", "_taken")

    HOUR: Final = 3600.0
    FIRST_PAUSE: Final = 5.0
    """Seconds between an attempt in vain and the second, four times as many before each further
    one: what 99 % hit and these did not is likely to be something else than bad luck."""

    EARLY: Final = 1.0
    """Seconds by which the side that is asked may take one before its pause is over: the request
    for the first may have been under way for longer than that for the second."""

    def __init__(self, per_hour: int) -> None:
        self._per_hour = per_hour
        self._taken: deque[float] = deque()
        self._in_vain = 0

    def available_at(self, now: float) -> float | None:
        """The earliest time for another one, ``now`` or later; ``None`` for never."""
        if self._per_hour <= 0:
            return None
        self._forget(now)
        if not self._taken:
            return now
        due = now
        if self._in_vain:
            pause = self.FIRST_PAUSE * 4.0 ** min(self._in_vain - 1, 6)
            due = self._taken[-1] + min(pause, self.HOUR)
        if len(self._taken) >= self._per_hour:
            due = max(due, self._taken[0] + self.HOUR)
        return max(now, due)

    def take(self, now: float, *, asked: bool = False) -> bool:
        """Use one up, if there is one now. It counts as in vain until :meth:`succeeded`.

        Args:
            now: the time.
            asked: whether it is the peer who wants it, and counts for itself.
        """
        due = self.available_at(now)
        if due is None or due > now + (self.EARLY if asked else 0.0):
            return False
        self._taken.append(now)
        self._in_vain += 1
        return True

    def succeeded(self) -> None:
        """The latest attempt has made a path: the next one need not wait, if it comes to that."""
        self._in_vain = 0

    def _forget(self, now: float) -> None:
        while self._taken and self._taken[0] + self.HOUR <= now:
            self._taken.popleft()
        if not self._taken:
            self._in_vain = 0


class Schedule:
    """The rounds of one connection that this side dialed.

    Tell it what happens, ask :meth:`next` what to do, and ask again after every event and at the
    time it named. Several things that happen at once (addresses of the peer come in one flight)
    should be told before asking. Nothing begins before there are a plan and candidates.

    Args:
        budget: of birthday attempts; shared by all connections to one peer.
    """

    __slots__ = (
        "_attempt",
        "_budget",
        "_direct",
        "_done",
        "_due",
        "_failures",
        "_fast_until",
        "_history",
        "_improving",
        "_news",
        "_plan",
        "_ready",
        "_running",
        "_started",
        "_style",
        "_winner",
    )

    def __init__(self, budget: BirthdayBudget) -> None:
        self._budget = budget
        self._plan: Plan | None = None
        self._ready = False
        self._direct = False
        self._improving = False
        self._running: Round | None = None
        self._style = 0
        # Method and style of the round that made the latest direct path.
        self._winner: tuple[Method, int] | None = None
        self._started = float("-inf")
        self._due = float("-inf")
        self._fast_until = float("-inf")
        self._attempt = 0
        self._failures = 0
        self._news = 0
        # How often each method was used since the last change.
        self._done: dict[Method, int] = {}
        self._history: deque[Tried] = deque(maxlen=MAX_HISTORY)

    @property
    def running(self) -> Round | None:
        """The round under way, if any."""
        return self._running

    @property
    def history(self) -> tuple[Tried, ...]:
        """Rounds that are over, oldest first; the latest :data:`MAX_HISTORY`."""
        return tuple(self._history)

    def planned(self, plan: Plan, now: float) -> None:
        """The plan, at first and whenever a report of a NAT may have changed it."""
        same = self._plan is not None and plan.methods == self._plan.methods
        self._plan = plan
        if same:
            return
        if plan.methods or now < self._fast_until:
            self._again(now)
        else:
            self._due = now + LONGEST_PAUSE

    def candidates(self, now: float, *, usable: bool, improving: bool = False) -> None:
        """The pairs of addresses have changed.

        Args:
            now: the time.
            usable: whether there are any.
            improving: whether one of them would be better than the direct path there is; see
                :func:`anyreach.punching.could_improve`.
        """
        self._ready = usable
        self._improving = improving
        if self._plan is None or self._plan.methods:
            self._soon(now)

    def network_changed(self, now: float) -> None:
        """This host or the peer is somewhere else: everything is worth trying again, at once."""
        self._winner = None
        if self._running is not None:
            self._over("failed", now)
        self._again(now)

    def direct_up(self, now: float, *, improving: bool = False) -> None:
        """A direct path works; from now on only better ones are looked for, slowly."""
        self._improving = improving
        if self._running is not None:
            if not self._direct:
                self._winner = self._running.method, self._style
                if self._running.method in BIRTHDAY_METHODS:
                    self._budget.succeeded()
            self._over("direct", now)
        if self._direct:
            return
        self._direct = True
        self._failures = self._attempt = self._news = 0
        self._done.clear()
        self._due = now + _IMPROVING_FIRST

    def direct_lost(self, now: float) -> None:
        """The last direct path is gone."""
        self._direct = False
        self._fast_until = now + FAST_SECONDS
        self._again(now)
        if self._winner is not None:
            method, style = self._winner
            self._done[method] = style

    def finished(self, outcome: Outcome, now: float) -> None:
        """The round under way has ended.

        Args:
            outcome: ``"direct"`` and a call of :meth:`direct_up` come to the same.
            now: the time.
        """
        if outcome == "direct":
            self.direct_up(now, improving=self._improving)
        elif self._running is not None:
            self._over(outcome, now)

    def next(self, now: float, rtt: float) -> Round | Wait:
        """The round to begin now, or how long to wait.

        A round that is returned counts as begun, and one under way as overtaken.

        Args:
            now: the time.
            rtt: seconds of a round trip over the path the request takes, usually the relayed one.
        """
        self._expire(now)
        due = self._next_due(now)
        if due is None or due > now:
            return Wait(due)
        if self._running is not None:
            self._over("failed", now)
        method = self._choose(now)
        if method in BIRTHDAY_METHODS:
            self._budget.take(now)
        styles = _STYLES[method]
        self._style = self._done.get(method, 0) % len(styles)
        style = styles[self._style]
        trip = min(max(rtt, 0.0), _LONGEST_ROUND_TRIP)
        self._running = Round(
            method,
            style.ttl,
            style.hold * trip,
            tuple(after * trip for after in style.again),
            self._attempt,
            style.crossed,
        )
        self._done[method] = self._style + 1
        self._attempt += 1
        self._news += 1
        self._started = now
        return self._running

    def _next_due(self, now: float) -> float | None:
        if not self._ready or self._plan is None:
            return None
        if self._direct and not self._improving:
            return None
        earliest = max(self._due, self._started + ROUND_SPACING)
        running = self._running
        if running is None:
            return earliest
        patient = self._started + _patience(running)
        if running.method in BIRTHDAY_METHODS:
            return patient  # what costs so much is not interrupted for a little news
        if self._due > self._started or now < self._fast_until:
            return min(earliest, patient)
        return patient

    def _choose(self, now: float) -> Method:
        methods = self._plan.methods if self._plan is not None else ()
        if self._direct or not methods:
            return "simple"
        if now < self._fast_until and self._winner is not None:
            # The mappings of the path that was lost may still be there.
            methods = ("simple", self._winner[0])
        turn = self._attempt % len(methods)
        for method in (*methods[turn:], *methods[:turn]):
            if method not in BIRTHDAY_METHODS or self._budget.available_at(now) == now:
                return method
        return "simple"

    def _expire(self, now: float) -> None:
        if self._running is not None and now >= self._started + _patience(self._running):
            self._over("failed", self._started + _patience(self._running))

    def _over(self, outcome: Outcome, now: float) -> None:
        assert self._running is not None
        seconds = max(0.0, now - self._started)
        self._history.append(Tried(self._started, seconds, self._running.method, outcome))
        self._running = None
        if outcome == "failed":
            self._failures += 1
            self._due = now + self._pause(now)
        elif outcome == "refused":
            self._due = now + ROUND_SPACING

    def _pause(self, now: float) -> float:
        if self._direct:
            return pause_after(self._failures, _IMPROVING_FIRST)
        if now < self._fast_until:
            return 0.0
        if self._plan is not None and not self._plan.methods:
            return LONGEST_PAUSE
        return pause_after(self._failures)

    def _soon(self, now: float) -> None:
        spacing = ROUND_SPACING if self._news < _MAX_NEWS else _NEWS_PAUSE
        self._due = max(now, self._started + spacing)

    def _again(self, now: float) -> None:
        self._failures = self._attempt = self._news = 0
        self._done.clear()
        self._soon(now)


def _patience(running: Round) -> float:
    return _PATIENCE_BIRTHDAY if running.method in BIRTHDAY_METHODS else _PATIENCE
