"""anyreach from Python: what this package's users get."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable

from anyreach import Connection, ConnectionLost, Node, P2pConfig, Stream, __version__

from .protocol import (
    BLOCK,
    CONNECTION_WINDOW,
    COUNT,
    DATAGRAM_BUFFER,
    DOWNLOAD,
    ECHO,
    HOST,
    INTEGER,
    SOCKET_BUFFER,
    STREAM_WINDOW,
    UPLOAD,
    WRITE_BYTES,
    Arrivals,
    Client,
    Contender,
    Setting,
    handshake_loop,
    obey,
    python_program,
    serve_until_end,
)

# What a reader asks for at once: a caller's buffer of this size is filled in place.
READ_BYTES = 256 * 1024

# Datagrams handed over in one call, either way.
BATCH = 256

# A full datagram queue is looked at again after this long; it empties in a few milliseconds.
QUEUE_FULL_PAUSE = 0.001

CONFIG = P2pConfig(
    bind_addr=f"{HOST}:0",
    stream_receive_window=STREAM_WINDOW,
    receive_window=CONNECTION_WINDOW,
    send_window=CONNECTION_WINDOW,
    datagram_buffer=DATAGRAM_BUFFER,
    socket_buffer=SOCKET_BUFFER,
)


def contender(setting: Setting) -> Contender:
    del setting
    return Contender(
        name="anyreach",
        server=python_program("anyreach_py", "server"),
        client=python_program("anyreach_py", "client"),
        description=f"anyreach {__version__} from Python, asyncio; mutual ML-DSA-65 raw public "
        "keys, connect() includes the exchange of hellos",
        bulk_bytes=256 << 20,
    )


async def drain(stream: Stream) -> int:
    """Read to the end; how much it was."""
    buffer = memoryview(bytearray(READ_BYTES))
    total = 0
    while count := await stream.readinto(buffer):
        total += count
    return total


async def fill(stream: Stream, size: int) -> None:
    """Write so many bytes."""
    for _ in range(size // WRITE_BYTES):
        await stream.write(BLOCK)
    await stream.write(BLOCK[: size % WRITE_BYTES])


# The server.


async def oblige(stream: Stream, arrivals: Arrivals) -> None:
    asked = await stream.readexactly(1)
    if asked == UPLOAD:
        await stream.write(INTEGER.pack(await drain(stream)))
    elif asked == DOWNLOAD:
        await fill(stream, INTEGER.unpack(await stream.readexactly(INTEGER.size))[0])
    elif asked == COUNT:
        await stream.write(await arrivals.report())
    else:
        while data := await stream.read(READ_BYTES):
            await stream.write(data)
    await stream.finish()


async def answer(connection: Connection) -> None:
    arrivals = Arrivals()

    async def streams() -> None:
        async for stream in connection.incoming_streams():
            tasks.create_task(oblige(stream, arrivals))

    async def datagrams() -> None:
        while True:
            arrivals.add(len(await connection.receive_datagrams(BATCH)))

    with contextlib.suppress(ConnectionLost, ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(streams())
            tasks.create_task(datagrams())


async def serve() -> None:
    async with Node(CONFIG) as node, asyncio.TaskGroup() as tasks:

        async def accept() -> None:
            async for connection in node.incoming():
                tasks.create_task(answer(connection))

        accepting = tasks.create_task(accept())
        await serve_until_end(f"{node.peer_id}@{node.addresses[0]}")
        accepting.cancel()
        await node.close()


# The client.


class AnyreachClient(Client):
    """One node with one connection; more nodes where more connections are asked for."""

    def __init__(self, target: str, connection: Connection) -> None:
        self._target = target
        self._connection = connection
        self._nodes: list[Node] = []

    async def bulk(self, up: bool, streams: int, size: int) -> int:
        async with asyncio.TaskGroup() as tasks:
            transfers = [
                tasks.create_task(self._transfer(up, size // streams)) for _ in range(streams)
            ]
        return sum(transfer.result() for transfer in transfers)

    async def _transfer(self, up: bool, size: int) -> int:
        async with await self._connection.open_stream() as stream:
            if up:
                await stream.write(UPLOAD)
                await fill(stream, size)
                await stream.finish()
                count: int = INTEGER.unpack(await stream.readexactly(INTEGER.size))[0]
                return count
            await stream.write(DOWNLOAD + INTEGER.pack(size))
            await stream.finish()
            return await drain(stream)

    async def send_datagrams(self, size: int, seconds: float) -> int:
        batch = [bytes(size)] * BATCH
        sent = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            queued = self._connection.send_datagrams(batch)
            sent += queued
            if queued < BATCH:
                await asyncio.sleep(QUEUE_FULL_PAUSE)
        return sent

    async def count_datagrams(self) -> bytes:
        async with await self._connection.open_stream() as stream:
            await stream.write(COUNT)
            return await stream.readexactly(2 * INTEGER.size)

    async def echo_stream(self) -> Callable[[bytes], Awaitable[object]]:
        stream = await self._connection.open_stream()
        await stream.write(ECHO)

        async def exchange(message: bytes) -> None:
            await stream.write(message)
            await stream.readexactly(len(message))

        return exchange

    async def handshakes(self, parallel: int, seconds: float) -> list[float]:
        # A node has one connection per peer, so parallel ones take as many nodes.
        await self._have_nodes(parallel)

        async def once(worker: int) -> float:
            begun = time.perf_counter()
            connection = await self._nodes[worker].connect(self._target)
            took = time.perf_counter() - begun
            connection.close()
            return took

        return await handshake_loop(parallel, seconds, once)

    async def idle(self, count: int) -> None:
        await self._have_nodes(count)
        for node in self._nodes[:count]:
            await node.connect(self._target)

    async def _have_nodes(self, count: int) -> None:
        while len(self._nodes) < count:
            self._nodes.append(await Node(CONFIG).start())

    async def close(self) -> None:
        for node in self._nodes:
            await node.close()


async def run_client(target: str) -> None:
    async with Node(CONFIG) as node:
        client = AnyreachClient(target, await node.connect(target))
        try:
            await obey(client)
        finally:
            await client.close()


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1] == "server" else run_client(sys.argv[2]))
