"""What every command does around its own work: a node, its events, its metrics, its services."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from anyreach import Node
from anyreach.errors import ConnectError, IdentityInUse
from anyreach.events import Connected
from anyreach.identity import default_identity_path
from anyreach.metrics import CONTENT_TYPE
from anyreach.transfer.errors import TransferError, TransferErrorCode
from anyreach.transfer.frames import read_frame
from anyreach.transfer.messages import parse_reply

from .header import encode_header
from .metrics_server import serve_metrics
from .options import config_from
from .services import Services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping

    from anyreach import Connection, Stream
    from anyreach.config import P2pConfig, P2pOptions
    from anyreach.events import Event
    from anyreach.peer import PeerAddress, PeerId

    from .output import Output
    from .runner import Context

__all__ = ["Session", "open_service", "read_acceptance", "running_node"]

_log = logging.getLogger(__name__)

#: Events every command tells; ``node``, ``receive`` and ``connect`` tell all.
_USUAL: Final = frozenset({"connected", "path"})

#: Seconds to wait until a connection was told; only a node that is closing takes so long.
_TELL_SECONDS: Final = 1.0

#: Seconds a peer has to accept a service: it only looks at the header.
_SERVICE_SECONDS: Final = 10.0


@contextlib.asynccontextmanager
async def running_node(
    context: Context,
    *,
    bind: str,
    defaults: P2pOptions | None = None,
    options: P2pOptions | None = None,
    services: Services | None = None,
    all_events: bool = False,
    own_identity: bool = False,
) -> AsyncIterator[Session]:
    """A started node that tells its events, and answers its peers.

    Args:
        bind, defaults, options: as for :func:`anyreach.cli.options.config_from`.
        services: what peers are offered; nothing if ``None``.
        all_events: tell every event, not only what concerns a single dial.
        own_identity: never stand in for a default identity in use with an ephemeral one.

    Raises:
        ConfigError, IdentityError, BindError: the node cannot be started as configured.
        OSError: the metrics address cannot be bound.
    """
    config = config_from(
        context.args, context.output, bind=bind, defaults=defaults, options=options
    )
    async with contextlib.AsyncExitStack() as stack:
        background = await stack.enter_async_context(_background())
        try:
            node, events = await _start(config, stack)
        except IdentityInUse:
            if own_identity or context.args.identity or config.identity != default_identity_path():
                raise
            context.output.note(
                "your key is in use by a running node: this command takes an ephemeral identity"
            )
            node, events = await _start(config.replace(identity=None), stack)
        session = Session(node, context.output, all_events=all_events)
        background(session.tell(events))
        background((services or Services(only=frozenset())).serve(node))
        if context.args.metrics is not None:
            host, port = context.args.metrics
            server = serve_metrics(host, port, node.prometheus, CONTENT_TYPE)
            host, port = await stack.enter_async_context(server)
            shown = f"[{host}]" if ":" in host else host
            context.output.note(f"metrics at http://{shown}:{port}/metrics")
        yield session


async def _start(
    config: P2pConfig, stack: contextlib.AsyncExitStack
) -> tuple[Node, AsyncIterator[Event]]:
    node = Node(config)
    events = node.events()  # subscribed before the start, to miss nothing
    return await stack.enter_async_context(node), events


class Session:
    """A running node whose events are told as they come.

    Attributes:
        node: the node.
    """

    def __init__(self, node: Node, output: Output, *, all_events: bool) -> None:
        self.node: Final = node
        self._output = output
        self._all_events = all_events
        self._quiet = False
        self._told: defaultdict[PeerId, asyncio.Event] = defaultdict(asyncio.Event)
        self._connected_at: dict[PeerId, float] = {}

    async def tell(self, events: AsyncIterator[Event]) -> None:
        """Tells events until the node is closed."""
        async for event in events:
            if isinstance(event, Connected):
                self._connected_at[event.peer_id] = time.perf_counter()
            if not self._quiet and (self._all_events or event.event in _USUAL):
                self._output.event(event.to_dict())
            if isinstance(event, Connected):
                self._told[event.peer_id].set()

    def connected_since(self, peer_id: PeerId, started: float) -> float | None:
        """Seconds from ``started``, on :func:`time.perf_counter`, until the latest connection to
        the peer was there; ``None`` if it was there already."""
        at = self._connected_at.get(peer_id)
        return None if at is None or at < started else at - started

    def conclude(self, event: dict[str, object]) -> None:
        """Tells the last event of a command: what closing the node causes is not told."""
        self._quiet = True
        self._output.event(event)

    async def dial(self, peer: PeerAddress) -> Connection:
        """Connects to ``peer``; its ``connected`` event has been told then.

        Raises:
            ConnectError: not reached.
        """
        if peer.peer_id == self.node.peer_id:
            raise ConnectError(
                "this PeerId is your own: both sides use the same key file; give one of them "
                "--ephemeral or its own --identity FILE"
            )
        connection = await self.node.connect(peer)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TELL_SECONDS):
                await self._told[connection.peer_id].wait()
        return connection


async def open_service(
    connection: Connection, service: str, **parameters: object
) -> tuple[Stream, Mapping[str, object]]:
    """Asks the peer for a service; the stream, and the peer's positive answer.

    Raises:
        TransferError: the peer refuses, does not know the service, or does not answer.
        ConnectionError: the connection ended, or the peer does not speak the protocol.
    """
    stream = await connection.open_stream()
    await stream.write(encode_header(service, **parameters))
    return stream, await read_acceptance(stream, service)


async def read_acceptance(stream: Stream, service: str) -> Mapping[str, object]:
    """The peer's positive answer to a service header.

    Raises:
        TransferError: the peer refuses, does not know the service, or does not answer.
        ConnectionError: the connection ended, or the peer does not speak the protocol.
    """
    try:
        async with asyncio.timeout(_SERVICE_SECONDS):
            return parse_reply(await read_frame(stream))
    except TimeoutError:
        raise TransferError(
            TransferErrorCode.UNSUPPORTED,
            f"the peer is connected, but does not answer: it offers no {service!r} service",
        ) from None


@contextlib.asynccontextmanager
async def _background() -> AsyncIterator[_Starter]:
    """Tasks that live as long as the context; their failures are logged."""
    starter = _Starter()
    try:
        yield starter
    finally:
        for task in tuple(starter.tasks):
            task.cancel()
        await asyncio.gather(*starter.tasks, return_exceptions=True)


class _Starter:
    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def __call__(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a background task failed", exc_info=error)
