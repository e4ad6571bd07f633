"""A table of a transfer that grows while it runs: what the program says, what the router counts."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from .process import Event, Process
    from .sites import Site
    from .world import World

__all__ = ["DemoError", "LiveTable"]

_EVERY: Final = 0.5  # seconds between two lines
_LOOK: Final = 0.05  # seconds between two looks

_COLOURS: Final = {"relayed": "33", "punched": "32", "direct": "32"}


class DemoError(Exception):
    """Something did not happen as it should."""


class LiveTable:
    """One line every half second.

    Attributes:
        first_direct: seconds from the start until data took a way without a relay for the first
            time; ``None`` before.
    """

    def __init__(self, process: Process, peer_id: str, world: World, near: Site, far: Site) -> None:
        self._process = process
        self._peer_id = peer_id
        self._world = world
        self._near, self._far = near, far
        self._began = self._drawn = time.monotonic()
        self._straight = self._relayed = 0
        self._coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.first_direct: float | None = None
        self._count()
        print("\n       s  path      RTT      straight    by relay   to", flush=True)

    @property
    def is_direct(self) -> bool:
        """Whether the program says that data takes a way without a relay."""
        path = self._path()
        return path is not None and path["method"] != "relayed"

    def until(self, condition: Callable[[], bool], patience: float) -> None:
        """Go on until something is so.

        Raises:
            DemoError: it is not in time, or the program ended.
        """
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline or self._process.returncode not in (None, 0):
                raise DemoError(f"it did not come so far\n{self._process.transcript()}")
            if self._process.returncode == 0 and not condition():
                raise DemoError("the file was through too soon")
            self._look()

    def during(self, seconds: float) -> None:
        """Go on for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.returncode is None:
            self._look()

    def say(self, what: str) -> None:
        """Put a remark between the lines."""
        print(f"          -- {what}", flush=True)

    def _look(self) -> None:
        time.sleep(_LOOK)
        now = time.monotonic()
        if self.first_direct is None and self.is_direct:
            self.first_direct = now - self._began
        if now - self._drawn >= _EVERY:
            self._draw(now)

    def _path(self) -> Event | None:
        events = [
            event
            for event in self._process.events
            if event.get("event") in ("connected", "path") and event["peer_id"] == self._peer_id
        ]
        return events[-1] if events else None

    def _count(self) -> tuple[int, int]:
        """Bytes that went straight, and by relay, since the last look."""
        traffic = self._world.counters.read()
        relay = self._world.relays[0].host
        straight = traffic.sent(self._near, self._far).bytes
        relayed = min(traffic.sent(self._near, relay).bytes, traffic.sent(relay, self._far).bytes)
        grown = straight - self._straight, relayed - self._relayed
        self._straight, self._relayed = straight, relayed
        return grown

    def _draw(self, now: float) -> None:
        elapsed, self._drawn = now - self._drawn, now
        rates = [f"{amount / elapsed / 1e6:5.1f} MB/s" for amount in self._count()]
        path = self._path()
        method, rtt, remote = (
            (path["method"], f"{path['rtt_ms']:4.0f} ms", path["remote"])
            if path is not None
            else ("-", "   -   ", "")
        )
        shown = f"{method:<8}"
        if self._coloured and method in _COLOURS:
            shown = f"\x1b[{_COLOURS[method]}m{shown}\x1b[0m"
        line = f"   {now - self._began:5.1f}  {shown}  {rtt}  {rates[0]}  {rates[1]}   {remote}"
        print(line, flush=True)
