"""The open connections as a node sees them: whose they are, and where their data goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyreach._local import from_core
from anyreach._paths import current
from anyreach.connection import Connection
from anyreach.events import PathChanged
from anyreach.peer import PeerId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anyreach import _core
    from anyreach.addresses import SocketAddress

__all__ = ["Course", "Live"]


@dataclass(frozen=True, slots=True)
class Course:
    """Where the data of a connection goes.

    Attributes:
        path_id: number of the path.
        method: how the path was made.
        remote: where its packets are sent.
        rtt: its round-trip time in seconds.
        relay: through whom, if it is relayed and that is known.
    """

    path_id: int
    method: str
    remote: SocketAddress
    rtt: float
    relay: PeerId | None = None

    @classmethod
    def among(cls, paths: Iterable[_core.PathInfo]) -> Course | None:
        """That of the path in use, if there is one."""
        path = current(paths)
        if path is None:
            return None
        relay = None if path.via is None else PeerId(path.via)
        return cls(path.id, path.method, from_core(*path.remote), path.rtt, relay)

    def is_like(self, other: Course) -> bool:
        """Whether the data takes the same way, as far as people care."""
        if (self.method, self.remote) != (other.method, other.remote):
            return False
        # Whose relay it is may be learned later.
        return self.path_id == other.path_id or self.relay == other.relay


class Live:
    """An open connection.

    Attributes:
        core: the core's.
        connection: what users get.
        peer_id: who is at the other end.
        course: where its data went when we looked last.
    """

    __slots__ = ("connection", "core", "course", "peer_id")

    def __init__(self, core: _core.Connection) -> None:
        self.core = core
        self.connection = Connection(core)
        self.peer_id = PeerId(core.peer_id)
        # A visit may be over by now; then it is told with the path it came by.
        first = core.first_path
        self.course = Course.among(core.paths() or ([] if first is None else [first]))

    def follow(
        self, paths: Sequence[_core.PathInfo], *, failed_over: bool = False
    ) -> PathChanged | None:
        """Take in the paths there are now; the event, if the data goes another way.

        Args:
            paths: those there are; one that has died may still be among them.
            failed_over: whether the one in use has died.
        """
        before, course = self.course, Course.among(paths)
        if course is None:
            return None  # none is usable now; the next one decides what this was
        self.course = course
        if before is None or before.is_like(course):
            return None
        if before.path_id == course.path_id:
            reason = "roamed"
        elif not failed_over and any(path.id == before.path_id for path in paths):
            reason = "better"
        else:
            reason = "failover"
        return PathChanged(
            peer_id=self.peer_id,
            method=course.method,
            remote=str(course.remote),
            rtt_ms=course.rtt * 1000,
            reason=reason,
            relay=course.relay,
        )
