"""A node under remote control, through the public interface. The script behind ``agent``.

Reads the configuration, then commands, as JSON lines from standard input; prints JSON events.
Serves every incoming stream by answering with the SHA-256 of what it carried. Times called ``at``
are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import sys
import time
from typing import TYPE_CHECKING, Any

from anyreach import Node, P2pConfig
from anyreach.errors import AnyreachError, ConnectError, ConnectionLost

if TYPE_CHECKING:
    from anyreach import Connection
    from anyreach.streams import Stream

_CHUNK = 64 * 1024
_PAUSE = 0.2  # seconds without data from which on an incoming stream is said to have paused
_PROGRESS = 0.25  # seconds between two reports of an incoming stream

_TOLD = ("known_peer", "relay", "nat", "external_address")
"""Events of the node that are printed as they are."""


class _Agent:
    def __init__(self, node: Node, tasks: asyncio.TaskGroup) -> None:
        self._node = node
        self._tasks = tasks
        self._connections: dict[str, Connection] = {}
        self._latest: Connection | None = None
        self._ending: dict[int, asyncio.Event] = {}

    async def accept(self) -> None:
        async for connection in self._node.incoming():
            self._keep(connection, time.monotonic(), "accepted")

    async def tell(self) -> None:
        async for event in self._node.events():
            if event.event in _TOLD:
                print(json.dumps(event.to_dict()), flush=True)
            elif event.event == "connected":
                values = event.to_dict()
                values["event"] = "first"
                print(json.dumps(values), flush=True)

    async def obey(self, command: dict[str, Any]) -> None:
        if command["do"] == "connect":
            await self._connect(command["peer"])
            return
        connection = self._connections.get(command.get("to", ""), self._latest)
        assert connection is not None
        match command["do"]:
            case "transfer":
                self._tasks.create_task(_transfer(connection, command["bytes"], command["tag"]))
            case "flow":
                ending = self._ending[command["tag"]] = asyncio.Event()
                flow = _flow(connection, command["tag"], command["rate"], ending)
                self._tasks.create_task(flow)
            case "end":
                self._ending.pop(command["tag"]).set()
            case "path":
                path = connection.path
                _emit(
                    "path",
                    method=path and path.method,
                    remote=path and path.remote,
                    mtu=path and path.mtu,
                )
            case "explain":
                _emit(
                    "explained",
                    text=str(getattr(connection, "explain", lambda: connection.paths)()),
                )
            case "close":
                connection.close()

    async def _connect(self, peer: str) -> None:
        began = time.monotonic()
        try:
            connection = await self._node.connect(peer)
        except ConnectError as error:
            _emit("not_connected", error=str(error))
            return
        self._keep(connection, began, "connected")

    def _keep(self, connection: Connection, began: float, event: str) -> None:
        peer_id = str(connection.peer_id)
        self._connections[peer_id] = connection
        if event == "connected" or self._latest is None:
            self._latest = connection
        _emit(event, peer_id=peer_id, ms=(time.monotonic() - began) * 1000)
        self._tasks.create_task(_watch(connection, began))
        self._tasks.create_task(_serve(connection, self._tasks))


async def main() -> None:
    """Run until standard input ends."""
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    config = P2pConfig(**json.loads(await stdin.readline()))
    async with Node(config) as node, asyncio.TaskGroup() as tasks:
        _emit("ready", peer_id=str(node.peer_id))
        agent = _Agent(node, tasks)
        serving = [tasks.create_task(agent.accept()), tasks.create_task(agent.tell())]
        while line := await stdin.readline():
            await agent.obey(json.loads(line))
        for task in serving:
            task.cancel()


async def _watch(connection: Connection, began: float) -> None:
    """Tell which path data takes, whenever that changes."""
    peer_id = str(connection.peer_id)
    last: tuple[str, str] | None = None
    changes = connection.path_changes()
    reason = "established"
    while True:
        path = connection.path
        way = (path.method, path.remote) if path else None
        if path is not None and way != last:
            now = time.monotonic()
            _emit(
                "moved",
                peer_id=peer_id,
                method=path.method,
                remote=path.remote,
                rtt_ms=path.rtt * 1000,
                reason=reason,
                ms=(now - began) * 1000,
                at=now,
            )
        last = way
        try:
            reason = (await anext(changes)).reason
        except StopAsyncIteration:
            return


async def _serve(connection: Connection, tasks: asyncio.TaskGroup) -> None:
    with contextlib.suppress(ConnectionLost):
        async for stream in connection.incoming_streams():
            tasks.create_task(_answer(stream))
    lost = await connection.wait_closed()
    _emit("lost", peer_id=str(connection.peer_id), reason=lost.reason)


async def _answer(stream: Stream) -> None:
    digest = hashlib.sha256()
    size, last = 0, time.monotonic()
    reported = last
    try:
        async for chunk in stream:
            now = time.monotonic()
            if size and now - last > _PAUSE:
                _emit("paused", seconds=now - last, at=now)
            size, last = size + len(chunk), now
            if now - reported > _PROGRESS:
                _emit("progress", bytes=size, at=now)
                reported = now
            digest.update(chunk)
        await stream.write(digest.digest())
        await stream.finish()
    except AnyreachError as error:
        _emit("failed", error=str(error))


async def _transfer(connection: Connection, size: int, tag: int) -> None:
    data = random.Random(tag).randbytes(size)
    began = time.monotonic()
    try:
        stream = await connection.open_stream()
        for start in range(0, size, _CHUNK):
            await stream.write(data[start : start + _CHUNK])
        await stream.finish()
        answer = await stream.readexactly(hashlib.sha256().digest_size)
    except (AnyreachError, asyncio.IncompleteReadError) as error:
        _emit("transfer_failed", tag=tag, error=repr(error))
        return
    intact = answer == hashlib.sha256(data).digest()
    _emit("transferred", tag=tag, intact=intact, bytes=size, seconds=time.monotonic() - began)


async def _flow(connection: Connection, tag: int, rate: float, ending: asyncio.Event) -> None:
    """Send at a steady rate, in bytes per second, until told to end."""
    noise = random.Random(tag).randbytes(_CHUNK)
    digest = hashlib.sha256()
    began = due = time.monotonic()
    size = 0
    try:
        stream = await connection.open_stream()
        while not ending.is_set():
            data = size.to_bytes(8, "big") + noise[8:]
            digest.update(data)
            await stream.write(data)
            size += len(data)
            now = time.monotonic()
            due = max(due, now - _PAUSE) + len(data) / rate
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0, due - now)):
                    await ending.wait()
        await stream.finish()
        answer = await stream.readexactly(hashlib.sha256().digest_size)
    except (AnyreachError, asyncio.IncompleteReadError) as error:
        _emit("transfer_failed", tag=tag, error=repr(error))
        return
    intact = answer == digest.digest()
    _emit("transferred", tag=tag, intact=intact, bytes=size, seconds=time.monotonic() - began)


def _emit(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
