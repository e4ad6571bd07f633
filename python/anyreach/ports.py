"""How a NAT numbers the external ports of new mappings.

Pure. NATs keep the port of the socket, count, or draw lots (RFC 4787 4.2); those that count do so
for all hosts behind them, so that what others do shows as gaps.
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FIRST_PORT",
    "LAST_PORT",
    "PortBehaviour",
    "classify_ports",
    "distance",
    "moved",
]

PortBehaviour: TypeAlias = Literal["preserving", "sequential", "random", "unknown"]

FIRST_PORT: Final = 1024
LAST_PORT: Final = 65535
"""External ports of NATs: those below belong to services (RFC 4787 4.2.1), and probing them at an
address somebody else has would look like an attack."""

_RANGE: Final = LAST_PORT - FIRST_PORT + 1

_SURE_JUMP: Final = 32
"""Farthest apart that two ports may be to be called sequential without a third: random ones are
that near in one case of a thousand."""

_FARTHEST_JUMP: Final = 512
"""The same with three or more; three random ports are that near each other in one case of four
thousand. Other hosts would have to open 500 mappings between two of our packets."""


def classify_ports(samples: Sequence[tuple[int, int]]) -> tuple[PortBehaviour, int]:
    """How ports are chosen, and the step if they are sequential, else 0.

    Args:
        samples: ``(port of the socket, external port)`` of new mappings, in the order in which
            they were made, all of one external address.
    """
    if not samples:
        return "unknown", 0
    preserved = sum(local == port for local, port in samples)
    # By chance that happens once in 64,512 times.
    if preserved * 2 > len(samples):
        return "preserving", 0
    jumps = [distance(a, b) for (_, a), (_, b) in pairwise(samples)]
    farthest = _SURE_JUMP if len(jumps) == 1 else _FARTHEST_JUMP
    if jumps and (all(0 < j <= farthest for j in jumps) or all(-farthest <= j < 0 for j in jumps)):
        return "sequential", step_of(jumps)
    return ("random" if len(jumps) > 1 else "unknown"), 0


def step_of(jumps: Sequence[int]) -> int:
    """The step that explains jumps of one direction, each a multiple of it.

    A common divisor that never occurs by itself is chance.
    """
    sizes = [abs(jump) for jump in jumps]
    common = gcd(*sizes)
    size = common if common in sizes else 1
    return size if jumps[0] > 0 else -size


def distance(before: int, after: int) -> int:
    """How far ``after`` is from ``before``, the shorter way round the range of ports."""
    forward = (after - before) % _RANGE
    return forward if forward <= _RANGE // 2 else forward - _RANGE


def moved(port: int, by: int) -> int:
    """``port`` moved by so many; after the last port comes the first."""
    return FIRST_PORT + (port - FIRST_PORT + by) % _RANGE
