"""The answering side of ``ping``, ``bench`` and ``send``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from anyreach.errors import AnyreachError, ConnectionLost
from anyreach.events import Connected
from anyreach.transfer.errors import TransferError, TransferErrorCode
from anyreach.transfer.frames import encode_frame
from anyreach.transfer.messages import refusal
from anyreach.transfer.stream import STOP_REFUSED

from .bench_service import BenchService
from .echo import answer_pings
from .flows import DatagramFlows
from .header import BAD_HEADER, HeaderError, Request, read_header

if TYPE_CHECKING:
    from anyreach import Connection, Node, Stream

    from .inbox import Mailroom

__all__ = ["Services"]

_log = logging.getLogger(__name__)

Handler = Callable[["Stream", Request], Awaitable[None]]

#: Service streams of one connection that are handled at once; QUIC lets the peer open some
#: more, which wait. A bench uses up to 64.
_MAX_STREAMS: Final = 100

#: Seconds a peer has to send the header of a stream it opened.
_HEADER_SECONDS: Final = 30.0


class Services:
    """Serves the connections of a node.

    Args:
        mailroom: takes files; ``None`` refuses them.
        only: the services offered; all if ``None``.
    """

    def __init__(
        self, mailroom: Mailroom | None = None, only: frozenset[str] | None = None
    ) -> None:
        self._mailroom = mailroom
        self._only = only

    async def serve(self, node: Node) -> None:
        """Serves every connection, in and out, until the node is closed."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve_dialed(node, group))
            async for connection in node.incoming():
                group.create_task(self.serve_connection(connection))

    async def _serve_dialed(self, node: Node, group: asyncio.TaskGroup) -> None:
        """Serves the connections this node made: there is one per pair, whoever dialed."""
        async for event in node.events():
            if not isinstance(event, Connected) or event.direction != "out":
                continue
            for connection in node.connections:
                if connection.peer_id == event.peer_id and connection.direction == "out":
                    group.create_task(self.serve_connection(connection))

    async def serve_connection(self, connection: Connection) -> None:
        """Serves the streams the peer opens until the connection ends."""
        session = _Session(connection, self._mailroom, self._only)
        slots = asyncio.Semaphore(_MAX_STREAMS)
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                try:
                    stream = await connection.accept_stream()
                except ConnectionLost as lost:
                    # What is still being served finds out by itself and puts things in order.
                    _log.debug("%s: %s", connection, lost)
                    return
                task = group.create_task(session.answer(stream))
                task.add_done_callback(lambda _: slots.release())


class _Session:
    """One connection and the services on it."""

    def __init__(
        self, connection: Connection, mailroom: Mailroom | None, only: frozenset[str] | None
    ) -> None:
        self._connection = connection
        self._mailroom = mailroom
        self._flows = DatagramFlows(connection)
        bench = BenchService(connection, self._flows)
        handlers: dict[str, Handler] = {
            "ping": self._ping,
            "bench": bench.control,
            "bench-data": bench.data,
            "send": self._receive,
        }
        self._handlers = {
            name: handler for name, handler in handlers.items() if only is None or name in only
        }

    async def answer(self, stream: Stream) -> None:
        """Reads the header of a stream and does what it asks for. Raises nothing ordinary."""
        try:
            if not stream.can_write:
                stream.stop(BAD_HEADER)
                return
            await self._dispatch(stream)
        except (AnyreachError, OSError, EOFError) as error:
            _log.debug("%s on %s: %s", stream, self._connection, error)

    async def _dispatch(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(_HEADER_SECONDS):
                request = await read_header(stream)
        except (HeaderError, EOFError, TimeoutError) as error:
            code = (
                error.reset_code if isinstance(error, HeaderError) else HeaderError("").reset_code
            )
            stream.reset(code)
            stream.stop(code)
            return
        handler = self._handlers.get(request.service)
        try:
            if handler is None:
                raise TransferError(
                    TransferErrorCode.UNSUPPORTED, f"no {request.service!r} service here"
                )
            await handler(stream, request)
        except TransferError as error:
            if not error.remote:
                await stream.write(encode_frame(refusal(error)))
                await stream.finish()
                stream.stop(STOP_REFUSED)
            raise

    async def _ping(self, stream: Stream, _: Request) -> None:
        await answer_pings(self._connection, self._flows, stream)

    async def _receive(self, stream: Stream, _: Request) -> None:
        if self._mailroom is None:
            raise TransferError(
                TransferErrorCode.REFUSED,
                "this peer takes no files: it was not started with --receive",
            )
        self._mailroom.check(self._connection.peer_id)
        await stream.write(encode_frame({"ok": True}))
        await self._mailroom.take(stream, self._connection)
