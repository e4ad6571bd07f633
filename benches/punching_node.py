"""A node under remote control of `punching.py`, which watches its paths and what flows over them.

Reads its configuration, then commands, as JSON lines from standard input; prints JSON events. Times
called `at` are those of the monotonic clock, which all processes of a machine share.

    {"do": "connect", "peer": ...}      connected, when connect() returned
    {"do": "flow"} {"do": "stop"}       send as much as goes on the latest connection; no more
    {"do": "mark"} {"do": "gap"}        from now on; the longest time without data since then
    {"do": "crowd", "peer": ..., "count": 24, "options": ...}   so many more nodes connect to it
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from anyreach import AnyreachError, Connection, Node, P2pConfig, Stream
from anyreach.events import Connected

CHUNK = bytes(64 * 1024)


class Receiver:
    """What came in on all streams."""

    def __init__(self) -> None:
        self.mark()

    def mark(self) -> None:
        """Forget what was before."""
        self._last = time.monotonic()
        self._longest = 0.0
        self._bytes = 0

    def got(self, data: bytes) -> None:
        """Some data came."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        self._bytes += len(data)

    def report(self) -> dict[str, float]:
        """The longest gap since the mark, one that goes on included, and how much there was."""
        longest = max(self._longest, time.monotonic() - self._last)
        return {"seconds": longest, "bytes": self._bytes}


class Subject:
    """The node, its connections, and the nodes beside it."""

    def __init__(self, node: Node, stack: contextlib.AsyncExitStack) -> None:
        self._node = node
        self._stack = stack
        self._tasks = set[asyncio.Task[None]]()
        self._latest: Connection | None = None
        self._flow: asyncio.Task[None] | None = None
        self._receiver = Receiver()
        self._spawn(self._accept())
        self._spawn(self._tell())

    async def obey(self, command: dict[str, Any]) -> None:
        """Carry out a command."""
        match command["do"]:
            case "connect":
                began = time.monotonic()
                connection = await self._node.connect(command["peer"])
                _emit("connected", ms=(time.monotonic() - began) * 1000)
                self._keep(connection, began)
            case "flow":
                assert self._latest is not None
                self._flow = self._spawn(_send(self._latest))
            case "stop":
                assert self._flow is not None
                self._flow.cancel()
            case "mark":
                self._receiver.mark()
                _emit("marked")
            case "gap":
                _emit("gap", **self._receiver.report())
            case "crowd":
                await self._crowd(command["peer"], command["count"], command["options"])

    async def _crowd(self, peer: str, count: int, options: dict[str, Any]) -> None:
        for _ in range(count):
            node = await self._stack.enter_async_context(Node(P2pConfig(**options)))
            connection = await node.connect(peer)
            async with asyncio.timeout(20):
                async for change in _paths(connection):
                    if change in {"direct", "punched"}:
                        break
        _emit("crowded")

    async def _accept(self) -> None:
        async for connection in self._node.incoming():
            self._keep(connection, time.monotonic())

    async def _tell(self) -> None:
        async for event in self._node.events():
            if isinstance(event, Connected):
                _emit("first", peer_id=str(event.peer_id), ms=event.ms, method=event.method)
            elif event.event in {"known_peer", "relay"}:
                print(json.dumps(event.to_dict()), flush=True)

    def _keep(self, connection: Connection, began: float) -> None:
        self._latest = connection
        self._spawn(_watch(connection, began))
        self._spawn(self._serve(connection))

    async def _serve(self, connection: Connection) -> None:
        with contextlib.suppress(AnyreachError):
            async for stream in connection.incoming_streams():
                self._spawn(self._receive(stream))

    async def _receive(self, stream: Stream) -> None:
        with contextlib.suppress(AnyreachError):
            async for chunk in stream:
                self._receiver.got(chunk)

    def _spawn(self, job: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _paths(connection: Connection) -> AsyncIterator[str]:
    """The method of the path in use, now and whenever the paths change."""
    changes = connection.path_changes()
    while True:
        path = connection.path
        if path is not None:
            yield path.method
        try:
            await anext(changes)
        except StopAsyncIteration:
            return


async def _watch(connection: Connection, began: float) -> None:
    """Tell when data takes another kind of path."""
    last = ""
    peer_id = str(connection.peer_id)
    async for method in _paths(connection):
        if method != last:
            now = time.monotonic()
            last = method
            _emit("moved", peer_id=peer_id, method=method, at=now, ms=(now - began) * 1000)
    _emit("lost", peer_id=peer_id)


async def _send(connection: Connection) -> None:
    stream = await connection.open_stream()
    try:
        while True:
            await stream.write(CHUNK)
    finally:
        with contextlib.suppress(AnyreachError):
            stream.reset(0)


def _emit(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


async def main() -> None:
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    config = P2pConfig(**json.loads(await stdin.readline()))
    async with contextlib.AsyncExitStack() as stack:
        node = await stack.enter_async_context(Node(config))
        subject = Subject(node, stack)
        _emit("ready", peer_id=str(node.peer_id))
        while line := await stdin.readline():
            await subject.obey(json.loads(line))


if __name__ == "__main__":
    asyncio.run(main())
