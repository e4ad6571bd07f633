"""The two ends of aioquic and qh3, which have the same asyncio interface.

Only that interface is used, as their users would: there is no back-pressure in it, so a bulk
transfer is queued as a whole in writes of 64 KiB, and datagrams are sent in bursts, each held
back until the burst before the last was acknowledged by way of a PING.
"""

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .protocol import (
    BLOCK,
    COUNT,
    DOWNLOAD,
    ECHO,
    HOST,
    INTEGER,
    SOCKET_BUFFER,
    UPLOAD,
    WRITE_BYTES,
    Arrivals,
    Client,
    handshake_loop,
    obey,
    serve_until_end,
)

# Datagrams between two pings; two bursts fill what a socket buffer of the usual size holds.
BURST = 128


@dataclass(frozen=True, slots=True)
class Library:
    """The names of one library.

    Attributes:
        connect: the client of its asyncio module.
        serve: the server of its asyncio module.
        protocol: its `QuicConnectionProtocol`.
        datagram_event: its `DatagramFrameReceived`.
        configuration: makes a configuration, for a client or (True) a server.
    """

    connect: Callable[..., Any]
    serve: Callable[..., Awaitable[Any]]
    protocol: type
    datagram_event: type
    configuration: Callable[[bool], Any]


def raise_buffers(transport: Any) -> None:
    """Ask for the socket buffers all contenders have."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)


def fill(writer: asyncio.StreamWriter, size: int) -> None:
    """Queue so many bytes and the end of the stream."""
    for _ in range(size // WRITE_BYTES):
        writer.write(BLOCK)
    writer.write(BLOCK[: size % WRITE_BYTES])
    writer.write_eof()


async def drain(reader: asyncio.StreamReader) -> int:
    """Read to the end; how much it was."""
    total = 0
    while data := await reader.read(4 * WRITE_BYTES):
        total += len(data)
    return total


async def oblige(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, arrivals: Arrivals
) -> None:
    """Do what the first byte of a stream asks for."""
    asked = await reader.readexactly(1)
    if asked == DOWNLOAD:
        fill(writer, INTEGER.unpack(await reader.readexactly(INTEGER.size))[0])
        return
    if asked == UPLOAD:
        writer.write(INTEGER.pack(await drain(reader)))
    elif asked == COUNT:
        writer.write(await arrivals.report())
    else:
        while data := await reader.read(WRITE_BYTES):
            writer.write(data)
    writer.write_eof()


async def serve(library: Library) -> None:
    """Run the server."""
    tasks: set[asyncio.Task[None]] = set()

    class Server(library.protocol):  # type: ignore[misc, name-defined]  # a base chosen at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.arrivals = Arrivals()
            self._stream_handler = self.handle

        def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(oblige(reader, writer, self.arrivals))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        def quic_event_received(self, event: Any) -> None:
            if isinstance(event, library.datagram_event):
                self.arrivals.add(1)
            else:
                super().quic_event_received(event)

    server = await library.serve(
        HOST, 0, configuration=library.configuration(True), create_protocol=Server
    )
    transport = server._transport
    raise_buffers(transport)
    await serve_until_end(str(transport.get_extra_info("sockname")[1]))
    server.close()


class AsyncioQuicClient(Client):
    """One connection; others where more are asked for."""

    def __init__(self, library: Library, port: int, protocol: Any) -> None:
        self._library = library
        self._port = port
        self._protocol = protocol
        self._idle = contextlib.AsyncExitStack()

    async def bulk(self, up: bool, streams: int, size: int) -> int:
        async with asyncio.TaskGroup() as tasks:
            transfers = [
                tasks.create_task(self._transfer(up, size // streams)) for _ in range(streams)
            ]
        return sum(transfer.result() for transfer in transfers)

    async def _transfer(self, up: bool, size: int) -> int:
        reader, writer = await self._protocol.create_stream()
        if up:
            writer.write(UPLOAD)
            fill(writer, size)
            count: int = INTEGER.unpack(await reader.readexactly(INTEGER.size))[0]
            return count
        writer.write(DOWNLOAD + INTEGER.pack(size))
        writer.write_eof()
        return await drain(reader)

    async def send_datagrams(self, size: int, seconds: float) -> int:
        payload = bytes(size)
        sent = 0
        pings: deque[asyncio.Task[None]] = deque()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(BURST):
                self._protocol._quic.send_datagram_frame(payload)
            sent += BURST
            pings.append(asyncio.ensure_future(self._protocol.ping()))
            if len(pings) > 1:
                await pings.popleft()
        await asyncio.gather(*pings)
        return sent

    async def count_datagrams(self) -> bytes:
        reader, writer = await self._protocol.create_stream()
        writer.write(COUNT)
        writer.write_eof()
        answer: bytes = await reader.readexactly(2 * INTEGER.size)
        return answer

    async def echo_stream(self) -> Callable[[bytes], Awaitable[object]]:
        reader, writer = await self._protocol.create_stream()
        writer.write(ECHO)

        async def exchange(message: bytes) -> None:
            writer.write(message)
            await reader.readexactly(len(message))

        return exchange

    async def handshakes(self, parallel: int, seconds: float) -> list[float]:
        async def once(worker: int) -> float:
            del worker
            begun = time.perf_counter()
            async with connected(self._library, self._port, wait_closed=False):
                return time.perf_counter() - begun

        return await handshake_loop(parallel, seconds, once)

    async def idle(self, count: int) -> None:
        for _ in range(count):
            await self._idle.enter_async_context(connected(self._library, self._port))


@contextlib.asynccontextmanager
async def connected(library: Library, port: int, *, wait_closed: bool = True) -> AsyncIterator[Any]:
    """A connection; leaving closes it, and waits until that is over if asked to."""
    manager = library.connect(HOST, port, configuration=library.configuration(False))
    protocol = await manager.__aenter__()
    raise_buffers(protocol._transport)
    try:
        yield protocol
    finally:
        protocol.close()
        leaving = asyncio.ensure_future(manager.__aexit__(None, None, None))
        _LEAVING.add(leaving)
        leaving.add_done_callback(_LEAVING.discard)
        if wait_closed:
            await leaving


# Connections that drain after their close, which takes three probe timeouts.
_LEAVING: set[asyncio.Future[Any]] = set()


async def run_client(library: Library, target: str) -> None:
    """Run the client."""
    async with connected(library, int(target), wait_closed=False) as protocol:
        await obey(AsyncioQuicClient(library, int(target), protocol))
