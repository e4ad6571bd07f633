"""Which external ports a NAT that counts will use next.

Pure; time is an argument. All hosts behind a NAT draw from the same counter, so that between our
last sample and our next packet it moves on by what the others do in the meantime. That is taken
for a Poisson process whose rate is learned from the gaps between the samples; the ports to tell
the peer are those with the highest probability.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from anyreach.addresses import SocketAddress
from anyreach.ports import FIRST_PORT, LAST_PORT, classify_ports, distance, moved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyreach.addresses import IpAddress

__all__ = ["MAX_PREDICTED", "addresses", "likely_gaps", "predict"]

MAX_PREDICTED: Final = 15
"""Most predicted ports of one side: half of the candidates a peer may be told. Each is a packet to
somebody else's port if it is wrong; fifteen cover what a busy household does within a round trip
(three standard deviations of the counter at 50 new mappings a second).

An odd number, because both sides send in the order of the ports: where one NAT counts up and the
other down, their packets meet in the middle, if there is one.
"""

_RELEVANT_SECONDS: Final = 60.0
"""Samples older than that say nothing about the rate of now."""

# What is believed of the rate before the first gap was seen: as much as half an event within so
# many seconds. Quiet networks are common; a few samples without a gap bring it down to nothing.
_PRIOR_EVENTS: Final = 0.5
_PRIOR_SECONDS: Final = 0.05

_NOW: Final = 1e-6
"""Seconds in which nothing can happen."""


def predict(
    samples: Sequence[tuple[float, int]],
    now: float,
    *,
    step: int = 0,
    lead: float = 0.0,
    own: int = 0,
    count: int = MAX_PREDICTED,
) -> tuple[int, ...]:
    """The ports our next new mapping will most probably have.

    Args:
        samples: ``(time, external port)`` of new mappings of our own, oldest first, of one external
            address; see :meth:`anyreach.nat.NatEvidence.samples`.
        now: the time, of the same monotonic clock.
        step: from one port to the next; 0 to take it from the samples.
        lead: seconds from now until the packet will leave.
        own: new mappings this node will make before that one.
        count: most ports wanted, up to :data:`MAX_PREDICTED`.

    Returns:
        The ``count`` most probable ones, in the order in which the NAT will come to them; the
        first packet of both sides is sent in that order, so that with two such NATs every pair
        matches. Empty if the samples fit no counter.
    """
    recent = [sample for sample in samples if now - sample[0] <= _RELEVANT_SECONDS]
    wanted = min(count, MAX_PREDICTED)
    if not recent or wanted <= 0:
        return ()
    if step == 0:
        # No socket has port 0: nothing is taken for preserved.
        _, step = classify_ports([(0, port) for _, port in recent])
    if step == 0:
        return ()
    last_at, last = recent[-1]
    events, seconds = _traffic(recent, step)
    ahead = max(0.0, now - last_at) + max(0.0, lead)
    gaps = likely_gaps(events, seconds, ahead, wanted)
    ports = [_from(last, step * (1 + own + gap)) for gap in gaps]
    return tuple(dict.fromkeys(ports))


def likely_gaps(events: float, seconds: float, ahead: float, count: int) -> range:
    """How many events of a Poisson process to expect: the ``count`` most probable numbers.

    Args:
        events, seconds: so many were seen within so long.
        ahead: seconds in which they are to be expected.
        count: how many numbers, at least 1.

    The unknown rate makes their number negative-binomially distributed, which has one peak: the
    most probable numbers are neighbours.
    """
    shape, scale = events + _PRIOR_EVENTS, seconds + _PRIOR_SECONDS
    if ahead <= _NOW:
        return range(count)
    log_p, log_q = math.log(scale / (scale + ahead)), math.log(ahead / (scale + ahead))

    def probability(number: int) -> float:
        ways = math.lgamma(shape + number) - math.lgamma(shape) - math.lgamma(number + 1)
        return ways + shape * log_p + number * log_q

    low = high = max(0, math.floor((shape - 1.0) * ahead / scale))
    while high - low + 1 < count:
        if low > 0 and probability(low - 1) >= probability(high + 1):
            low -= 1
        else:
            high += 1
    return range(low, high + 1)


def addresses(ip: IpAddress, ports: Sequence[int]) -> tuple[SocketAddress, ...]:
    """The ports as addresses, in their order."""
    return tuple(SocketAddress(ip, port) for port in ports)


def _traffic(samples: Sequence[tuple[float, int]], step: int) -> tuple[float, float]:
    """How many mappings others made between the samples, and how many seconds those cover."""
    events = seconds = 0.0
    for (began, before), (ended, after) in pairwise(samples):
        steps = distance(before, after) / step
        if steps < 1:
            continue  # another counter, or sent and seen in another order
        events += steps - 1
        seconds += max(0.0, ended - began)
    return events, seconds


def _from(port: int, by: int) -> int:
    # A NAT that uses ports below the range is followed into it.
    return moved(min(max(port, FIRST_PORT), LAST_PORT), by)
