"""Sees that idle connections do not lose their NAT mappings a second time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from anyreach.errors import ConnectionLost
from anyreach.keepalive import MIN_INTERVAL, Evidence, interval, lost, survived

if TYPE_CHECKING:
    from anyreach import _core
    from anyreach._live import Course
    from anyreach.addresses import SocketAddress

__all__ = ["Keeping"]

logger = logging.getLogger(__name__)

_BACK: Final = 15.0
"""Seconds within which a path whose mapping alone was lost is there again: punching takes a few
round trips, and is tried at once. What takes longer was an outage."""


@dataclass(slots=True)
class _Kept:
    """What is known of the mappings of one connection: of the NATs at both of its ends."""

    core: _core.Connection
    evidence: Evidence = field(default_factory=Evidence)
    went: tuple[SocketAddress, float, float] | None = None
    trial: asyncio.TimerHandle | None = None


class Keeping:
    """Keep-alives as frequent as each connection needs. Acts at the side that dialed.

    It is the connection and not the network that is judged: one end cannot tell whose NAT forgot,
    and a keep-alive with its answer serves both.

    Args:
        configured: seconds of silence after which there is a keep-alive anyway; 0 for none, which
            is then left so.
    """

    def __init__(self, configured: float) -> None:
        self._configured = configured
        self._kept: dict[int, _Kept] = {}

    def changed(
        self,
        core: _core.Connection,
        before: Course | None,
        course: Course | None,
        silent: float | None,
        now: float,
    ) -> None:
        """The paths of a connection changed.

        Args:
            core: the connection.
            before: where its data went.
            course: where it goes now, if anywhere.
            silent: seconds nothing had come by the path in use when it was found dead, if it was.
            now: the time of the loop.
        """
        if not self._configured or not core.outbound:
            return
        kept = self._kept.get(core.id)
        if silent is not None and silent > MIN_INTERVAL and before and before.method != "relayed":
            kept = self._kept.setdefault(core.id, _Kept(core))
            kept.went = (before.remote, silent, now)
        if kept is None or course is None:
            return
        if kept.went is not None and course.method == "punched":
            (remote, silence, at), kept.went = kept.went, None
            if now - at < _BACK and course.remote.ip == remote.ip:
                kept.evidence = lost(kept.evidence, silence, self._configured, now)
                logger.debug("a mapping was lost within %.1f s of silence", silence)
        self._apply(kept)

    def network_changed(self) -> None:
        """These are other NATs."""
        for kept in self._kept.values():
            self._forget(kept)
            self._set(kept, 0.0)
        self._kept.clear()

    def ended(self, connection_id: int) -> None:
        """A connection has ended."""
        if (kept := self._kept.pop(connection_id, None)) is not None:
            self._forget(kept)

    def _apply(self, kept: _Kept) -> None:
        self._forget(kept)
        evidence = kept.evidence
        if evidence.interval is None:
            self._set(kept, 0.0)
            return
        self._set(kept, interval(evidence, self._configured))
        due = evidence.since + evidence.trial
        kept.trial = asyncio.get_running_loop().call_at(due, partial(self._try_longer, kept, due))

    def _try_longer(self, kept: _Kept, now: float) -> None:
        kept.evidence = survived(kept.evidence, self._configured, now)
        self._apply(kept)

    @staticmethod
    def _forget(kept: _Kept) -> None:
        if kept.trial is not None:
            kept.trial.cancel()
            kept.trial = None

    @staticmethod
    def _set(kept: _Kept, seconds: float) -> None:
        try:
            kept.core.set_keep_alive(seconds)
        except ConnectionLost:
            logger.debug("a connection that has ended needs no keep-alives")
