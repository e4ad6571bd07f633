"""Many nodes in one process, under remote control of `overlay.py`.

Reads commands as JSON lines from standard input and answers each with a JSON line:

    {"do": "join", "hosts": [...], "options": {...}, "at_once": 16}
    {"do": "connect", "pairs": [[peer_id, peer_id], ...], "at_once": 16}

Every node echoes what it is sent, and every connection is believed only when the peer has echoed
something over it.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

from anyreach import AnyreachError, Connection, Node, P2pConfig, Stream
from anyreach.events import Event, KnownPeerState, Relay

PATIENCE = 30.0
"""Seconds after which a step counts as failed; far beyond what any takes on a busy machine."""

WORD = b"is anybody there?"

Step: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]


class Worker:
    """The nodes of this process by PeerId."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._tasks = set[asyncio.Task[None]]()

    async def join(
        self, hosts: list[str], options: dict[str, Any], at_once: int
    ) -> list[dict[str, Any]]:
        """Start a node on each of these addresses, and wait until it is connected to all it knows.

        Those that may not use direct paths also wait for an address at a relay.
        """
        return await _all((partial(self._join, host, options) for host in hosts), at_once)

    async def _join(self, host: str, options: dict[str, Any]) -> dict[str, Any]:
        config = P2pConfig(bind_addr=f"{host}:0", ip_mode="v4", **options)
        began = time.perf_counter()
        node = Node(config)
        events = node.events()
        await node.start()
        started = time.perf_counter()
        try:
            await _joined(events, len(config.known_peers), reserve=not config.direct)
        except BaseException:
            await node.close()
            raise
        joined = time.perf_counter()
        peer_id = str(node.peer_id)
        self._nodes[peer_id] = node
        self._spawn(_serve(node, self._spawn))
        return {
            "peer_id": peer_id,
            "address": node.addresses[0],
            "start_ms": (started - began) * 1e3,
            "join_ms": (joined - began) * 1e3,
        }

    async def connect(self, pairs: list[tuple[str, str]], at_once: int) -> list[dict[str, Any]]:
        """Let nodes of this process, named first, connect to others."""
        return await _all((partial(self._connect, *pair) for pair in pairs), at_once)

    async def _connect(self, who: str, peer: str) -> dict[str, Any]:
        began = time.perf_counter()
        connection = await self._nodes[who].connect(peer, timeout=PATIENCE)
        took = time.perf_counter() - began
        # It may be one the peer made at the same moment: incoming() leaves those to connect().
        self._spawn(_answer(connection))
        await _ask(connection)
        path = connection.path
        return {"ms": took * 1e3, "method": path.method if path else "lost"}

    async def close(self) -> None:
        """Close all nodes."""
        await asyncio.gather(*(node.close() for node in self._nodes.values()))
        for task in self._tasks:
            task.cancel()

    def _spawn(self, job: Any) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _all(steps: Iterable[Step], at_once: int) -> list[dict[str, Any]]:
    """Carry out all steps, so many at once; those that fail give their error."""
    turns = asyncio.Semaphore(at_once)

    async def one(step: Step) -> dict[str, Any]:
        async with turns:
            try:
                async with asyncio.timeout(PATIENCE):
                    return await step()
            except (AnyreachError, OSError, EOFError, TimeoutError) as error:
                return {"error": f"{type(error).__name__}: {error}"}

    return await asyncio.gather(*(one(step) for step in steps))


async def _joined(events: AsyncIterator[Event], known: int, *, reserve: bool) -> None:
    """Wait until so many known peers are connected, and one of them has given an address."""
    async for event in events:
        if isinstance(event, KnownPeerState):
            known -= event.state == "connected"
        elif isinstance(event, Relay):
            reserve &= event.state != "reserved"
        if not (known or reserve):
            return


async def _ask(connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.write(WORD)
    await stream.finish()
    if await stream.read() != WORD:
        raise EOFError("the peer did not echo")


async def _serve(node: Node, spawn: Callable[[Any], None]) -> None:
    async for connection in node.incoming():
        spawn(_answer(connection))


async def _answer(connection: Connection) -> None:
    with contextlib.suppress(AnyreachError):
        async for stream in connection.incoming_streams():
            await _echo(stream)


async def _echo(stream: Stream) -> None:
    await stream.write(await stream.read())
    await stream.finish()


async def main() -> None:
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    worker = Worker()
    while line := await stdin.readline():
        command = json.loads(line)
        match command.pop("do"):
            case "join":
                answer: Any = await worker.join(**command)
            case "connect":
                answer = await worker.connect(**command)
        print(json.dumps({"event": "done", "answer": answer}), flush=True)
    await worker.close()


if __name__ == "__main__":
    asyncio.run(main())
