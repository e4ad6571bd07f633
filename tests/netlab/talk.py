"""Two nodes with a direct connection over which data flows both ways, while things happen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .agent import STRAIGHT
from .routers import Engine
from .trial import PERFECT, Ground, patience

if TYPE_CHECKING:
    from collections.abc import Collection

    from .agent import Agent, Finished
    from .kinds import SiteKind
    from .lab import Lab
    from .machine import Machine
    from .process import Event
    from .trial import Lines

__all__ = ["Moment", "Talk"]

RATE: Final = 2_000_000
"""Bytes per second, each way: enough that a stall shows, and little for the machine."""

_PATIENCE: Final = 60.0
"""Seconds; a bound on liveness."""

_STEADY: Final = 2.0
"""Seconds for which data must have flowed before all is said to be well again."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When something happened.

    Attributes:
        at: on the monotonic clock.
        seen: how many events either node had told by then.
    """

    at: float
    seen: tuple[int, int]


class Talk:
    """The nodes and what they tell.

    Attributes:
        ground: the lab with its relays.
        near, far: the sites.
        a, b: their nodes; the near one has connected.
        direct_after: seconds from the call until both ends had left the relay.
    """

    def __init__(
        self,
        lab: Lab,
        near: SiteKind,
        far: SiteKind,
        *,
        engine: Engine = Engine.KERNEL,
        lines: Lines = PERFECT,
        relays: int = 1,
    ) -> None:
        self.ground = Ground(lab, engine, lines, relays=relays)
        self.near, self.far = (
            lab.site(label, kind, engine=engine) for label, kind in (("near", near), ("far", far))
        )
        meeting = self.ground.introduce(*(self.ground.inhabit(s) for s in (self.near, self.far)))
        self.a, self.b = meeting.a, meeting.b
        self._flows: list[Finished] = []
        self._patience = patience(near, far)

    def connect(self) -> None:
        """Connect them and wait until both ends send straight."""
        began = self.now()
        self.a.connect_by_id(self.b)
        self.direct_after = self.wait(STRAIGHT, began, timeout=self._patience)

    def start(self, rate: float = RATE) -> None:
        """Let data flow both ways; returns when it does."""
        began = self.now()
        self._flows = [one.start_flow(other, rate) for one, other, _ in self._ends(began)]
        self.wait_progress(began, 0.0)

    def end(self) -> None:
        """End that: everything must arrive, and the connection be the first one."""
        for finished in self._flows:
            finished(timeout=_PATIENCE)
        assert not self.a.lost(), "a new connection, not the old one"
        assert not self.b.lost(), "a new connection, not the old one"

    def now(self) -> Moment:
        """This moment."""
        return Moment(time.monotonic(), (len(self.a.process.events), len(self.b.process.events)))

    def wait(self, methods: Collection[str], since: Moment, *, timeout: float = _PATIENCE) -> float:
        """Wait until both ends have moved to such a path after a moment; seconds from it on."""
        return max(
            float(one.wait_way(other, methods, since=seen, timeout=timeout)["at"]) - since.at
            for one, other, seen in self._ends(since)
        )

    def wait_progress(self, since: Moment, seconds: float = _STEADY) -> None:
        """Wait until either end has got data that long after a moment."""
        for agent, _, seen in self._ends(since):
            agent.process.wait_event(
                "progress", lambda e: e["at"] >= since.at + seconds, since=seen, timeout=_PATIENCE
            )

    def settle(self, since: Moment, *, timeout: float = _PATIENCE) -> float:
        """Wait until data flows straight both ways; seconds after the moment, 0 if it always did.

        Raises:
            AssertionError: it does not in time.
        """
        self.wait_progress(since)
        return self.straight(since, timeout=timeout)

    def straight(self, since: Moment, *, timeout: float) -> float:
        """As :meth:`settle`, whether data flows or not."""
        deadline = time.monotonic() + timeout
        while not all(one.way(other)["method"] in STRAIGHT for one, other, _ in self._ends(since)):
            assert time.monotonic() < deadline, "\n".join(
                [one.explain(other) for one, other, _ in self._ends(since)]
            )
            time.sleep(0.02)
        ends = self._ends(since)
        after = [event for one, other, seen in ends for event in one.ways(other, since=seen)]
        return max((float(event["at"]) - since.at for event in after), default=0.0)

    def stall(self, since: Moment) -> float:
        """The longest time in seconds since then for which a receiver got nothing."""
        pauses: list[Event] = []
        for agent, _, seen in self._ends(since):
            pauses += agent.pauses(since=seen)
        return max((float(pause["seconds"]) for pause in pauses), default=0.0)

    def _ends(self, since: Moment) -> list[tuple[Agent[Machine], Agent[Machine], int]]:
        return [(self.a, self.b, since.seen[0]), (self.b, self.a, since.seen[1])]
