"""What was tried to reach a peer, and how to say that it was in vain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from anyreach.errors import Attempt, ConnectError, ConnectTimeout, PeerIdMismatch
from anyreach.peer import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach.peer import PeerAddress

__all__ = ["NO_ANSWER", "SELF", "UNKNOWN", "AttemptLog", "Record"]

SELF: Final = "self"
"""Reason of an attempt that reached the dialing node itself."""

NO_ANSWER: Final = "no-answer"
"""Reason of the attempt to use the connection there was."""

UNKNOWN: Final = "unknown-peer"
"""Reason of a question to a peer that could not, or would not, say where the wanted one is."""

_TIMES_UP: Final = frozenset({"handshake-timeout"})


@dataclass(slots=True, eq=False)
class Record:
    """An attempt; reason and detail are what to say if time runs out now, until it is over."""

    address: str
    begun: float
    reason: str = "handshake-timeout"
    detail: str = "no answer in the time there was"
    method: str = "direct"
    seconds: float | None = None
    actual: bytes | None = None
    so_far: Callable[[], tuple[str, str] | None] | None = None
    """Reason and detail of what has failed in it already, while it goes on."""


class AttemptLog:
    """The attempts of one race, in the order of their start.

    Args:
        clock: seconds, from any origin.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: list[Record] = []

    def begin(self, address: str, method: str = "direct") -> Record:
        """A new attempt."""
        record = Record(address, self._clock(), method=method)
        self._records.append(record)
        return record

    def end(self, record: Record, reason: str, detail: str) -> None:
        """How an attempt ended."""
        record.reason, record.detail = reason, detail
        record.seconds = self._clock() - record.begun

    def forget(self, record: Record) -> None:
        """It was nothing that could fail, such as a name that led to addresses."""
        if record in self._records:
            self._records.remove(record)

    def replace(self, record: Record, reason: str, detail: str) -> None:
        """As :meth:`end`, in place of an earlier attempt of the same kind at the same address."""
        same = (record.address, record.method, reason)
        self._records = [
            other
            for other in self._records
            if other is not record and (other.address, other.method, other.reason) != same
        ]
        self._records.append(record)
        self.end(record, reason, detail)

    def clear(self) -> None:
        """Nothing had to be tried."""
        self._records.clear()

    def attempts(self, pending: tuple[str, str] | None = None) -> tuple[Attempt, ...]:
        """All attempts; ``pending`` is what to say of those not over, if there is a reason."""
        now = self._clock()
        attempts = []
        for record in self._records:
            reason, detail, seconds = record.reason, record.detail, record.seconds
            if seconds is None:
                seconds = now - record.begun
                if record.so_far is not None:
                    reason, detail = record.so_far() or (reason, detail)
                reason, detail = pending or (reason, detail)
            attempts.append(Attempt(record.address, record.method, reason, detail, seconds * 1000))
        return tuple(attempts)

    def failure(
        self,
        peer: PeerAddress,
        timeout: float | None = None,
        joining: tuple[Attempt, ...] = (),
    ) -> ConnectError:
        """Why there is no connection.

        Args:
            peer: who was wanted.
            timeout: the seconds the caller gave, if they are over.
            joining: attempts to reach the known peers who could have told where it is.
        """
        who = str(peer)
        attempts = self.attempts()
        if joining and not any(attempt.method == "direct" for attempt in attempts):
            attempts += tuple(
                replace(attempt, address=f"known peer {attempt.address}") for attempt in joining
            )
        expected = str(peer.peer_id)
        for record in self._records:
            if record.actual is not None:
                actual = str(PeerId(record.actual))
                return PeerIdMismatch(
                    f"{record.address} is {actual}, not {expected}",
                    attempts,
                    expected=expected,
                    actual=actual,
                )
        if timeout is not None:
            return ConnectTimeout(f"{who} was not reached within {timeout:g} s", attempts)
        reasons = {attempt.reason for attempt in attempts}
        if not attempts:
            return ConnectError(
                f"no address is known for {who}: it is not connected and was not before, and no"
                " peer knows it; pass ID@HOST:PORT or a ticket"
            )
        if reasons == {NO_ANSWER}:
            return ConnectTimeout(
                f"{who} does not answer on the connection there is, and no address to dial it at"
                " is known; pass ID@HOST:PORT or a ticket",
                attempts,
            )
        if reasons == {UNKNOWN}:
            return ConnectError(
                f"no peer that was asked tells where {who} is; pass ID@HOST:PORT or a ticket",
                attempts,
            )
        direct = {a.reason for a in attempts if a.method == "direct"} - {NO_ANSWER}
        if direct and direct <= _TIMES_UP:
            return ConnectTimeout(f"{who} did not answer", attempts)
        if direct == {SELF}:
            return ConnectError(f"{who} is this node itself", attempts)
        return ConnectError(f"{who} could not be reached", attempts)
