"""Paths that need no punching, for connections that go through a relay.

For those this node has dialed: in QUIC it is the client that opens paths. There is a spare relayed
one; addresses that were being dialed when the relayed way won get one more attempt, and those at
which the peer once answered a dial are tried again when the direct path is lost. Nothing that the
peer merely names is dialed here.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from anyreach import _core
from anyreach._local import from_core, to_core
from anyreach._paths import has_direct
from anyreach._way import MAX_RELAYED_WAYS, Way
from anyreach.candidates import MAX_CANDIDATES
from anyreach.errors import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyreach._flow import Waiter
    from anyreach._proving import Contacts

__all__ = ["Core", "Standby"]

logger = logging.getLogger(__name__)

FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 60.0
"""Seconds between two rounds of attempts: a relay that is back is of use soon, and a connection
that has none costs next to nothing."""

RECENT: Final = 60.0
RECENT_PAUSE: Final = 1.0
"""So many seconds after a direct path was lost the pauses are short: most outages are over soon."""

MAX_DIRECT: Final = 8
"""Addresses at which the peer has answered that are remembered: there are as many paths."""

PATIENCE: Final = 4.0
"""Seconds one attempt has at most. Its first packet is repeated after 1 and 3 seconds; later ones
would come less often than those of the next attempt."""

MAX_STANDBYS: Final = 1
"""Relayed paths kept besides the one in use."""


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


class Standby:
    """Further paths of one connection. Works from :meth:`offer` to :meth:`end`.

    Args:
        core: the node's endpoint.
        wait: awaits a ``poll_*`` method of the core.
        connection: whose paths they are.
        timeout: seconds one attempt may take.
        contacts: told whom something is sent to.
        opened: called when a path is there.
    """

    def __init__(
        self,
        core: Core,
        wait: Waiter,
        connection: _core.Connection,
        *,
        timeout: float,
        contacts: Contacts,
        opened: Callable[[], None],
    ) -> None:
        self._core = core
        self._wait = wait
        self._connection = connection
        self._timeout = min(timeout, PATIENCE)
        self._contacts = contacts
        self._opened = opened
        self._ways: dict[Way, None] = {}
        self._left: dict[Way, None] = {}
        self._tried: set[Way] = set()
        self._proved: dict[Way, None] = {}
        self._direct = self._declined = False
        self._lost_at = -math.inf
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def offer(self, ways: Iterable[Way], direct: Iterable[Way] = ()) -> None:
        """These ways may do; the latest count.

        Args:
            ways: through relays.
            direct: to addresses of the peer itself; each is tried once.
        """
        both = dict.fromkeys((*ways, *self._ways))
        self._ways = dict.fromkeys(islice(both, MAX_RELAYED_WAYS))
        fresh = [way for way in dict.fromkeys(direct) if way not in self._tried]
        self._tried.update(fresh[: MAX_CANDIDATES - len(self._tried)])
        self._left.update(dict.fromkeys(way for way in fresh if way in self._tried))
        self._news.set()
        if self._task is None:
            self._task = asyncio.create_task(
                self._run(), name=f"anyreach-standby {self._connection.id}"
            )

    def changed(self) -> None:
        """The paths changed."""
        dialed = [p for p in self._connection.paths() if p.method == "direct"]
        for path in dialed:
            way = Way(from_core(*path.remote))
            self._proved.pop(way, None)
            self._proved[way] = None
        while len(self._proved) > MAX_DIRECT:
            del self._proved[next(iter(self._proved))]
        direct = has_direct(self._connection)
        if self._direct and not direct:
            self._lost_at = asyncio.get_running_loop().time()
            self._declined = False
            self._news.set()
        self._direct = direct

    def declined(self) -> None:
        """The path policy let the last spare go: there is none until the direct path is lost."""
        self._declined = True

    def end(self) -> list[asyncio.Task[None]]:
        """Stop; what is about to end."""
        if self._task is None or self._task.done():
            return []
        self._task.cancel()
        return [self._task]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while self._connection.close_reason is None:
            self._news.clear()
            left, self._left = self._left, {}
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stand_by())
                for way in {**left, **self._proved}:
                    tasks.create_task(self._try_direct(way))
            recent = bool(self._proved) and loop.time() < self._lost_at + RECENT
            try:
                async with asyncio.timeout(RECENT_PAUSE if recent else pause):
                    await self._news.wait()
                pause = FIRST_PAUSE
            except TimeoutError:
                if not recent:
                    pause = min(2 * pause, LONGEST_PAUSE)

    async def _try_direct(self, way: Way) -> None:
        if not has_direct(self._connection):
            await self._open(way, standby=False)

    async def _stand_by(self) -> None:
        for way in tuple(self._ways):
            paths = self._connection.paths()
            spare = sum(path.method == "relayed" and not path.current for path in paths)
            if spare >= MAX_STANDBYS or (self._declined and has_direct(self._connection)):
                return
            remotes = {(path.remote, path.via if path.tunnelled else None) for path in paths}
            via = None if way.tunnel is None else way.tunnel.relay
            if ((way.address.host, way.address.port), via) not in remotes:
                await self._open(way, standby=True)

    async def _open(self, way: Way, *, standby: bool) -> None:
        with suppress(OSError):  # no such interface any more
            host = to_core(way.address)
            if way.tunnel is None:
                self._contacts.add(way.address.ip)
            start = partial(
                self._core.open_path,
                self._connection,
                host,
                way.address.port,
                self._timeout,
                via=way.tunnel,
                relayed=way.relay is not None,
                standby=standby,
            )
            await self._attempt(start, str(way))

    async def _attempt(self, start: Callable[[], _core.PathAttempt], where: str) -> None:
        try:
            await self._wait(start().poll)
        except _core.DialFailed as error:
            logger.debug("no path to %s: %s", where, error.args[1])
        except ConnectionLost:
            return
        self._opened()
