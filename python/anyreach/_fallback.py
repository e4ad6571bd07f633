"""Ways around an outage, for connections whose every path has fallen silent.

A path that dies while there is another is the core's business. Here is what to do where there is
none: a direct connection to a peer that no relay is needed for, or a network that suddenly lets no
UDP through. In QUIC it is the client that opens paths; both ends see to their tunnels.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from anyreach import _core
from anyreach._local import from_core, to_core
from anyreach._way import MAX_RELAYED_WAYS, Way
from anyreach.addresses import Scope
from anyreach.errors import ConnectionLost
from anyreach.offers import DENIED_PORTS
from anyreach.peer import PeerId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyreach._flow import Waiter
    from anyreach._proving import Contacts
    from anyreach._standby import Core
    from anyreach._tunnels import Tunnel, Tunnels
    from anyreach.addresses import SocketAddress

__all__ = ["Fallback"]

logger = logging.getLogger(__name__)

LOOK: Final = 0.5
"""Seconds between two looks at the counters: a share of what is bearable without data."""

SILENCE: Final = 1.0
SILENCE_ROUND_TRIPS: Final = 4.0
"""Seconds, and round trips, without an answer to anything from which on other ways are looked for:
what is lost on a busy line comes again sooner."""

PATIENCE: Final = 3.0
"""Seconds one attempt has; then all ways are tried again, until the connection times out."""


@dataclass(slots=True)
class _Watched:
    """What was seen of one connection."""

    core: _core.Connection
    sent: int = 0
    received: int = 0
    unanswered_since: float | None = None
    # Where it was before it fell silent.
    places: dict[SocketAddress, None] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class Fallback:
    """Watches the connections of one node.

    Args:
        core: the node's endpoint.
        wait: awaits a ``poll_*`` method of the core.
        tunnels: its tunnels.
        contacts: told whom something is sent to.
        enabled: whether relays may be used.
    """

    def __init__(
        self, core: Core, wait: Waiter, *, tunnels: Tunnels, contacts: Contacts, enabled: bool
    ) -> None:
        self._core = core
        self._wait = wait
        self._tunnels = tunnels
        self._contacts = contacts
        self._enabled = enabled
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, _Watched] = {}
        self._any = asyncio.Event()

    def entered(self, core: _core.Connection) -> None:
        """There is a connection."""
        if self._enabled and core.close_reason is None:
            self._watched.setdefault(core.id, _Watched(core))
            self._any.set()

    def ended(self, connection_id: int) -> None:
        """A connection has ended."""
        watched = self._watched.pop(connection_id, None)
        if watched is not None and watched.task is not None:
            watched.task.cancel()

    def abandon(self) -> list[asyncio.Task[None]]:
        """Stop everything without waiting; what is about to end."""
        tasks = [watched.task for watched in self._watched.values() if watched.task is not None]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        return tasks

    async def run(self) -> None:
        """Watch, until cancelled."""
        while True:
            await self._any.wait()
            waits = [self._look(watched) for watched in tuple(self._watched.values())]
            if not self._watched:
                self._any.clear()
            await asyncio.sleep(min(waits, default=LOOK))

    def _look(self, watched: _Watched) -> float:
        """Start looking elsewhere if it is time; seconds until the next look."""
        stats = watched.core.stats()
        sent, received = stats["sent_packets"], stats["received_packets"]
        now = self._loop.time()
        if received != watched.received:
            watched.unanswered_since = None
        elif sent != watched.sent and watched.unanswered_since is None:
            watched.unanswered_since = now
        watched.sent, watched.received = sent, received
        if watched.unanswered_since is None:
            return LOOK
        paths = watched.core.paths()
        for path in paths:
            if path.method != "relayed":
                watched.places[from_core(*path.remote)] = None
        patience = SILENCE + SILENCE_ROUND_TRIPS * max((path.rtt for path in paths), default=0.0)
        left = watched.unanswered_since + patience - now
        if left > 0:
            return min(left, LOOK)
        if watched.task is None or watched.task.done():
            watched.task = asyncio.create_task(
                self._look_elsewhere(watched), name=f"anyreach-fallback {watched.core.id}"
            )
        return LOOK

    async def _look_elsewhere(self, watched: _Watched) -> None:
        """Try all ways at once; the first that answers carries on.

        Tunnels may have fallen silent with the connection, at either end: to see to them is all
        that the side that was dialed can do.
        """
        for tunnel in self._tunnels:
            if tunnel.up:
                tunnel.core.probe()
        if not watched.core.outbound:
            await asyncio.sleep(PATIENCE)
            return
        ways = list(dict.fromkeys(self._ways(watched)))[:MAX_RELAYED_WAYS]
        if ways:
            logger.info("nothing comes from %s: trying other ways", PeerId(watched.core.peer_id))
            async with asyncio.TaskGroup() as tasks:
                for way in ways:
                    tasks.create_task(self._open(watched.core, way))

    def _ways(self, watched: _Watched) -> Iterator[Way]:
        """Through tunnels of our own, which may have found a carrier, and at the peer's relays."""
        reach = watched.core.reach
        bound = [
            Way(from_core(*address), relay=PeerId(relay))
            for relay, addresses in (() if reach is None else reach[1])
            for address in addresses
        ]
        places = [*watched.places] or ([] if reach is None else [from_core(*a) for a in reach[0]])
        tunnels = [tunnel for tunnel in self._tunnels if tunnel.up]
        taken = {
            (path.remote, path.via if path.tunnelled else None) for path in watched.core.paths()
        }
        for tunnel in tunnels:
            if tunnel.relay is not None and tunnel.relay.raw == watched.core.peer_id:
                yield from (_through(tunnel, address, None) for address in tunnel.node)
        for way in bound:
            yield from (_through(tunnel, way.address, way.relay) for tunnel in tunnels)
        for place in places:
            if place.scope is Scope.GLOBAL and place.port not in DENIED_PORTS:
                yield from (_through(tunnel, place, None) for tunnel in tunnels)
        for way in bound:
            if ((way.address.host, way.address.port), None) not in taken:
                yield way

    async def _open(self, connection: _core.Connection, way: Way) -> None:
        try:
            if way.tunnel is None:
                self._contacts.add(way.address.ip)
            attempt = self._core.open_path(
                connection,
                to_core(way.address),
                way.address.port,
                PATIENCE,
                via=way.tunnel,
                relayed=way.relay is not None,
                standby=True,
            )
            await self._wait(attempt.poll)
        except (_core.DialFailed, OSError) as error:
            logger.debug("no way around by %s: %s", way, error)
        except ConnectionLost:
            return


def _through(tunnel: Tunnel, address: SocketAddress, relay: PeerId | None) -> Way:
    return Way(address, relay=relay, tunnel=tunnel.core, carrier=tunnel.carrier)
