"""Which connections have shown a sign of life lately.

Pure state; time is an argument. QUIC says that a peer is gone only after the idle timeout. Whoever
wants to use a connection now needs to know earlier, and has to ask the peer unless something came
from it a moment ago.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FRESH", "Liveness"]

FRESH: Final = 1.0
"""Seconds a sign of life counts. Asking costs a round trip, so calls in quick succession should
not; and a peer can always vanish right after its answer."""

_MAX_CONNECTIONS: Final = 1024
"""Connections kept in mind; as many as a node may have by default. One that is forgotten is asked
once more than necessary."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What was known of a connection when it was looked at last."""

    received: int
    at: float
    heard: float


class Liveness:
    """When each connection was heard from, as far as can be told from its counters now and then."""

    __slots__ = ("_looks",)

    def __init__(self) -> None:
        # Dictionaries keep insertion order: the first key is the one not looked at longest.
        self._looks: dict[int, _Look] = {}

    def is_fresh(self, connection: int, received: int, age: float, now: float) -> bool:
        """Whether something was surely received within the last :data:`FRESH` seconds.

        Args:
            connection: number of the connection.
            received: packets received on it so far.
            age: seconds since its youngest path came up, which takes a packet of the peer.
            now: the time.
        """
        before = self._looks.get(connection)
        heard = now - age
        if before is not None:
            # What came since the last look may have come right after it.
            heard = max(heard, before.heard if received == before.received else before.at)
        self._note(connection, _Look(received, now, heard))
        return now - heard <= FRESH

    def answered(self, connection: int, received: int, now: float) -> None:
        """The peer was asked and has answered."""
        self._note(connection, _Look(received, now, now))

    def _note(self, connection: int, look: _Look) -> None:
        self._looks.pop(connection, None)
        while len(self._looks) >= _MAX_CONNECTIONS:
            del self._looks[next(iter(self._looks))]
        self._looks[connection] = look
