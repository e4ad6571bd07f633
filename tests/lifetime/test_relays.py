"""Nodes that relay for each other come and go without leaving anything behind."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import warnings
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from anyreach import ConnectError, Identity, Node, P2pConfig
from anyreach.addresses import HostPort
from anyreach.events import Relay
from anyreach.peer import PeerAddress

from .test_growth import assert_no_growth, usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .conftest import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="counts descriptors"),
]

CYCLES = 50
WARM_UP = 10
CANCELS = 150
HERE: dict[str, Any] = {"bind_addr": "127.0.0.1:0", "ip_mode": "v4"}
LOOPBACK = ["127.0.0.0/8"]


def knowing(hub: Node, **options: Any) -> Node:
    """A node that goes through the hub only."""
    known = [str(hub.ticket())]
    return Node(P2pConfig(**HERE, known_peers=known, direct=False, **options))


async def reserved(node: Node) -> None:
    async with asyncio.timeout(20):
        async for event in node.events():
            if isinstance(event, Relay) and event.state == "reserved":
                return


async def started(node: Node) -> Node:
    """Start a node and wait for its address at the relay."""
    waiting = asyncio.create_task(reserved(node))
    await asyncio.sleep(0)  # it has subscribed
    await node.start()
    await waiting
    return node


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Node]:
    """As :func:`started`, closed in the end."""
    try:
        yield await started(node)
    finally:
        await node.close()


@asynccontextmanager
async def relaying(**options: Any) -> AsyncIterator[Node]:
    """A relay for nodes on this machine."""
    async with Node(P2pConfig(**HERE, relay_allow_targets=LOOPBACK, **options)) as hub:
        yield hub


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (there is nothing to await)
            await asyncio.sleep(0.01)


def test_nodes_with_relays_come_and_go(run: Run) -> None:
    async def main() -> None:
        async def cycle(number: int) -> None:
            async with relaying(tcp="auto") as hub:
                alice, bob = await asyncio.gather(started(knowing(hub)), started(knowing(hub)))
                connection = await alice.connect(bob.peer_id, timeout=20)
                stream = await connection.open_stream()
                await stream.write(b"hello")
                far = await anext(bob.incoming())
                assert await (await far.accept_stream()).readexactly(5) == b"hello"
                # In any order.
                for node in random.Random(number).sample((alice, bob, hub), 3):
                    await node.close()

        for number in range(WARM_UP):
            await cycle(number)
        before = usage()
        for number in range(CYCLES):
            await cycle(number)
        await assert_no_growth(before)

    run(main())


def test_a_relay_forgets_its_clients(run: Run) -> None:
    async def main() -> None:
        async with relaying() as hub, running(knowing(hub)) as other:

            async def cycle() -> None:
                async with running(knowing(hub)) as node:
                    connection = await other.connect(node.peer_id, timeout=20)
                # Told through the tunnel, before that was closed.
                lost = await asyncio.wait_for(connection.wait_closed(), 5)
                assert lost.reason == "closed"

            for _ in range(WARM_UP):
                await cycle()
            before = usage()
            for _ in range(CYCLES):
                await cycle()
            # Addresses are kept for those who may come back, a socket each.
            before.descriptors += CYCLES * 2
            await assert_no_growth(before)
            await until(lambda: hub.metrics().relay_sessions == 1)

    run(main())


def test_calls_are_cancelled_wherever_they_are(run: Run) -> None:
    """In the middle of a search, a detour, a tunnel or a handshake."""

    async def main() -> None:
        rng = random.Random(CANCELS)
        silent = HostPort("127.0.0.1", 9)
        async with (
            relaying(tcp="auto") as hub,
            running(knowing(hub)) as bob,
            running(knowing(hub)) as alice,
        ):

            async def cancelled(number: int) -> None:
                peers = (
                    PeerAddress(bob.peer_id),
                    PeerAddress(Identity.generate().peer_id, (silent,)),
                    PeerAddress(bob.peer_id, (silent, HostPort.parse(bob.addresses[0]))),
                )
                call = asyncio.create_task(alice.connect(peers[number % 3], timeout=20))
                await asyncio.sleep(rng.random() * (0.05 if number % 2 else 1.5))
                call.cancel()
                with suppress(asyncio.CancelledError, ConnectError):
                    (await call).close()

            for number in range(6):
                await cancelled(number)
            before = usage()
            for number in range(CANCELS // 10):
                await asyncio.gather(*(cancelled(10 * number + i) for i in range(10)))
            # The tunnels of detours stay for a minute, in case somebody calls again.
            before.descriptors += 16
            before.tasks += 16
            await assert_no_growth(before)
            assert alice._running is not None
            for tunnel in alice._running._tunnels:
                assert not any("Flow" in repr(holder) for holder in tunnel.holders)
            # And nothing keeps the node from being of use, or from its end.
            await alice.connect(bob.peer_id, timeout=20)
            await asyncio.wait_for(alice.close(), 20)

    run(main())


def test_closing_in_the_middle_of_everything(run: Run) -> None:
    async def main() -> None:
        async with relaying() as hub, running(knowing(hub)) as bob:

            async def cycle(number: int) -> None:
                alice = knowing(hub)
                await alice.start()
                calls = [
                    asyncio.create_task(alice.connect(peer, timeout=20))
                    for peer in (bob.peer_id, Identity.generate().peer_id)
                ]
                await asyncio.sleep(0.002 * number)
                await asyncio.wait_for(alice.close(), 20)
                await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)

            for number in range(WARM_UP):
                await cycle(number)
            before = usage()
            for number in range(CYCLES):
                await cycle(number)
            before.descriptors += CYCLES * 2  # kept by the relay
            await assert_no_growth(before)

    run(main())


def test_forgotten_nodes_end_their_tunnels_and_tasks(run: Run) -> None:
    async def main() -> None:
        async with relaying() as hub:

            async def cycle() -> None:
                alice, bob = await asyncio.gather(started(knowing(hub)), started(knowing(hub)))
                await alice.connect(bob.peer_id, timeout=20)
                del alice, bob
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    gc.collect()
                    await asyncio.sleep(0)

            for _ in range(5):
                await cycle()
            before = usage()
            for _ in range(20):
                await cycle()
            before.descriptors += 20 * 2 * 2  # kept by the relay
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                await assert_no_growth(before)

    run(main())
