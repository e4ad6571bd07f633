"""A node of ours as the other side of an interop test."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Unpack

from anyreach import Connection, ConnectionLost, Node, P2pConfig, Stream, StreamReset
from anyreach.config import P2pOptions

HOST = "127.0.0.1"

# Between two looks at a condition; only a bound on wasted time, nothing depends on it.
_LOOK_INTERVAL = 0.01


async def eventually(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: it did not in time.
    """
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - what others do has no event
            await asyncio.sleep(_LOOK_INTERVAL)


def port_of(node: Node) -> int:
    """The UDP port a node is bound to."""
    return int(node.addresses[0].rpartition(":")[2])


class EchoNode:
    """A running node that echoes streams and datagrams of whoever connects."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.connections: list[Connection] = []

    @property
    def port(self) -> int:
        return port_of(self.node)

    async def serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for connection in self.node.incoming():
                self.connections.append(connection)
                tasks.create_task(_serve_streams(connection))
                tasks.create_task(_serve_datagrams(connection))


async def _serve_streams(connection: Connection) -> None:
    async with asyncio.TaskGroup() as tasks:
        with contextlib.suppress(ConnectionLost):
            async for stream in connection.incoming_streams():
                tasks.create_task(_echo(stream))


async def _echo(stream: Stream) -> None:
    with contextlib.suppress(ConnectionLost, StreamReset):
        async for chunk in stream:
            await stream.write(chunk)
        await stream.finish()


async def _serve_datagrams(connection: Connection) -> None:
    with contextlib.suppress(ConnectionLost):
        while True:
            connection.send_datagrams(await connection.receive_datagrams())


@contextlib.asynccontextmanager
async def echo_node(**options: Unpack[P2pOptions]) -> AsyncIterator[EchoNode]:
    """A node on a free port of the loopback interface."""
    async with Node(config(**options)) as node:
        echo = EchoNode(node)
        task = asyncio.create_task(echo.serve())
        try:
            yield echo
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def config(**options: Unpack[P2pOptions]) -> P2pConfig:
    """Fresh identity, free port; no test needs the generous timeouts of the Internet."""
    options.setdefault("bind_addr", f"{HOST}:0")
    options.setdefault("handshake_timeout", 5.0)
    return P2pConfig(**options)


async def check_echo(connection: Connection, data: bytes) -> None:
    """Send on a new stream and compare what comes back."""
    async with await connection.open_stream() as stream, asyncio.TaskGroup() as tasks:
        echo = tasks.create_task(stream.read(-1))
        await stream.write(data)
        await stream.finish()
    assert echo.result() == data
