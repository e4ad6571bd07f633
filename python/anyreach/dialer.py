"""From a peer to a connection: which callers share a race, and where addresses come from.

:class:`Dialer` finds the addresses to try; one :class:`~anyreach._flow.Flow` tries them for all
callers that want the same peer at the same time, and lives as long as one of them waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from anyreach._flow import Flow
from anyreach._local import from_core
from anyreach.addresses import HostPort, SocketAddress
from anyreach.errors import ConnectError, NodeClosed
from anyreach.liveness import Liveness

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach import _core
    from anyreach._flow import Endpoint, Waiter
    from anyreach._proving import Contacts
    from anyreach._upgrades import Upgrades
    from anyreach._ways import Ways
    from anyreach.address_book import AddressBook
    from anyreach.candidates import Candidate, CandidatePolicy
    from anyreach.errors import Attempt
    from anyreach.metrics import Recorder
    from anyreach.peer import PeerAddress, PeerId

__all__ = ["Dialer"]


class Dialer:
    """Reaches peers for one node.

    Args:
        me: PeerId of the node.
        endpoint: the core's endpoint.
        wait: awaits a ``poll_*`` method of the core on the running loop.
        book: where peers were before; the caller enters what it learns.
        policy: which pairs of addresses are worth an attempt.
        local: the node's own candidates now.
        direct: whether peers may be dialed without relays, known peers aside.
        attempt_delay: seconds between the starts of attempts (RFC 8305 8).
        handshake_timeout: seconds one attempt may take.
        won: told about a connection a race ended with, the seconds it took and what was tried,
            before any caller gets it.
        recorder: where pairs and candidates are counted.
        contacts: told whom something is sent to.
        ways: finds peers through other peers, and ways through relays; ``None`` to dial only.
        upgrades: finds better paths for connections that go through a relay.
    """

    def __init__(
        self,
        me: PeerId,
        endpoint: Endpoint,
        wait: Waiter,
        *,
        book: AddressBook,
        policy: CandidatePolicy,
        local: Callable[[], tuple[Candidate, ...]],
        direct: bool = True,
        attempt_delay: float,
        handshake_timeout: float,
        won: Callable[[_core.Connection, float, tuple[Attempt, ...]], object],
        recorder: Recorder,
        contacts: Contacts | None = None,
        ways: Ways | None = None,
        upgrades: Upgrades | None = None,
    ) -> None:
        self.me = me
        self.endpoint = endpoint
        self.wait = wait
        self.book = book
        self.policy = policy
        self.local = local
        self.direct = direct
        self.attempt_delay = attempt_delay
        self.handshake_timeout = handshake_timeout
        self.won = won
        self.recorder = recorder
        self.contacts = contacts
        self.ways = ways
        self.upgrades = upgrades
        self.known_failures: Callable[[], tuple[Attempt, ...]] = tuple
        self._flows: dict[object, Flow] = {}
        self._liveness = Liveness()
        self._closed = False

    async def connect(
        self, peer: PeerAddress, timeout: float, *, search: bool = True
    ) -> _core.Connection:
        """The connection to ``peer``: an existing one, or a new one within ``timeout`` seconds.

        With ``search``, other peers are asked where it is. Without, it is one that others are
        found through, and dialed directly in any case.

        An existing one is returned only if the peer answers on it, or was heard from a moment
        ago; else it is dialed again. Cancelling the call ends its attempts and closes what they
        have made, unless another caller waits for the same peer.

        Raises:
            ConnectTimeout: nobody answered, or time is up.
            PeerIdMismatch: somebody else answered.
            ConnectError: every attempt failed, or there is no address to try.
            NodeClosed: the node is or was closed.
        """
        if self._closed:
            raise _closed()
        if peer.peer_id == self.me:
            raise ConnectError("this PeerId is the node's own; a node does not dial itself")
        existing = None
        if peer.peer_id is not None:
            existing = self.endpoint.connection(bytes(peer.peer_id))
            if existing is not None and self._is_fresh(existing, peer):
                return existing
        flow = self._join(peer, existing, search=search)
        flow.waiters += 1
        try:
            try:
                async with asyncio.timeout(timeout) as scope:
                    # Shielded: other callers may share the flow.
                    connection = await asyncio.shield(flow.task)
            except TimeoutError:
                if not scope.expired():
                    raise  # ConnectTimeout of the flow itself
                if not flow.settled:
                    raise flow.failure(timeout) from None
                connection = await asyncio.shield(flow.task)  # answered at the last moment
            flow.deliver()
            return connection
        finally:
            flow.waiters -= 1
            if flow.waiters == 0:
                await self._leave(flow)

    def joining(self) -> tuple[Attempt, ...]:
        """What was tried to reach peers that could help, now or when it failed last."""
        running = [flow.log.attempts() for flow in self._flows.values() if not flow.searches]
        return (*self.known_failures(), *(attempt for flow in running for attempt in flow))

    def arrived(self, connection: _core.Connection, peer_id: PeerId) -> None:
        """Take note of a new connection, in or out: whoever is dialing that peer has it."""
        flow = self._flows.get(peer_id)
        if flow is not None:
            flow.arrived(connection)

    def answered(self, connection: _core.Connection) -> None:
        """Take note that the peer was asked on ``connection`` and has answered."""
        received = connection.stats()["received_packets"]
        self._liveness.answered(connection.id, received, asyncio.get_running_loop().time())

    def elapsed(self, peer_id: PeerId, remote: SocketAddress) -> float | None:
        """Seconds since ``connect()`` was called for a peer, ``None`` if nobody is waiting."""
        for flow in self._flows.values():
            if flow.peer.peer_id == peer_id or (
                flow.peer.peer_id is None and remote in flow.race.started
            ):
                return flow.elapsed()
        return None

    async def close(self) -> None:
        """End every flow; its callers get :class:`~anyreach.NodeClosed`. Idempotent."""
        self._closed = True
        flows = list(self._flows.values())
        self._flows.clear()
        for flow in flows:
            flow.fail(_closed())
        if flows:
            await asyncio.wait([flow.task for flow in flows])

    def _is_fresh(self, connection: _core.Connection, peer: PeerAddress) -> bool:
        """Whether there is no need to ask ``peer`` if it is still there on ``connection``."""
        paths = connection.paths()
        if not paths or connection.close_reason is not None:
            return False
        remotes = {from_core(*path.remote) for path in paths}
        given = [host.address for host in peer.addresses]
        if given and all(address is not None and address not in remotes for address in given):
            return False  # the caller says that the peer is somewhere else now
        received = connection.stats()["received_packets"]
        youngest = min(path.age for path in paths)
        now = asyncio.get_running_loop().time()
        return self._liveness.is_fresh(connection.id, received, youngest, now)

    def _join(self, peer: PeerAddress, existing: _core.Connection | None, *, search: bool) -> Flow:
        direct = self.direct or not search
        search = search and peer.peer_id is not None and self.ways is not None
        addresses = peer.addresses
        source = "given"
        if not addresses and peer.peer_id is not None:
            known = self.book.addresses(peer.peer_id)
            addresses = tuple(HostPort(a.host, a.port) for a in known)
            source = "remembered"
        key: object = peer.peer_id if peer.peer_id is not None else peer.addresses
        flow = self._flows.get(key)
        if flow is None or flow.task.done():
            if not addresses and existing is None and not search:
                raise ConnectError(
                    f"no address is known for {peer.peer_id}: it is not connected and was not"
                    " before; pass ID@HOST:PORT or a ticket"
                )
            flow = self._flows[key] = fresh = Flow(self, peer, existing)
            fresh.task.add_done_callback(lambda _: self._forget(key, fresh))
        if direct:
            flow.go_straight()
        flow.add(addresses, source)
        if search:
            flow.search()
        return flow

    def _forget(self, key: object, flow: Flow) -> None:
        if self._flows.get(key) is flow:
            del self._flows[key]

    async def _leave(self, flow: Flow) -> None:
        flow.abandon()
        if flow.task.done():
            return
        for key in [key for key, other in self._flows.items() if other is flow]:
            del self._flows[key]  # a new caller starts afresh
        flow.task.cancel()
        await asyncio.wait([flow.task])


def _closed() -> NodeClosed:
    return NodeClosed("the node was closed while connecting; make a new Node")
