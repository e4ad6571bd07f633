"""What peers achieved for this node: success measured per peer and capability.

Pure; time is an argument. Peers *say* what they can do; what counts is what came of it. Each
outcome is evidence of a probability, so a :class:`Score` is a Beta posterior: a peer that
succeeded once is not yet worth one that succeeded thirty times, and one never tried is neither
good nor bad. Evidence fades, because relays are repaired and networks change.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from anyreach.peer import PeerId

__all__ = ["HALF_LIFE", "MAX_SCORES", "MAX_WEIGHT", "Capability", "Score", "Scores"]

Capability: TypeAlias = Literal["relay", "coordinate", "observe"]
"""What a peer does for others: carry packets, introduce two peers, report addresses."""

HALF_LIFE: Final = 3600.0
"""Seconds after which an outcome counts half. Outages last minutes and are forgiven within the
day; a relay that fails every evening is still known for it an hour later."""

MAX_WEIGHT: Final = 16.0
"""Most evidence one score holds. More would make a long good record outlive a relay's death: with
this limit about ten failures in a row take the best record down to a half."""

MAX_SCORES: Final = 4096
"""Scores kept, three for each of the connections a node may have by default, and some more."""


@dataclass(frozen=True, slots=True)
class Score:
    """The record of one peer in one capability; the default is that of a peer never tried.

    Attributes:
        good: weight of the successes at the time ``at``.
        bad: weight of the failures at the time ``at``.
        at: when the last outcome was taken in, in seconds of a monotonic clock.
    """

    good: float = 0.0
    bad: float = 0.0
    at: float = 0.0

    def updated(self, outcome: bool, now: float) -> Score:
        """The record after one more outcome, ``True`` for a success."""
        fading = self._fading(now)
        good = self.good * fading + outcome
        bad = self.bad * fading + (not outcome)
        limit = min(1.0, MAX_WEIGHT / (good + bad))
        return Score(good * limit, bad * limit, max(now, self.at))

    def mean(self, now: float) -> float:
        """The expected probability of success, above 0 and below 1; a half without evidence."""
        fading = self._fading(now)
        # The uniform prior Beta(1, 1): one imagined success and one imagined failure.
        return (1.0 + self.good * fading) / (2.0 + (self.good + self.bad) * fading)

    def weight(self, now: float) -> float:
        """How many recent outcomes the record is worth, from 0 to :data:`MAX_WEIGHT`."""
        return (self.good + self.bad) * self._fading(now)

    def _fading(self, now: float) -> float:
        # Callers' readings of the clock may be a little out of order.
        age: float = max(0.0, now - self.at)
        return float(0.5 ** (age / HALF_LIFE))


class Scores:
    """The scores of all peers, at most ``limit``; those not updated longest are forgotten."""

    __slots__ = ("_limit", "_scores")

    def __init__(self, limit: int = MAX_SCORES) -> None:
        self._limit = max(1, limit)
        self._scores: OrderedDict[tuple[PeerId, Capability], Score] = OrderedDict()

    def of(self, peer: PeerId, capability: Capability) -> Score:
        """The record of ``peer``; an empty one if there is none."""
        return self._scores.get((peer, capability), _UNTRIED)

    def record(self, peer: PeerId, capability: Capability, outcome: bool, now: float) -> Score:
        """Take in an outcome of something *we* asked of ``peer``; returns the record after it.

        Never call it for what somebody else reports: other people's experience can be invented.
        """
        key = (peer, capability)
        score = self._scores.pop(key, _UNTRIED).updated(outcome, now)
        while len(self._scores) >= self._limit:
            self._scores.popitem(last=False)
        self._scores[key] = score
        return score

    def __len__(self) -> int:
        return len(self._scores)


_UNTRIED: Final = Score()
