"""How often a path must be used to keep the NAT mappings on its way, from what was lost before.

Pure policy; time is an argument. RFC 4787 4.3 asks NATs to keep a mapping of UDP for two minutes at
least; some keep it for seconds. How long cannot be asked: a path that has gone while nothing was
sent on it, and could be punched again at once, tells that its mapping lived shorter than that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["MIN_INTERVAL", "Evidence", "interval", "lost", "survived"]

MIN_INTERVAL: Final = 3.0
"""Seconds between two keep-alives, at least. Shorter silences say nothing about a mapping either:
it takes about a second to find out that a path is dead, and outages last as long."""

SHARE: Final = 1 / 3
"""Of the silence that was too long, the interval that comes of it. The mapping may have been gone
for most of that silence, and one keep-alive may get lost; a stall costs more than a packet."""

GROWTH: Final = 1.25
"""A longer interval is tried in small steps, since one that is too long stalls the connection."""

FIRST_TRIAL: Final = 600.0
LONGEST_TRIAL: Final = 86400.0
"""Seconds without a loss after which a longer interval is tried. Doubled by every loss: on a NAT
with a fixed lifetime there are few trials in vain."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What has been seen of the mappings of one path.

    Attributes:
        interval: seconds of silence it is thought to survive; ``None`` while none was lost.
        since: when that was found, or the last longer one tried.
        trial: seconds after that until a longer one is tried.
    """

    interval: float | None = None
    since: float = 0.0
    trial: float = FIRST_TRIAL


def lost(evidence: Evidence, silence: float, configured: float, now: float) -> Evidence:
    """A mapping was lost within ``silence`` seconds.

    Silences not longer than :data:`MIN_INTERVAL` change nothing, nor do those after which the
    configured interval is short enough, as that of a host which was suspended.
    """
    if silence <= MIN_INTERVAL:
        return evidence
    wanted = max(MIN_INTERVAL, min(silence * SHARE, interval(evidence, configured)))
    if wanted >= configured:
        return evidence
    again = evidence.interval is not None
    trial = min(evidence.trial * 2, LONGEST_TRIAL) if again else evidence.trial
    return replace(evidence, interval=wanted, since=now, trial=trial)


def survived(evidence: Evidence, configured: float, now: float) -> Evidence:
    """No mapping was lost until now; a longer interval may be due."""
    if evidence.interval is None or now - evidence.since < evidence.trial:
        return evidence
    longer = evidence.interval * GROWTH
    if longer >= configured:
        return replace(evidence, interval=None, since=now)
    return replace(evidence, interval=longer, since=now)


def interval(evidence: Evidence, configured: float) -> float:
    """Seconds of silence after which a keep-alive is sent; never more than configured."""
    if evidence.interval is None:
        return configured
    return min(evidence.interval, configured)
