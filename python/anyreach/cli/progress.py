"""A progress bar on standard error: one line that people glance at."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final, TextIO

from .words import bytes_text, duration_text, rate_text

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ProgressBar", "RateMeter", "bar_line"]

#: Seconds between redraws: smooth to the eye, free for the transfer.
_REDRAW_SECONDS: Final = 0.1

#: Seconds the shown rate looks back: steady enough to read, quick enough to show a stall.
_RATE_WINDOW: Final = 3.0

#: Seconds beyond which a forecast says nothing: 100 hours.
_LONGEST_ETA: Final = 360_000

#: Columns of the bar itself.
_BAR_COLUMNS: Final = 24


class RateMeter:
    """Bytes per second over the last seconds. Pure: time is an argument."""

    def __init__(self, now: float, done: int) -> None:
        self._points: deque[tuple[float, int]] = deque([(now, done)])

    def update(self, now: float, done: int) -> float:
        """Notes ``done`` bytes at ``now`` and returns the rate."""
        self._points.append((now, done))
        while len(self._points) > 2 and self._points[1][0] <= now - _RATE_WINDOW:
            self._points.popleft()
        start, before = self._points[0]
        return (done - before) / (now - start) if now > start else 0.0


def bar_line(name: str, done: int, total: int, rate: float, columns: int) -> str:
    """The line for ``done`` of ``total`` bytes, at most ``columns`` wide. Pure."""
    share = done / total if total else 1.0
    filled = round(share * _BAR_COLUMNS)
    if done >= total:
        eta = "done"
    elif rate * _LONGEST_ETA > total - done:
        eta = f"eta {duration_text((total - done) / rate)}"
    else:
        eta = "eta -:--"
    bar = "━" * filled + "╌" * (_BAR_COLUMNS - filled)
    tail = f" {share:4.0%} {bar} {bytes_text(done)}/{bytes_text(total)}  {rate_text(rate)}  {eta}"
    room = columns - len(tail) - 1
    if room < 4:
        return tail.strip()[: max(columns - 1, 0)]
    shown = name if len(name) <= room else name[: room - 1] + "…"
    return shown + tail


class ProgressBar:
    """Shows how far a transfer is.

    On a terminal one line is redrawn; elsewhere, if progress was asked for, a line is printed
    for each tenth.
    """

    def __init__(
        self,
        *,
        forced: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._live = self._stream is not None and self._stream.isatty()
        self.enabled: Final = self._stream is not None and (self._live or forced)
        self._name = ""
        self._total = 0
        self._meter = RateMeter(0.0, 0)
        self._drawn_at = float("-inf")
        self._tenth = -1
        self._visible = False

    def start(self, name: str, done: int, total: int) -> None:
        """Begins a new file of which ``done`` bytes are there."""
        self._name, self._total = name, total
        self._meter = RateMeter(self._clock(), done)
        self._drawn_at, self._tenth = float("-inf"), -1
        self.update(done)

    def update(self, done: int) -> None:
        """Shows ``done`` bytes, if it is time to."""
        if not self.enabled:
            return
        now = self._clock()
        if now - self._drawn_at < _REDRAW_SECONDS and done < self._total:
            return
        self._drawn_at = now
        rate = self._meter.update(now, done)
        if self._live:
            columns = shutil.get_terminal_size().columns
            self._write("\r\x1b[K" + bar_line(self._name, done, self._total, rate, columns))
            self._visible = True
            return
        tenth = 10 * done // self._total if self._total else 10
        if tenth > self._tenth:
            self._tenth = tenth
            self._write(bar_line(self._name, done, self._total, rate, 100) + "\n")

    def clear(self) -> None:
        """Takes the line away, for other output or because the transfer broke."""
        if self._visible:
            self._write("\r\x1b[K")
            self._visible = False

    def finish(self) -> None:
        """Leaves the line of a complete file standing."""
        if self._visible:
            self._write("\n")
            self._visible = False

    def _write(self, text: str) -> None:
        assert self._stream is not None  # enabled
        try:
            encoding = self._stream.encoding or "utf-8"
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except OSError:
            return
