"""How long to wait before dialing a known peer again.

Pure: the random number is an argument. Exponential with full jitter, because nodes that lost
the same peer at the same moment must not all come back at the same moment.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "FIRST_CEILING",
    "LAST_CEILING",
    "STABLE_AFTER",
    "failures_when_replaced",
    "next_failures",
    "retry_delay",
    "yielding_delay",
]

FIRST_CEILING: Final = 1.0
"""Longest wait after the first failure: a peer that restarts is back within a second or two."""

LAST_CEILING: Final = 60.0
"""Longest wait ever. A known peer is how a node is found, so a minute of absence after the peer
is back is the most we accept; one handshake a minute costs either side next to nothing."""

SHORTEST: Final = 0.1
"""Shortest wait, however the dice fall: a peer that refuses at once sees ten dials a second at
most, and only for a moment."""

STABLE_AFTER: Final = 10.0
"""Seconds a connection must have lasted for the count of failures to start again. Without it, a
peer that accepts and drops us at once would be dialed for ever without a pause."""


def retry_delay(failures: int, fraction: float) -> float:
    """Seconds to wait before the next attempt.

    Args:
        failures: attempts that failed in a row, at least 1.
        fraction: a random number from 0 to 1, uniform; the jitter.
    """
    # 2^6 s is past the ceiling; the exponent is bounded before it can grow without end.
    ceiling = min(LAST_CEILING, FIRST_CEILING * 2.0 ** min(max(failures, 1) - 1, 16))
    return max(SHORTEST, ceiling * fraction)


def next_failures(failures: int, lasted: float | None) -> int:
    """The number of failures in a row after an attempt or a connection has ended.

    Args:
        failures: the number before.
        lasted: seconds the connection lasted, or ``None`` if there was none.
    """
    return 1 if lasted is not None and lasted >= STABLE_AFTER else failures + 1


REPLACED_COUNTS: Final = 3
"""Failures that a connection given up for one of another node with our key counts as. That node
does what we do: if both came back as after a usual loss, they would take turns for ever."""

REPLACED_FORGIVEN_AFTER: Final = 600.0
"""Seconds a connection must have lasted for earlier ones that were replaced to be forgotten; ten
times the longest wait, so that two nodes with one key never get there while both run."""


def failures_when_replaced(failures: int, lasted: float) -> int:
    """The number of failures in a row after the peer preferred another node with our key.

    Args:
        failures: the number before.
        lasted: seconds the connection lasted.
    """
    return (0 if lasted >= REPLACED_FORGIVEN_AFTER else failures) + REPLACED_COUNTS


def yielding_delay(failures: int, fraction: float) -> float:
    """As :func:`retry_delay`, but never less than half of the longest wait for ``failures``."""
    return retry_delay(failures, (1 + fraction) / 2)
