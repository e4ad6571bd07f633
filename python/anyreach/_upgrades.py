"""Better paths for connections that go through a relay: a direct one, and meanwhile a spare.

Direct ones come by punching (:mod:`anyreach._punching`), spares from :mod:`anyreach._standby`;
here is how long ``connect()`` waits for the former.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from anyreach._paths import has_direct, is_relayed
from anyreach._standby import Standby
from anyreach._way import Way

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach import _core
    from anyreach._flow import Waiter
    from anyreach._proving import Contacts
    from anyreach._punching import Punching
    from anyreach._standby import Core
    from anyreach.addresses import SocketAddress

__all__ = ["Upgrades"]

_GRACE_ROUND_TRIPS: Final = 4
_GRACE_EXTRA: Final = 0.05
_LONGEST_GRACE: Final = 1.0
"""How long connect() waits for a direct path by default: punching on a clean line takes about three
round trips of the relayed path."""


class Upgrades:
    """Improves the connections of one node.

    Args:
        core: the node's endpoint.
        wait: awaits a ``poll_*`` method of the core.
        punching: makes direct paths.
        direct: whether those are wanted at all.
        grace: seconds ``connect()`` waits for one; ``None`` for the default; 0 for none.
        timeout: seconds one attempt may take.
        contacts: told whom something is sent to.
    """

    def __init__(
        self,
        core: Core,
        wait: Waiter,
        *,
        punching: Punching,
        direct: bool,
        grace: float | None,
        timeout: float,
        contacts: Contacts,
    ) -> None:
        self._core = core
        self._timeout = timeout
        self._wait = wait
        self._punching = punching
        self._direct = direct
        self._grace = grace
        self._contacts = contacts
        self._entries: dict[int, Standby] = {}

    def begin(
        self,
        connection: _core.Connection,
        direct: Iterable[SocketAddress],
        ways: Iterable[Way],
    ) -> None:
        """Look for better paths of ``connection`` from now on.

        Args:
            connection: one this node has dialed.
            direct: addresses of the peer itself that were being dialed; tried once more.
            ways: through relays, for a spare.
        """
        if not is_relayed(connection):
            return
        entry = self._entries.get(connection.id)
        if entry is None:
            entry = self._entries[connection.id] = self._enter(connection)
        self._punching.begin(connection)
        self.changed(connection)
        entry.offer(ways, (Way(address) for address in direct) if self._direct else ())

    def changed(self, connection: _core.Connection) -> None:
        """The paths of ``connection`` changed."""
        self._punching.paths_changed(connection)
        entry = self._entries.get(connection.id)
        if entry is not None:
            entry.changed()

    def declined(self, connection: _core.Connection) -> None:
        """The path policy let the last spare path of ``connection`` go."""
        entry = self._entries.get(connection.id)
        if entry is not None:
            entry.declined()

    async def grace(self, connection: _core.Connection) -> None:
        """Wait a moment for a direct path, if ``connection`` has none and one may come."""
        if self._grace == 0 or has_direct(connection) or not self._punching.is_open(connection):
            return
        if self._grace is not None:
            await self._settled(connection, self._grace)
            return
        # What the peer has to say comes with its hello. Where no address of it goes with one of
        # ours, as with UDP blocked at its end, nothing is waited for.
        rtt = max((path.rtt for path in connection.paths()), default=0.0)
        seconds = min(_GRACE_ROUND_TRIPS * rtt + _GRACE_EXTRA, _LONGEST_GRACE)
        first = min(rtt / 2 + _GRACE_EXTRA / 2, seconds)
        if not await self._settled(connection, first) and self._punching.is_promising(connection):
            await self._settled(connection, seconds - first)

    async def _settled(self, connection: _core.Connection, seconds: float) -> bool:
        """Whether within that time a direct path is up, or it is certain that none can be made."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._punching.settled(connection)
                return True
        return False

    def ended(self, connection_id: int) -> None:
        """The connection has ended."""
        self._punching.ended(connection_id)
        entry = self._entries.pop(connection_id, None)
        if entry is not None:
            entry.end()

    async def end(self) -> None:
        """Stop everything."""
        tasks = self.abandon()
        if tasks:
            await asyncio.wait(tasks)

    def abandon(self) -> list[asyncio.Task[None]]:
        """Stop everything without waiting; what is about to end."""
        tasks = [task for entry in self._entries.values() for task in entry.end()]
        self._entries.clear()
        return [*tasks, *self._punching.abandon()]

    def _enter(self, connection: _core.Connection) -> Standby:
        return Standby(
            self._core,
            self._wait,
            connection,
            timeout=self._timeout,
            contacts=self._contacts,
            opened=lambda: self.changed(connection),
        )
