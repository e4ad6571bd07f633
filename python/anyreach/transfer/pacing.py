"""A rate limit for a transfer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Pacer"]

#: Seconds of data handed over at once: fine enough for a smooth progress bar, coarse enough
#: that timers cost nothing.
_STEP_SECONDS: Final = 0.1

#: A step is never smaller, so that low rates do not become packets of a few bytes.
_MIN_PIECE: Final = 1024


class Pacer:
    """Spreads bytes over time.

    Args:
        rate: bytes per second.
        clock: seconds, monotonic; for tests.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate: Final = rate
        self._clock = clock
        self._ready_at = clock()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """``data`` in pieces of a tenth of a second each."""
        step = max(_MIN_PIECE, int(self.rate * _STEP_SECONDS))
        for start in range(0, len(data), step):
            yield data[start : start + step]

    def delay(self, octets: int) -> float:
        """Books ``octets`` and returns how long to wait before sending them, in seconds."""
        now = self._clock()
        # Time that passed unused is not saved up: a limit is a limit after a pause as well.
        start = max(self._ready_at, now)
        self._ready_at = start + octets / self.rate
        return start - now

    async def wait(self, octets: int) -> None:
        """Sleeps as :meth:`delay` says."""
        if (seconds := self.delay(octets)) > 0:
            await asyncio.sleep(seconds)
