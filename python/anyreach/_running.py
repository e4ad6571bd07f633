"""The part of a node that exists from start to close: endpoint, background tasks, bookkeeping."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from anyreach._assembly import make_endpoint, proxies, rejected
from anyreach._bridge import current_bridge
from anyreach._diagnosis import Diagnosis
from anyreach._improving import Improving
from anyreach._keeping import Keeping
from anyreach._live import Live
from anyreach._local import LocalView, from_core
from anyreach._outside import Outside
from anyreach._port_mapping import PortMapper
from anyreach._proving import Contacts
from anyreach._relay_service import RelayService
from anyreach._relaying import Relaying
from anyreach._tunnels import Tunnels
from anyreach._ways import Ways
from anyreach.address_book import AddressBook
from anyreach.addresses import IpMode
from anyreach.carriers import network_key
from anyreach.connection import Connection
from anyreach.dialer import Dialer
from anyreach.errors import ForkError, NodeClosed
from anyreach.events import Connected, Disconnected, Ready
from anyreach.known_peers import KnownPeers
from anyreach.peer import PeerId, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from anyreach import _core
    from anyreach._tunnels import Tunnel
    from anyreach.config import P2pConfig
    from anyreach.errors import Attempt
    from anyreach.events import Event
    from anyreach.identity import Identity
    from anyreach.metrics import NodeMetrics, Recorder
    from anyreach.peer import PeerAddress

__all__ = ["Running"]

logger = logging.getLogger(__name__)

NODE_CLOSED: Final = 0x616E_7900
"""Application error code that tells peers the node was closed in good order (docs/protocol.md)."""

_LOSSY_BATCH: Final = 1024
"""The core keeps a few thousand events; only a batch this large can be what an overflow left."""

_TURN: Final = 64
"""Events handled before the loop gets a turn; a few milliseconds, also when each is a report of
our address to be weighed against those of all others."""

_PARTING: Final = b"the node was closed"

_STOP_PATIENCE: Final = 1.0
"""Seconds for the last events to be told after the socket is closed."""


class Running:
    """Everything of a started node. Made on the loop it then belongs to.

    Args:
        config: how to behave.
        identity: who the node is.
        recorder: where everything is counted.
        emit: takes the events.
        failed: told about an error that must not happen, after which the node is of no use.

    Raises:
        BindError: the socket cannot be bound.
    """

    def __init__(
        self,
        config: P2pConfig,
        identity: Identity,
        recorder: Recorder,
        emit: Callable[[Event], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._bridge = current_bridge()
        self._config = config
        self._recorder = recorder
        self._emit = emit
        self._fail = failed
        self._tasks: set[asyncio.Task[None]] = set()
        self._live: dict[int, Live] = {}
        self._events_lost = 0
        self._endpoint = make_endpoint(config, identity)
        self.identity = identity
        self.me = identity.peer_id
        self.ip_mode = IpMode(self._endpoint.ip_mode)
        self._bound = tuple(from_core(*a) for a in self._endpoint.local_addresses())
        self._book = AddressBook()
        policy = config.candidate_policy
        self.local = LocalView(self._bound, self.ip_mode, policy, self._network_changed)
        self._known = KnownPeers(self.me, self._connect_known, self._is_connected, emit)
        self._service = RelayService(self._endpoint, config, str(self._bound[0]))
        contacts = Contacts()
        self._tunnels = Tunnels(
            self._endpoint,
            self._bridge.wait,
            mode=self.ip_mode,
            proxies=proxies(config),
            ca_file=None if config.ca_file is None else str(config.ca_file),
            allow_tls_inspection=config.allow_tls_inspection,
            network=lambda: network_key(self.local.interfaces),
            used=self._carries_connections,
            changed=lambda _: self._tunnels_changed(),
            contacts=contacts,
            recorder=recorder,
        )
        self._relaying = Relaying(
            self.me,
            self._endpoint,
            self._bridge.wait,
            tunnels=self._tunnels,
            policy=config.relay_policy,
            wanted=config.relay_reservations if config.relay_fallback else 0,
            direct=config.direct,
            findable=config.findable,
            load=self._service.load,
            local=self.local,
            contacts=contacts,
            emit=emit,
            recorder=recorder,
        )
        ways = Ways(
            self.me,
            self._endpoint,
            self._bridge.wait,
            tunnels=self._tunnels,
            mode=self.ip_mode,
            around=self.local,
            joining=self._known.joining,
            direct=config.direct,
            relayed=config.relay_fallback,
            delay=config.attempt_delay,
        )
        self._improving = Improving(
            config,
            self._endpoint,
            self._bridge.wait,
            tunnels=self._tunnels,
            local=self.local,
            contacts=contacts,
            recorder=recorder,
            emit=emit,
            probed=self._probed,
        )
        self._dialer = Dialer(
            self.me,
            self._endpoint,
            self._bridge.wait,
            book=self._book,
            policy=policy,
            local=self.local.candidates,
            direct=config.direct,
            attempt_delay=config.attempt_delay,
            handshake_timeout=config.handshake_timeout,
            won=self._won,
            recorder=recorder,
            contacts=contacts,
            ways=ways,
            upgrades=self._improving.upgrades,
        )
        self._dialer.known_failures = self._known.failures
        self._mapper = PortMapper(
            self._endpoint,
            self._bridge.wait,
            enabled=config.port_mapping and config.direct,
            changed=self._mapping_changed,
            recorder=recorder,
        )
        self.local.mapped = lambda: self._mapper.addresses
        self.diagnosis = Diagnosis(
            self.me,
            config,
            self.ip_mode,
            self._bridge.wait,
            local=self.local,
            known=self._known,
            cores=self._endpoint.connections,
            tunnels=self._tunnels,
            relaying=self._relaying,
            mapper=self._mapper,
        )
        self._keeping = Keeping(config.keep_alive_interval)
        self._outside = Outside(
            self._endpoint,
            self.local,
            relaying=self._relaying,
            improving=self._improving,
            mapper=self._mapper,
            emit=emit,
            recorder=recorder,
        )

    def begin(self) -> None:
        """Start the background tasks. The first event is told at once."""
        logger.info("node %s listens on %s", self.me, ", ".join(map(str, self._bound)))
        self._emit(self.ready())
        self._spawn(self._watch(), "anyreach-events")
        self._spawn(self._relaying.run(), "anyreach-relaying")
        self._spawn(self._tunnels.run(), "anyreach-tunnels")
        for job, name in self._improving.jobs():
            self._spawn(job, name)
        self._known.expect(self._config.known_peers)
        for entry in self._config.known_peers:
            self._spawn(self._known.keep(entry), f"anyreach-known-peer {entry}")

    async def end(self) -> None:
        """Close connections and socket, tell the last events, end all tasks."""
        watcher = {task for task in self._tasks if task.get_name() == "anyreach-events"}
        await self._stop(self._tasks - watcher)
        await self._dialer.close()
        await self._improving.end()
        await self._mapper.end()
        await self._tunnels.end(self._close_connections)
        self._endpoint.close(NODE_CLOSED, _PARTING)
        await self._bridge.wait(self._endpoint.poll_closed)
        if watcher:
            await asyncio.wait(watcher, timeout=_STOP_PATIENCE)
        await self._stop(set(self._tasks))
        logger.info("node %s is closed", self.me)

    def _close_connections(self) -> None:
        for core in self._endpoint.connections():
            core.close(NODE_CLOSED, _PARTING)

    def abandon(self) -> None:
        """Close without waiting for anything. From any thread, whether the loop still runs or not.

        The peers are told, and the port is free a moment later.
        """
        with suppress(ForkError):  # it is the parent's
            self._endpoint.abandon()
        self.on_loop(self._drop)

    def _drop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._improving.abandon()
        self._mapper.abandon()
        self._tunnels.abandon()

    def on_loop(self, call: Callable[[], object]) -> None:
        """Have the loop call this, if it ever runs again."""
        with suppress(RuntimeError):  # the loop is closed, and its tasks are gone
            self._loop.call_soon_threadsafe(call)

    def check_loop(self) -> None:
        """Refuse to work on another event loop than the node's."""
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this node belongs to another event loop; make one node per loop")

    def ready(self) -> Ready:
        """The event that says where the node listens."""
        return Ready(
            peer_id=self.me,
            udp=self.local.addresses(),
            tcp=self._service.tcp,
            ip_mode=self.ip_mode.value,
            ticket=Ticket.of(self.me, self.local.offer()),
        )

    async def connect(self, peer: PeerAddress, timeout: float) -> Connection:
        """See :meth:`anyreach.Node.connect`."""
        if not peer.addresses:
            self._improving.expect()
        return self._adopt(await self._dialer.connect(peer, timeout))

    async def accept(self) -> Connection:
        """The next connection a peer made; raises NodeClosed at the end."""
        return self._adopt(await self._bridge.wait(self._endpoint.poll_incoming))

    def connections(self) -> tuple[Connection, ...]:
        """The open connections, oldest first."""
        return tuple(
            live.connection for live in self._live.values() if live.core.close_reason is None
        )

    def metrics(self) -> NodeMetrics:
        """See :meth:`anyreach.Node.metrics`."""
        connections: dict[str, int] = {}
        for live in self._live.values():
            paths = live.core.paths()
            self._recorder.paths(live.core.id, paths)
            if live.core.close_reason is None and paths:
                connections[paths[0].method] = connections.get(paths[0].method, 0) + 1
        self._tunnels.count()
        relay = self._service.stats()
        self._recorder.relayed("relay", 0, relay.sent, relay.received)
        return self._recorder.snapshot(
            connections=connections,
            rejected=rejected(self._endpoint.counters()) | relay.rejected,
            relay_sessions=relay.sessions,
            relay_reservations=self._relaying.reservations,
        )

    # Tasks

    def _spawn(self, job: Coroutine[None, None, None], name: str) -> None:
        task = self._loop.create_task(job, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    @staticmethod
    async def _stop(tasks: Iterable[asyncio.Task[None]]) -> None:
        waiting = [task for task in tasks if not task.done()]
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    async def _connect_known(self, peer: PeerAddress) -> Connection:
        # Nobody else is asked: these are the peers others are found through.
        core = await self._dialer.connect(peer, self._config.connect_timeout, search=False)
        return self._adopt(core)

    def _carries_connections(self, tunnel: Tunnel) -> bool:
        relay = None if tunnel.relay is None else bytes(tunnel.relay)
        # Also those the events have not told of yet.
        return any(
            path.tunnelled and path.via == relay
            for core in self._endpoint.connections()
            for path in core.paths()
        )

    def _network_changed(self) -> None:
        self._book.network_changed()
        self._keeping.network_changed()
        self._relaying.network_changed()
        self._tunnels.network_changed()
        self._improving.network_changed()

    def _tunnels_changed(self) -> None:
        self._relaying.tunnels_changed()
        self._improving.tunnels_changed()

    def _mapping_changed(self) -> None:
        self._relaying.changed()
        self._improving.own_news()

    def _probed(self) -> None:
        self._outside.changed()
        self._outside.tell()
        self._relaying.changed()

    def _is_connected(self, peer_id: PeerId) -> bool:
        return any(
            live.peer_id == peer_id and live.core.close_reason is None
            for live in self._live.values()
        )

    # Events of the core

    async def _watch(self) -> None:
        while True:
            try:
                batch = await self._bridge.wait(self._endpoint.poll_events)
            except NodeClosed:
                return
            for number, event in enumerate(batch, 1):
                self._handle(event)
                if number % _TURN == 0:
                    await asyncio.sleep(0)
            self._outside.tell()
            if len(batch) >= _LOSSY_BATCH:
                await self._reconcile()

    def _handle(self, event: tuple[Any, ...]) -> None:
        match event:
            case ("connected", core):
                if core.id not in self._live:
                    self._enter(core)
                self._dialer.arrived(core, PeerId(core.peer_id))
            case ("disconnected", core, reason, _, _):
                self._leave(core, reason)
            case ("observed", core, path_id, ip, port, seconds):
                self._recorder.observed(seconds)
                live = self._live.get(core.id)
                if live is not None:
                    address, now = from_core(ip, port), self._loop.time()
                    self._outside.observed(live.peer_id, core, path_id, address, now)
            case ("path", core, _, silent):
                if silent is not None:
                    self._recorder.failed_over(silent)
                self._paths_changed(core, silent)
            case ("reach", core):
                self._improving.reach_changed(core)
            case ("network", reason):
                logger.info("the addresses of this host have changed: %s", reason)
                self.local.look(moved=reason == "source-gone")
            case _:
                self._improving.handle(event)

    def _won(self, core: _core.Connection, seconds: float, attempts: tuple[Attempt, ...]) -> None:
        connection = self._adopt(core, seconds)
        if not connection.attempts:  # else it was there before, and these did not make it
            connection._attempts = attempts

    def _adopt(self, core: _core.Connection, seconds: float | None = None) -> Connection:
        """The object for a connection, entered into the books if that was not done before."""
        live = self._live.get(core.id)
        if live is None:
            if core.close_reason is not None:
                return Connection(core)  # its end may have been told already
            live = self._enter(core, seconds)
        return live.connection

    def _enter(self, core: _core.Connection, seconds: float | None = None) -> Live:
        live = self._live[core.id] = Live(core)
        live.connection._account = partial(self._improving.account, core)
        course = live.course
        if seconds is None and core.outbound and course is not None:
            seconds = self._dialer.elapsed(live.peer_id, course.remote)
        if seconds is None:
            seconds = core.handshake_seconds
        self._recorder.connected(course.method if course else "direct", seconds)
        if course is not None and course.method != "relayed":
            self._dialer.book.remember(live.peer_id, course.remote, course.rtt)
        self._emit(
            Connected(
                peer_id=live.peer_id,
                direction="out" if core.outbound else "in",
                method=course.method if course else "direct",
                remote=str(course.remote) if course else "",
                ms=seconds * 1000,
                rtt_ms=course.rtt * 1000 if course else 0.0,
                group=core.key_exchange_group,
                relay=course.relay if course else None,
            )
        )
        self._known.arrived(live.peer_id)
        self._relaying.arrived(core, known=self._known.is_known(live.peer_id))
        self._improving.entered(core)
        return live

    def _leave(self, core: _core.Connection, reason: str) -> None:
        live = self._live.pop(core.id, None)
        if live is None:
            return
        totals = core.stats()
        self._recorder.ended(core.id, totals["sent_bytes"], totals["received_bytes"])
        self._emit(Disconnected(live.peer_id, reason))
        self._improving.ended(core.id)
        self._keeping.ended(core.id)
        if all(other.peer_id != live.peer_id for other in self._live.values()):
            self._outside.left(live.peer_id)
            self._relaying.left(live.peer_id)

    def _paths_changed(self, core: _core.Connection, silent: float | None = None) -> None:
        live = self._live.get(core.id)
        if live is None:
            return
        paths = core.paths()
        self._recorder.paths(core.id, paths)
        before = live.course
        change = live.follow(paths, failed_over=silent is not None)
        self._keeping.changed(core, before, live.course, silent, self._loop.time())
        if paths:  # else the next ones tell more
            self._improving.paths_changed(core, failed_over=silent is not None)
        if change is None or before is None or live.course is None:
            return
        if live.course.method != "relayed":
            self._dialer.book.remember(live.peer_id, live.course.remote, live.course.rtt)
        self._recorder.path_switched(before.method, change.method, change.reason)
        self._emit(change)

    async def _reconcile(self) -> None:
        """Bring the books in line with the core if it had to drop events."""
        lost = self._endpoint.counters()["events_dropped"]
        if lost == self._events_lost:
            return
        logger.warning("%d events of the core were lost", lost - self._events_lost)
        self._events_lost = lost
        for live in list(self._live.values()):
            if (ended := live.core.close_reason) is not None:
                self._leave(live.core, ended[0])
        for number, core in enumerate(self._endpoint.connections(), 1):
            self._adopt(core)
            self._paths_changed(core)
            if number % _TURN == 0:
                await asyncio.sleep(0)
