"""A node under remote control, through the public interface. The script behind ``agent``.

Reads the configuration, then commands, as JSON lines from standard input; prints JSON events.
Serves every incoming stream by answering with the SHA-256 of what it carried.
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
from anyreach.errors import AnyreachError, ConnectionLost

if TYPE_CHECKING:
    from anyreach import Connection
    from anyreach.streams import Stream

_CHUNK = 64 * 1024


async def main() -> None:
    """Run until standard input ends."""
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    config = P2pConfig(**json.loads(await stdin.readline()))
    async with Node(config) as node, asyncio.TaskGroup() as tasks:
        _emit("ready", peer_id=str(node.peer_id))
        serving = [
            tasks.create_task(_accept(node, tasks)),
            tasks.create_task(_tell_of_relays(node)),
        ]
        connection: Connection | None = None
        while line := await stdin.readline():
            command = json.loads(line)
            match command["do"]:
                case "connect":
                    connection = await node.connect(command["peer"])
                    _emit("connected", peer_id=str(connection.peer_id))
                    tasks.create_task(_serve(connection, tasks))
                case "transfer":
                    assert connection is not None
                    tasks.create_task(_transfer(connection, command["bytes"], command["tag"]))
                case "path":
                    assert connection is not None
                    path = connection.path
                    _emit("path", remote=path and path.remote, mtu=path and path.mtu)
                case "close":
                    assert connection is not None
                    connection.close()
        for task in serving:
            task.cancel()


async def _accept(node: Node, tasks: asyncio.TaskGroup) -> None:
    async for connection in node.incoming():
        _emit("accepted", peer_id=str(connection.peer_id))
        tasks.create_task(_serve(connection, tasks))


async def _tell_of_relays(node: Node) -> None:
    async for event in node.events():
        if event.event == "relay":
            print(json.dumps(event.to_dict()), flush=True)


async def _serve(connection: Connection, tasks: asyncio.TaskGroup) -> None:
    with contextlib.suppress(ConnectionLost):
        async for stream in connection.incoming_streams():
            tasks.create_task(_answer(stream))
    lost = await connection.wait_closed()
    _emit("lost", peer_id=str(connection.peer_id), reason=lost.reason)


async def _answer(stream: Stream) -> None:
    digest = hashlib.sha256()
    try:
        async for chunk in stream:
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
    _emit("transferred", tag=tag, intact=intact, seconds=time.monotonic() - began)


def _emit(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
