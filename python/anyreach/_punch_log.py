"""What was tried for one connection, as :mod:`anyreach.explain` takes it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from anyreach.explain import PunchAttempt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach.addresses import SocketAddress
    from anyreach.rounds import Method, Outcome

__all__ = ["MAX_ATTEMPTS", "Entry", "PunchLog"]

MAX_ATTEMPTS: Final = 32
"""Attempts remembered of one connection: the latest say why it is so now."""


class Entry:
    """One attempt in the log."""

    __slots__ = ("_begun", "attempt")

    def __init__(self, technique: Method, reason: str, ago: float) -> None:
        self._begun = time.monotonic() - ago
        self.attempt = PunchAttempt(technique, None, time.time() - ago, None, (), (), None, reason)

    def uses(
        self,
        local: Iterable[SocketAddress],
        remote: Iterable[SocketAddress],
        *,
        number: int | None = None,
    ) -> None:
        """It is between these addresses; ``number`` is that of the round."""
        self.attempt = replace(
            self.attempt,
            round=number if number is not None else self.attempt.round,
            local=tuple(map(str, dict.fromkeys(local))),
            remote=tuple(map(str, dict.fromkeys(remote))),
        )

    def because(self, reason: str) -> None:
        """What there is to say about it so far."""
        self.attempt = replace(self.attempt, reason=reason)

    def end(self, outcome: Outcome, reason: str | None = None) -> None:
        """It is over; the first end counts."""
        if self.attempt.outcome is None:
            self.attempt = replace(
                self.attempt,
                outcome=outcome,
                seconds=time.monotonic() - self._begun,
                reason=self.attempt.reason if reason is None else reason,
            )


class PunchLog:
    """The latest attempts of one connection."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=MAX_ATTEMPTS)

    def begin(self, technique: Method, reason: str = "under way", *, ago: float = 0.0) -> Entry:
        """A new entry, of what began so many seconds ago; whatever was under way is overtaken."""
        if self._entries:
            self._entries[-1].end("failed", "a newer attempt took its place")
        entry = Entry(technique, reason, ago)
        self._entries.append(entry)
        return entry

    @property
    def attempts(self) -> tuple[PunchAttempt, ...]:
        """All that are remembered, oldest first."""
        return tuple(entry.attempt for entry in self._entries)
