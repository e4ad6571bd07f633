"""Happy Eyeballs: the order of connection attempts, and when to start the next one.

Pure and sans-I/O, after RFC 8305 and draft-ietf-happy-happyeyeballs-v3. Times are seconds of
any monotonic clock and always arguments. :class:`Race` says what to do; whoever drives it
(see ``dialer.py``) dials, waits and reports back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anyreach.addresses import SocketAddress

__all__ = [
    "ATTEMPT_DELAY",
    "MAX_ATTEMPT_DELAY",
    "MIN_ATTEMPT_SPACING",
    "Action",
    "Exhausted",
    "Finished",
    "Race",
    "Start",
    "Wait",
    "attempt_delay_after",
    "order",
    "schedule",
]

ATTEMPT_DELAY: Final = 0.25
"""Connection Attempt Delay: seconds between two starts (RFC 8305 8, v3 "Connection Attempts")."""

MAX_ATTEMPT_DELAY: Final = 2.0
"""Maximum Connection Attempt Delay (RFC 8305 8)."""

MIN_ATTEMPT_SPACING: Final = 0.01
"""No attempt starts sooner after the one before, even after a failure (RFC 8305 5, a MUST)."""

# Minimum Connection Attempt Delay, the lower bound for delays derived from measurements
# (RFC 8305 8): without it, heavy loss would make every address be tried at once.
_MIN_MEASURED_DELAY: Final = 0.1
# A first packet is repeated after smoothed RTT + 4 x its variation, which starts as half the
# RTT (RFC 9002 5.3 and 6.2.1): three round trips. Until then the attempt deserves patience.
_RTTS_TO_REPETITION: Final = 3.0

Rtts: TypeAlias = "Mapping[SocketAddress, float]"
Family: TypeAlias = Literal[4, 6]


def order(
    addresses: Iterable[SocketAddress], *, rtts: Rtts | None = None, prefer: Family = 6
) -> tuple[SocketAddress, ...]:
    """The order to try ``addresses`` in: each once, families interleaved.

    Within a family, addresses with a measured round-trip time come first, fastest
    first; the others keep the order they came in, which for resolved names is that of
    RFC 6724. The family of the fastest measured address starts, else ``prefer``.

    Args:
        addresses: where the peer may be, most promising first; duplicates are ignored.
        rtts: round-trip times in seconds measured earlier on this network. The caller flushes
            them when the network changes.
        prefer: family that starts when nothing was measured; IPv6, as RFC 8305 4 asks.
    """
    known = rtts or {}
    unique = list(dict.fromkeys(addresses))
    unique.sort(key=lambda address: known.get(address, float("inf")))  # stable
    first = unique[0].version if unique and unique[0] in known else prefer
    return _interleave(unique, first)


def attempt_delay_after(
    address: SocketAddress, *, attempt_delay: float = ATTEMPT_DELAY, rtts: Rtts | None = None
) -> float:
    """Seconds to wait after starting an attempt to ``address`` before starting the next.

    ``attempt_delay``, or less where a measured round-trip time says that the peer would have
    answered earlier; then never less than 100 ms.
    """
    rtt = (rtts or {}).get(address)
    if rtt is None:
        return attempt_delay
    return min(attempt_delay, max(_MIN_MEASURED_DELAY, _RTTS_TO_REPETITION * rtt))


def schedule(
    addresses: Iterable[SocketAddress],
    *,
    attempt_delay: float = ATTEMPT_DELAY,
    rtts: Rtts | None = None,
    prefer: Family = 6,
) -> tuple[tuple[float, SocketAddress], ...]:
    """When each address is tried if no attempt ends before: offsets in seconds, from 0."""
    plan: list[tuple[float, SocketAddress]] = []
    offset = 0.0
    for address in order(addresses, rtts=rtts, prefer=prefer):
        plan.append((offset, address))
        offset += attempt_delay_after(address, attempt_delay=attempt_delay, rtts=rtts)
    return tuple(plan)


@dataclass(frozen=True, slots=True)
class Start:
    """Start an attempt to ``address`` now."""

    address: SocketAddress


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to start before ``until``, or before an attempt ends if that is ``None``."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The race is over: ``winner`` answered."""

    winner: SocketAddress


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Every attempt failed and no address is left; new addresses may still be added."""


Action: TypeAlias = Start | Wait | Finished | Exhausted


class Race:
    """The state of one race over the addresses of a peer.

    Call :meth:`next_action` until it does not say :class:`Start`; after any report, and when
    the time of a :class:`Wait` has come, call it again. Every address is started at most once.
    """

    __slots__ = ("_delay", "_last", "_next", "_pending", "_prefer", "_rtts", "_running", "_winner")

    def __init__(
        self,
        addresses: Iterable[SocketAddress] = (),
        *,
        attempt_delay: float = ATTEMPT_DELAY,
        rtts: Rtts | None = None,
        prefer: Family = 6,
    ) -> None:
        self._delay = min(max(attempt_delay, MIN_ATTEMPT_SPACING), MAX_ATTEMPT_DELAY)
        self._rtts: Rtts = dict(rtts or {})
        self._prefer: Family = prefer
        self._pending = order(addresses, rtts=self._rtts, prefer=prefer)
        # Addresses started so far, in order; the value says whether the attempt still runs.
        self._running: dict[SocketAddress, bool] = {}
        self._last: float | None = None
        self._next = float("-inf")
        self._winner: SocketAddress | None = None

    @property
    def started(self) -> tuple[SocketAddress, ...]:
        """Addresses of all attempts so far, in the order of their start."""
        return tuple(self._running)

    @property
    def running(self) -> tuple[SocketAddress, ...]:
        """Addresses of the attempts that have neither failed nor won."""
        return tuple(address for address, runs in self._running.items() if runs)

    def next_action(self, now: float) -> Action:
        """What to do at time ``now``. A :class:`Start` counts as carried out."""
        if self._winner is not None:
            return Finished(self._winner)
        if not self._pending:
            return Wait(None) if self.running else Exhausted()
        if now < self._next:
            return Wait(self._next)
        address, *rest = self._pending
        self._pending = tuple(rest)
        self._running[address] = True
        self._last = now
        self._next = now + attempt_delay_after(address, attempt_delay=self._delay, rtts=self._rtts)
        return Start(address)

    def add(self, addresses: Iterable[SocketAddress]) -> None:
        """Let more addresses join (v3 "Handling New Answers"); known ones are ignored.

        Those not started yet are put in order again together with the new ones, beginning
        with the family that was not tried last.
        """
        fresh = [a for a in dict.fromkeys(addresses) if a not in self._running]
        ranked = order((*self._pending, *fresh), rtts=self._rtts, prefer=self._prefer)
        if self._running:
            last = next(reversed(self._running)).version
            ranked = _interleave(ranked, 4 if last == 6 else 6)
        self._pending = ranked

    def failed(self, address: SocketAddress, now: float) -> None:
        """The attempt to ``address`` failed: the next may start at once.

        "At once" keeps :data:`MIN_ATTEMPT_SPACING` from the previous start. Reports about
        attempts that are not running are ignored.
        """
        if not self._running.get(address):
            return
        self._running[address] = False
        spaced = now if self._last is None else self._last + MIN_ATTEMPT_SPACING
        self._next = min(self._next, max(now, spaced))

    def won(self, address: SocketAddress) -> tuple[SocketAddress, ...]:
        """The attempt to ``address`` succeeded: returns the attempts to cancel.

        Success means a finished QUIC handshake with the right peer. Only the first winner
        counts; a second one is returned as an attempt to cancel.
        """
        if self._winner is not None:
            return (address,) if address != self._winner else ()
        self._winner = address
        losers = tuple(running for running in self.running if running != address)
        self._running = dict.fromkeys(self._running, False)
        self._pending = ()
        return losers


def _interleave(ranked: Iterable[SocketAddress], first: int) -> tuple[SocketAddress, ...]:
    """Alternate families, starting with ``first`` if there is any, keeping order within each."""
    ours: list[SocketAddress] = []
    others: list[SocketAddress] = []
    for address in ranked:
        (ours if address.version == first else others).append(address)
    mixed: list[SocketAddress] = []
    for index in range(max(len(ours), len(others))):
        mixed += ours[index : index + 1] + others[index : index + 1]
    return tuple(mixed)
