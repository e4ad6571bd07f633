"""Staying connected to the peers a node was told about.

One task per entry of ``known_peers``: dial, wait for the end of the connection, dial again, with
the pauses of :mod:`anyreach.backoff`. An entry is a place; which peer lives there may only be
known after it answered.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from anyreach._attempts import SELF
from anyreach.backoff import (
    failures_when_replaced,
    next_failures,
    retry_delay,
    yielding_delay,
)
from anyreach.errors import ConnectError, NodeClosed
from anyreach.events import KnownPeerState
from anyreach.peer import PeerAddress, PeerId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from anyreach.connection import Connection
    from anyreach.errors import Attempt
    from anyreach.events import Event
    from anyreach.peer import KnownPeer

__all__ = ["KnownPeers"]

logger = logging.getLogger(__name__)

ITSELF: Final = "this is the node itself; the entry is ignored"

SAME_KEY: Final = (
    "the peer has given up our connection for another one with our PeerId: the same key is"
    " probably in use by another node; give each node a key file of its own"
)

_SUCCESSION: Final = 1.0
"""Seconds within which the connection that replaces one is known here, too, if it is ours."""


class KnownPeers:
    """Keeps one node connected to its known peers.

    Args:
        me: PeerId of the node, to tell it apart from its peers.
        connect: reaches a peer; raises as :meth:`anyreach.Node.connect`.
        connected: whether there is a connection to a peer now.
        emit: takes the events.
        fraction: random numbers from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        me: PeerId,
        connect: Callable[[PeerAddress], Awaitable[Connection]],
        connected: Callable[[PeerId], bool],
        emit: Callable[[Event], None],
        fraction: Callable[[], float] = random.random,
    ) -> None:
        self._me = me
        self._connect = connect
        self._connected = connected
        self._emit = emit
        self._fraction = fraction
        # Which entry speaks for a connected peer, so that two entries of one peer count once.
        self._holders: dict[PeerId, KnownPeer] = {}
        # Entries that pause before the next attempt, by the peer they wait for.
        self._pausing: dict[KnownPeer, tuple[PeerId, asyncio.Event]] = {}
        # All entries, with the peer that was found there last.
        self._found: dict[KnownPeer, PeerId | None] = {}
        # Entries that have not been tried to the end once, and who waits for them.
        self._first: set[KnownPeer] = set()
        self._expecting: set[asyncio.Future[bool]] = set()
        # What was tried in vain the last time, of those that are not connected.
        self._attempts: dict[KnownPeer, tuple[Attempt, ...]] = {}

    def expect(self, entries: Iterable[KnownPeer]) -> None:
        """Say which entries are going to be kept, before the first of them is."""
        for entry in entries:
            self._found[entry] = entry.peer_id
            self._first.add(entry)

    def joining(self) -> asyncio.Future[bool]:
        """Waits until a peer is connected, or no entry is on its first attempt any more.

        The result says whether more peers may be there now, or soon.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._first:
            self._expecting.add(future)
            future.add_done_callback(self._expecting.discard)
        else:
            future.set_result(False)
        return future

    def failures(self) -> tuple[Attempt, ...]:
        """The latest attempts to reach those known peers that were not reached."""
        return tuple(attempt for attempts in self._attempts.values() for attempt in attempts)

    def states(self) -> tuple[tuple[KnownPeer, PeerId | None, str | None], ...]:
        """The entries, who was found there last, and why the latest attempt failed, if it did."""
        return tuple(
            (entry, peer_id, _failure(self._attempts.get(entry, ())))
            for entry, peer_id in self._found.items()
        )

    def _tried(self, entry: KnownPeer, attempts: tuple[Attempt, ...] = ()) -> None:
        self._attempts.pop(entry, None)
        if attempts:
            self._attempts[entry] = attempts
        self._first.discard(entry)
        if not self._first:
            self._tell(False)

    def _tell(self, more: bool) -> None:
        for future in tuple(self._expecting):
            if not future.done():
                future.set_result(more)

    def arrived(self, peer_id: PeerId) -> None:
        """A connection to ``peer_id`` exists: an entry that pauses before dialing it goes on."""
        self._tell(True)
        for waits_for, wake in self._pausing.values():
            if waits_for == peer_id:
                wake.set()

    def is_known(self, peer_id: PeerId) -> bool:
        """Whether the user named this peer, or the place where it was found."""
        return peer_id in self._found.values()

    async def keep(self, entry: KnownPeer) -> None:
        """Keep ``entry`` connected until cancelled; returns only if it is the node itself."""
        peer_id = entry.peer_id
        failures = 0
        while True:
            try:
                connection = await self._connect(PeerAddress(entry.peer_id, entry.addresses))
            except NodeClosed:
                return
            except ConnectError as error:
                self._tried(entry, error.attempts)
                if peer_id == self._me or _only_itself(error.attempts):
                    logger.warning("known peer %s: %s", entry, ITSELF)
                    self._failed(entry, peer_id, ITSELF)
                    return
                self._failed(entry, peer_id, str(error))
                failures = next_failures(failures, None)
                await self._pause(entry, peer_id, retry_delay(failures, self._fraction()))
                continue
            self._tried(entry)
            peer_id = self._found[entry] = connection.peer_id
            lasted, reason = await self._hold(entry, connection)
            if reason == "replaced" and not await self._is_succeeded(entry, peer_id):
                logger.warning("known peer %s: %s", entry, SAME_KEY)
                self._failed(entry, peer_id, SAME_KEY)
                failures = failures_when_replaced(failures, lasted)
                await self._pause(entry, peer_id, yielding_delay(failures, self._fraction()))
                continue
            failures = next_failures(failures, lasted)
            # A peer that was restarted is back at once; one that keeps dropping us has to wait.
            if failures > 1:
                await self._pause(entry, peer_id, retry_delay(failures, self._fraction()))

    async def _hold(self, entry: KnownPeer, connection: Connection) -> tuple[float, str]:
        """Wait for the end of ``connection``; how many seconds that took, and the reason."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        peer_id = connection.peer_id
        speaks = peer_id not in self._holders
        if speaks:
            self._holders[peer_id] = entry
            self._emit(KnownPeerState(peer_id, _address(entry), "connected"))
        else:
            logger.debug("known peer %s is %s as well", entry, self._holders[peer_id])
        try:
            lost = await connection.wait_closed()
        finally:
            if speaks:
                del self._holders[peer_id]
        return loop.time() - begun, lost.reason

    async def _is_succeeded(self, entry: KnownPeer, peer_id: PeerId) -> bool:
        """Whether a newer connection of this node has replaced the one that ended."""
        if not self._connected(peer_id):
            await self._pause(entry, peer_id, _SUCCESSION)
        return self._connected(peer_id)

    async def _pause(self, entry: KnownPeer, peer_id: PeerId | None, seconds: float) -> None:
        wake = asyncio.Event()
        if peer_id is not None:
            self._pausing[entry] = (peer_id, wake)
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            pass
        finally:
            self._pausing.pop(entry, None)

    def _failed(self, entry: KnownPeer, peer_id: PeerId | None, error: str) -> None:
        self._emit(KnownPeerState(peer_id, _address(entry), "failed", error))


def _failure(attempts: tuple[Attempt, ...]) -> str | None:
    return "; ".join(f"{a.address}: {a.detail}" for a in attempts) or None


def _only_itself(attempts: tuple[Attempt, ...]) -> bool:
    """Whether the node reached itself and nothing else may be behind the entry."""
    reasons = {attempt.reason for attempt in attempts}
    return SELF in reasons and reasons <= {SELF, "family", "unreachable"}


def _address(entry: KnownPeer) -> str:
    return ",".join(map(str, entry.addresses))
