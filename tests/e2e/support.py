"""What the end-to-end tests share: nodes on loopback, and a way to await events."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from anyreach import Connection, Node, P2pConfig
from anyreach.addresses import HostPort
from anyreach.peer import PeerAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyreach.events import Event

PATIENCE = 20.0
"""Seconds before a condition counts as never coming; passing tests never wait that long."""

V4: dict[str, Any] = {"bind_addr": "127.0.0.1:0", "ip_mode": "v4"}
V6: dict[str, Any] = {"bind_addr": "[::1]:0", "ip_mode": "v6"}
DUAL: dict[str, Any] = {"bind_addr": "[::]:0", "ip_mode": "dual"}

E = TypeVar("E", bound="Event")
T = TypeVar("T")


class Watch:
    """Reads the events of a node, keeping those passed over."""

    def __init__(self, node: Node) -> None:
        self._events = node.events()
        self.seen: list[Event] = []

    async def next(self, kind: type[E], **fields: object) -> E:
        """The next event of ``kind`` with these values."""
        async with asyncio.timeout(PATIENCE):
            async for event in self._events:
                self.seen.append(event)
                matches = all(getattr(event, name, None) == value for name, value in fields.items())
                if isinstance(event, kind) and matches:
                    return event
        raise AssertionError(f"the node was closed before {kind.__name__} {fields}")

    async def rest(self) -> list[Event]:
        """Everything up to the end of the node."""
        async with asyncio.timeout(PATIENCE):
            return [event async for event in self._events]


@asynccontextmanager
async def nodes(*options: dict[str, Any]) -> AsyncIterator[tuple[Node, ...]]:
    """Running nodes, one for each set of options."""
    async with AsyncExitStack() as stack:
        yield tuple([await stack.enter_async_context(Node(P2pConfig(**o))) for o in options])


def port_of(node: Node) -> int:
    """The port a node is bound to."""
    return int(node.addresses[0].rpartition(":")[2])


def at(node: Node, host: str) -> PeerAddress:
    """``node`` as a peer at ``host``."""
    return PeerAddress(node.peer_id, (HostPort(host, port_of(node)),))


async def accepted(node: Node) -> Connection:
    """The next incoming connection."""
    return await soon(anext(node.incoming()))


async def soon(awaitable: Awaitable[T]) -> T:
    """The result, within the patience of a test."""
    return await asyncio.wait_for(awaitable, PATIENCE)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition no event tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (there is nothing to await)
            await asyncio.sleep(0.005)


def jobs(kind: str) -> int:
    """How many background jobs of a kind run now: ``"dial"``, ``"connect"``, ``"resolve"``."""
    return sum(task.get_name().startswith(f"anyreach-{kind} ") for task in asyncio.all_tasks())


async def exchange(sender: Connection, receiver: Connection, data: bytes = b"ping") -> None:
    """Prove that ``sender`` can open a stream that ``receiver`` answers."""
    stream = await soon(sender.open_stream())
    await soon(stream.write(data))
    await stream.finish()
    answering = await soon(receiver.accept_stream())
    assert await soon(answering.read()) == data
    await soon(answering.write(data[::-1]))
    await answering.finish()
    assert await soon(stream.read()) == data[::-1]
