"""The node: one socket, its connections, and everything that goes on in the background."""

from __future__ import annotations

import asyncio
import logging
import math
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from weakref import WeakMethod, WeakSet

from anyreach import metrics
from anyreach._key_lock import claim
from anyreach._mailbox import Mailbox
from anyreach._running import Running
from anyreach.config import P2pConfig
from anyreach.errors import ConfigError, NodeClosed
from anyreach.identity import Identity
from anyreach.peer import Ticket, parse_peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from types import TracebackType
    from typing import Self

    from anyreach._key_lock import KeyLock
    from anyreach.addresses import IpMode
    from anyreach.connection import Connection
    from anyreach.events import Event
    from anyreach.metrics import NodeMetrics
    from anyreach.nat import NatReport
    from anyreach.netcheck import NetworkReport
    from anyreach.peer import PeerId, PeerLike

__all__ = ["EVENT_BACKLOG", "Node"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

EVENT_BACKLOG: Final = 1024
"""Events kept for one subscriber of :meth:`Node.events`. A node makes a few per connection, so
this is one change of every connection it may have by default; a reader further behind than that
wants the news, not the history."""


class Node:
    """A node on the running event loop: accepts and makes connections on one UDP socket.

    ::

        async with Node(P2pConfig(known_peers=["relay.example.org:9000"])) as node:
            connection = await node.connect(peer)

    All nodes are equal. The node owns its background tasks: none outlives :meth:`close`, and
    an error in one is logged, closes the node and is raised where the node is used next. A node
    that is forgotten instead of closed makes a :class:`ResourceWarning`, and closes.

    Args:
        config: how to behave; the defaults if ``None``.
    """

    def __init__(self, config: P2pConfig | None = None) -> None:
        self._config = P2pConfig() if config is None else config
        self._recorder = metrics.Recorder()
        self._subscribers: WeakSet[Mailbox[Event]] = WeakSet()
        self._running: Running | None = None
        self._starting = False
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self._failure: BaseException | None = None
        self._key_lock: KeyLock | None = None

    # Life

    async def start(self) -> Self:
        """Bind the socket and begin to accept and to connect known peers.

        ``async with`` calls this and :meth:`close`.

        Raises:
            BindError: the address cannot be bound.
            IdentityError: the key file is unusable, or in use by another running node
                (:class:`~anyreach.IdentityInUse`).
            NodeClosed: the node was closed; make a new one.
            RuntimeError: the node was started before.
        """
        if self._closed:
            raise self._closed_error()
        if self._starting:
            raise RuntimeError("the node was started already")
        self._starting = True
        try:
            identity, self._key_lock = await _identity(self._config)
            if self._closed:
                raise self._closed_error()
            # Weakly, so that a node nobody has any more is noticed: see __del__.
            emit, fail = _weakly(self._emit), _weakly(self._fail)
            self._running = Running(self._config, identity, self._recorder, emit, fail)
        except BaseException:
            self._starting = False  # a failed start may be tried again
            self._release_key()
            raise
        self._running.begin()
        return self

    async def close(self) -> None:
        """Close every connection and the socket; the peers learn at once. Idempotent.

        Returns when port and key file are free and no background task is left. If the call is
        cancelled, closing goes on.
        """
        self._closed = True
        if self._running is None:
            self._end_subscriptions()
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._shut(self._running), name="anyreach-close")
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
        if self._failure is not None and error is None:
            raise self._closed_error() from self._failure

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        running: Running | None = getattr(self, "_running", None)
        if running is None or self._closed:
            return
        warn(f"unclosed node {self!r}", ResourceWarning, source=self, stacklevel=2)
        running.abandon()
        running.on_loop(partial(_forget, list(self._subscribers)))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._running else "not started"
        who = f" {self._running.me.short}…" if self._running else ""
        return f"<Node{who} {state}>"

    # About itself

    @property
    def config(self) -> P2pConfig:
        """The configuration the node was made with."""
        return self._config

    @property
    def peer_id(self) -> PeerId:
        """Who this node is; known once it was started, and still after it was closed."""
        return self._started().me

    @property
    def identity(self) -> Identity:
        """The key pair behind :attr:`peer_id`."""
        return self._started().identity

    @property
    def ip_mode(self) -> IpMode:
        """The families that were bound; fewer than configured where the system has only one."""
        return self._started().ip_mode

    @property
    def addresses(self) -> tuple[str, ...]:
        """Own addresses as ``ip:port``: bound, of this host's interfaces, and external ones.

        The first is what the socket is bound to, ``[::]`` or ``0.0.0.0`` standing for every
        interface. External addresses appear once several peers agree on them.
        """
        return self._open().local.addresses()

    def ticket(self) -> Ticket:
        """PeerId and addresses in one word, for others to :meth:`connect` with."""
        running = self._open()
        return Ticket.of(running.me, running.local.offer())

    @property
    def nat(self) -> NatReport:
        """What peers' reports say about a NAT in front of this node; the last known report where
        the peers connected now say nothing new."""
        return self._open().local.nat()

    async def netcheck(self, *, timeout: float = 15.0) -> NetworkReport:
        """Look into the network this node is in: families, UDP, NAT, relays and the ways to them.

        Waits until every known peer was reached or not, then tries each way to each relay from a
        socket and with a key of its own, which leaves the node's reservations and connections
        alone. Usually takes one to six seconds.

        Args:
            timeout: seconds it may take; what is not known by then is left open in the report.

        Raises:
            ConfigError: ``timeout`` means nothing.
            BindError: there is no socket for the tries.
            NodeClosed: the node is not started, or was closed.
        """
        running = self._open()
        _check_timeout(timeout)
        report = await running.diagnosis.netcheck(timeout)
        self._open()  # one that was closed meanwhile has nothing to report
        return report

    # Connections

    async def connect(self, peer: PeerLike, *, timeout: float | None = None) -> Connection:
        """The connection to ``peer``: the existing one, or a new one.

        There is at most one connection per peer. The existing one is returned at once if the peer
        was heard from within the last second, else when it has answered, which takes a round trip;
        if it does not answer, it is dialed again. Calls for the same peer share their attempts;
        cancelling a call ends its attempts, and leaves no connection, unless another call waits
        for them.

        Args:
            peer: a :class:`PeerId`, ``"ID"``, ``"ID@HOST:PORT"``, ``"HOST:PORT"`` (whoever answers
                there) or a ticket. A PeerId alone is enough for peers that were connected before.
            timeout: seconds allowed in all; ``config.connect_timeout`` if ``None``.

        Raises:
            ConfigError: ``peer`` or ``timeout`` means nothing.
            ConnectTimeout: nobody answered, or not in time.
            PeerIdMismatch: somebody else answered.
            ConnectError: every attempt failed, or no address is known; see its ``attempts``.
            NodeClosed: the node is not started, or was closed.
        """
        running = self._open()
        address = parse_peer(peer)
        if timeout is None:
            timeout = self._config.connect_timeout
        _check_timeout(timeout)
        return await running.connect(address, timeout)

    def incoming(self) -> AsyncIterator[Connection]:
        """Connections made by peers, each once, until the node is closed.

        Several consumers share them. Those nobody took yet wait, at most ``max_connections``;
        those that ended meanwhile are left out.
        """
        return _Incoming(self, self._open())

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The open connections, in and out, oldest first."""
        return self._open().connections()

    # Observing

    def events(self) -> AsyncIterator[Event]:
        """What happens from this call on, beginning with :class:`~anyreach.events.Ready`.

        May be called before the node is started, so as to miss nothing. Each subscriber sees
        every event; one that falls more than :data:`EVENT_BACKLOG` behind loses the oldest, counted
        in ``anyreach_events_dropped_total``. Ends when the node is closed. Dropping the
        iterator ends the subscription.
        """
        if self._closed:
            raise self._closed_error()
        box: Mailbox[Event] = Mailbox(EVENT_BACKLOG)
        if self._running is not None:
            box.put(self._running.ready())
        self._subscribers.add(box)
        return box

    def metrics(self) -> NodeMetrics:
        """The counters of the node so far; also after it was closed."""
        return self._started().metrics()

    def prometheus(self) -> str:
        """:meth:`metrics` in the Prometheus text exposition format 0.0.4.

        Serve it as :data:`anyreach.metrics.CONTENT_TYPE`.
        """
        return metrics.exposition(self.metrics())

    # Inside

    def _started(self) -> Running:
        if self._running is None:
            raise NodeClosed("the node is not started; use `async with Node(config) as node:`")
        return self._running

    def _open(self) -> Running:
        running = self._started()
        if self._closed:
            raise self._closed_error()
        running.check_loop()
        return running

    def _closed_error(self) -> NodeClosed:
        if self._failure is not None:
            error = NodeClosed(f"the node was closed by an internal error: {self._failure!r}")
            error.__cause__ = self._failure
            return error
        return NodeClosed("the node was closed; make a new Node")

    def _emit(self, event: Event) -> None:
        for box in self._subscribers:
            if not box.put(event):
                self._recorder.events_dropped()

    def _fail(self, error: BaseException) -> None:
        """A background task broke: nothing works as it should any more."""
        logger.error("internal error, closing the node", exc_info=error)
        if self._failure is None:
            self._failure = error
        self._closed = True
        if self._closing is None and self._running is not None:
            self._closing = asyncio.create_task(self._shut(self._running), name="anyreach-close")

    async def _shut(self, running: Running) -> None:
        try:
            await running.end()
        finally:
            self._release_key()
            self._end_subscriptions()

    def _release_key(self) -> None:
        lock, self._key_lock = self._key_lock, None
        if lock is not None:
            lock.release()

    def _end_subscriptions(self) -> None:
        error = None if self._failure is None else self._closed_error()
        for box in self._subscribers:
            box.end(error)


class _Incoming:
    """The iterator of :meth:`Node.incoming`. The core keeps the queue, so readers need none."""

    def __init__(self, node: Node, running: Running) -> None:
        self._node = node
        self._running = running

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Connection:
        try:
            return await self._running.accept()
        except NodeClosed:
            if self._node._failure is not None:
                raise self._node._closed_error() from None
            raise StopAsyncIteration from None


def _weakly(method: Callable[[T], None]) -> Callable[[T], None]:
    """A function that calls ``method`` as long as its object exists."""
    reference = WeakMethod(method)

    def call(argument: T) -> None:
        if (alive := reference()) is not None:
            alive(argument)

    return call


def _forget(boxes: Iterable[Mailbox[Event]]) -> None:
    error = NodeClosed("the node was forgotten without a close; use `async with Node(...)`")
    for box in boxes:
        box.end(error)


async def _identity(config: P2pConfig) -> tuple[Identity, KeyLock | None]:
    match config.identity:
        case None:
            return Identity.generate(), None
        case Path() as path:
            # Reads and syncs files, which may take long.
            claiming = asyncio.create_task(asyncio.to_thread(claim, path), name="anyreach-key")
            try:
                return await asyncio.shield(claiming)
            except asyncio.CancelledError:
                # The thread goes on, and would hold the key when whoever comes next asks for it.
                with suppress(Exception):
                    _, lock = await claiming
                    lock.release()
                raise
        case identity:
            return identity, None


def _check_timeout(timeout: float) -> None:
    if not (timeout > 0 and math.isfinite(timeout)):
        raise ConfigError("timeout", timeout, "use a positive number of seconds")
