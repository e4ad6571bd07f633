"""Better paths for connections that go through a relay, as long as they do.

For connections this node has dialed: in QUIC it is the client that opens paths. A direct path is
tried at every address the peer is known to have, a further relayed one is kept as a standby.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from anyreach import _core
from anyreach._local import to_core
from anyreach._way import MAX_RELAYED_WAYS
from anyreach.candidates import MAX_CANDIDATES
from anyreach.errors import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyreach._flow import Waiter
    from anyreach._proving import Contacts
    from anyreach._way import Way
    from anyreach.addresses import SocketAddress

__all__ = ["Upgrades"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 60.0
"""Seconds between two rounds of attempts: often enough to notice soon that a firewall was opened,
rare enough that a relayed connection costs next to nothing more."""

_RECENT: Final = 60.0
_RECENT_PAUSE: Final = 1.0
"""So many seconds after a direct path was lost the pauses are short: most outages are over soon."""

_PATIENCE: Final = 4.0
"""Seconds one attempt has at most. Its first packet is repeated after 1 and 3 seconds; later ones
would come less often than those of the next attempt."""

_GRACE_ROUND_TRIPS: Final = 4
_GRACE_EXTRA: Final = 0.05
_LONGEST_GRACE: Final = 1.0
"""How long connect() waits for a direct path by default: punching on a clean line takes about three
round trips of the relayed path."""

_MAX_STANDBYS: Final = 1
"""Relayed paths kept besides the one in use."""

MAX_DIRECT: Final = MAX_CANDIDATES
"""Addresses of a peer that are tried. It may name others whenever it likes; the latest count."""


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def open_path(
        self,
        connection: _core.Connection,
        ip: str,
        port: int,
        timeout: float,
        *,
        via: _core.Tunnel | None,
        relayed: bool,
        standby: bool,
    ) -> _core.PathAttempt:
        """Try one more path."""
        ...


class Upgrades:
    """Improves the connections of one node.

    Args:
        core: the node's endpoint.
        wait: awaits a ``poll_*`` method of the core.
        direct: whether direct paths are wanted at all.
        grace: seconds ``connect()`` waits for one; ``None`` for the default; 0 for none.
        timeout: seconds one attempt may take.
        contacts: told whom something is sent to.
    """

    def __init__(
        self,
        core: Core,
        wait: Waiter,
        *,
        direct: bool,
        grace: float | None,
        timeout: float,
        contacts: Contacts,
    ) -> None:
        self._core = core
        self._timeout = min(timeout, _PATIENCE)
        self._wait = wait
        self._direct = direct
        self._grace = grace
        self._contacts = contacts
        self._entries: dict[int, _Entry] = {}

    def begin(
        self,
        connection: _core.Connection,
        direct: Iterable[SocketAddress],
        standbys: Iterable[Way],
    ) -> None:
        """Look for better paths of ``connection`` from now on, also at these places."""
        if not is_relayed(connection):
            return
        entry = self._entries.get(connection.id)
        if entry is None:
            entry = self._entries[connection.id] = _Entry(connection)
        if self._direct:
            entry.direct = _latest(direct, entry.direct, MAX_DIRECT)
        entry.standbys = _latest(standbys, entry.standbys, MAX_RELAYED_WAYS)
        self.changed(connection)
        entry.news.set()
        if entry.task is None:
            entry.task = asyncio.create_task(
                self._improve(entry), name=f"anyreach-upgrade {connection.id}"
            )

    def changed(self, connection: _core.Connection) -> None:
        """The paths of ``connection`` changed: if the direct ones have gone, look for another."""
        entry = self._entries.get(connection.id)
        if entry is None:
            return
        if has_direct(connection):
            entry.direct_up.set()
        elif entry.direct_up.is_set():
            entry.direct_up.clear()
            entry.lost_at = asyncio.get_running_loop().time()
            entry.news.set()

    async def grace(self, connection: _core.Connection) -> None:
        """Wait a moment for a direct path, if ``connection`` has none and one may come."""
        entry = self._entries.get(connection.id)
        if entry is None or not entry.direct or self._grace == 0:
            return
        seconds = self._grace
        if seconds is None:
            rtt = max((path.rtt for path in connection.paths()), default=0.0)
            seconds = min(_GRACE_ROUND_TRIPS * rtt + _GRACE_EXTRA, _LONGEST_GRACE)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await entry.direct_up.wait()

    def ended(self, connection_id: int) -> None:
        """The connection has ended."""
        entry = self._entries.pop(connection_id, None)
        if entry is not None and entry.task is not None:
            entry.task.cancel()

    async def end(self) -> None:
        """Stop everything."""
        tasks = self.abandon()
        if tasks:
            await asyncio.wait(tasks)

    def abandon(self) -> list[asyncio.Task[None]]:
        """Stop everything without waiting; what is about to end."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        self._entries.clear()
        for task in tasks:
            task.cancel()
        return tasks

    async def _improve(self, entry: _Entry) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while entry.core.close_reason is None:
            entry.news.clear()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stand_by(entry))
                if not has_direct(entry.core):
                    for address in tuple(entry.direct):
                        tasks.create_task(self._try_direct(entry, address))
            recent = loop.time() < entry.lost_at + _RECENT
            try:
                async with asyncio.timeout(_RECENT_PAUSE if recent else pause):
                    await entry.news.wait()
                pause = _FIRST_PAUSE
            except TimeoutError:
                if not recent:
                    pause = min(2 * pause, _LONGEST_PAUSE)

    async def _try_direct(self, entry: _Entry, address: SocketAddress) -> None:
        with suppress(OSError):  # no such interface any more
            host = to_core(address)
            self._contacts.add(address.ip)
            start = partial(
                self._core.open_path,
                entry.core,
                host,
                address.port,
                self._timeout,
                via=None,
                relayed=False,
                standby=False,
            )
            await self._open(entry, start, str(address))

    async def _stand_by(self, entry: _Entry) -> None:
        for way in tuple(entry.standbys):
            paths = entry.core.paths()
            spare = sum(path.method == "relayed" and not path.current for path in paths)
            if spare >= _MAX_STANDBYS:
                return
            remotes = {(path.remote, path.via if path.tunnelled else None) for path in paths}
            via = None if way.tunnel is None else way.tunnel.relay
            place = (to_core(way.address), way.address.port)
            if (place, via) in remotes:
                continue
            if way.tunnel is None:
                self._contacts.add(way.address.ip)
            await self._open(
                entry,
                partial(
                    self._core.open_path,
                    entry.core,
                    *place,
                    self._timeout,
                    via=way.tunnel,
                    relayed=way.relay is not None,
                    standby=True,
                ),
                str(way),
            )

    async def _open(
        self, entry: _Entry, start: Callable[[], _core.PathAttempt], where: str
    ) -> None:
        try:
            await self._wait(start().poll)
        except _core.DialFailed as error:
            logger.debug("no path to %s: %s", where, error.args[1])
        except ConnectionLost:
            return
        self.changed(entry.core)


def _latest(new: Iterable[T], old: Iterable[T], limit: int) -> dict[T, None]:
    """Those of both, the new ones first, as many as may be."""
    return dict.fromkeys(islice(dict.fromkeys((*new, *old)), limit))


class _Entry:
    __slots__ = ("core", "direct", "direct_up", "lost_at", "news", "standbys", "task")

    def __init__(self, core: _core.Connection) -> None:
        self.core = core
        self.direct: dict[SocketAddress, None] = {}
        self.standbys: dict[Way, None] = {}
        self.direct_up = asyncio.Event()
        self.lost_at = -math.inf
        self.news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


def is_relayed(connection: _core.Connection) -> bool:
    """Whether data goes through a relay now."""
    return any(path.current and path.method == "relayed" for path in connection.paths())


def has_direct(connection: _core.Connection) -> bool:
    """Whether there is a path that needs no relay."""
    return any(path.method != "relayed" for path in connection.paths())
