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
    from collections.abc import Collection, Iterator

    from anyreach._flow import Waiter
    from anyreach._proving import Contacts
    from anyreach._standby import Core
    from anyreach._tunnels import Tunnel, Tunnels
    from anyreach.addresses import SocketAddress

__all__ = ["Fallback"]

logger = logging.getLogger(__name__)

PATIENCE: Final = 3.0
"""Seconds one attempt has; then all ways are tried again, until the connection times out."""

MAX_PLACES: Final = 8
"""Addresses of a peer remembered from before its silences: it is hardly at an older one."""


@dataclass(slots=True)
class _Silence:
    """What is done about one connection."""

    # Where the peer was when it fell silent, the latest last.
    places: dict[SocketAddress, None] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class Fallback:
    """Of the connections of one node.

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
        self._silences: dict[int, _Silence] = {}

    def silent(self, core: _core.Connection) -> None:
        """Nothing is answered on any path of a connection: look elsewhere, unless that goes on."""
        if not self._enabled or core.close_reason is not None:
            return
        silence = self._silences.setdefault(core.id, _Silence())
        for path in core.paths():
            if path.method != "relayed":
                place = from_core(*path.remote)
                silence.places.pop(place, None)
                silence.places[place] = None
        while len(silence.places) > MAX_PLACES:
            del silence.places[next(iter(silence.places))]
        if silence.task is None or silence.task.done():
            silence.task = asyncio.create_task(
                self._look_elsewhere(core, silence.places), name=f"anyreach-fallback {core.id}"
            )

    def ended(self, connection_id: int) -> None:
        """A connection has ended."""
        silence = self._silences.pop(connection_id, None)
        if silence is not None and silence.task is not None:
            silence.task.cancel()

    def abandon(self) -> list[asyncio.Task[None]]:
        """Stop everything without waiting; what is about to end."""
        tasks = [silence.task for silence in self._silences.values() if silence.task is not None]
        self._silences.clear()
        for task in tasks:
            task.cancel()
        return tasks

    async def _look_elsewhere(
        self, core: _core.Connection, places: Collection[SocketAddress]
    ) -> None:
        """Try all ways at once; the first that answers carries on.

        Tunnels may have fallen silent with the connection, at either end: to see to them is all
        that the side that was dialed can do.
        """
        for tunnel in self._tunnels:
            if tunnel.up:
                tunnel.core.probe()
        if not core.outbound:
            await asyncio.sleep(PATIENCE)
            return
        ways = list(dict.fromkeys(self._ways(core, places)))[:MAX_RELAYED_WAYS]
        if ways:
            logger.info("nothing comes from %s: trying other ways", PeerId(core.peer_id))
            async with asyncio.TaskGroup() as tasks:
                for way in ways:
                    tasks.create_task(self._open(core, way))

    def _ways(self, core: _core.Connection, places: Collection[SocketAddress]) -> Iterator[Way]:
        """Through tunnels of our own, which may have found a carrier, and at the peer's relays."""
        reach = core.reach
        bound = [
            Way(from_core(*address), relay=PeerId(relay))
            for relay, addresses in (() if reach is None else reach[1])
            for address in addresses
        ]
        places = list(places) or ([] if reach is None else [from_core(*a) for a in reach[0]])
        tunnels = [tunnel for tunnel in self._tunnels if tunnel.up]
        taken = {(path.remote, path.via if path.tunnelled else None) for path in core.paths()}
        for tunnel in tunnels:
            if tunnel.relay is not None and tunnel.relay.raw == core.peer_id:
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
