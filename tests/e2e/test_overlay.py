"""A small overlay: nodes join through a few known peers and connect to each other at random.

`benches/overlay.py` does the same with hundreds.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from anyreach import Node, P2pConfig
from anyreach.events import Relay

from .support import PATIENCE, Watch, at, exchange, nodes, soon, until
from .trio import LOOPBACK

if TYPE_CHECKING:
    from anyreach import Connection, PeerId

NODES = 20
CONNECTS = 3


@pytest.mark.parametrize("method", ["direct", "relayed"])
async def test_everybody_meets_whom_they_like(method: str) -> None:
    hub: dict[str, Any] = {"bind_addr": "127.0.0.1:0", "ip_mode": "v4"}
    hub["relay_allow_targets"] = LOOPBACK
    async with nodes(*[hub] * 3) as known, AsyncExitStack() as stack:
        places = [at(node, "127.0.0.1") for node in known]
        # Each in a network of its own: what a relay does for one network is limited.
        everybody = [
            Node(
                P2pConfig(
                    bind_addr=f"127.0.{number}.1:0",
                    ip_mode="v4",
                    known_peers=places,
                    direct=method == "direct",
                )
            )
            for number in range(1, NODES + 1)
        ]
        watches = [Watch(node) for node in everybody]
        await soon(asyncio.gather(*(stack.enter_async_context(node) for node in everybody)))
        await until(lambda: all(len(node.connections) == len(known) for node in everybody))
        if method == "relayed":
            for watch in watches:
                await watch.next(Relay, state="reserved")

        rng = random.Random(method)
        chosen = [
            (node, other)
            for node in everybody
            for other in rng.sample([n for n in everybody if n is not node], CONNECTS)
        ]
        made = await soon(
            asyncio.gather(*(a.connect(b.peer_id, timeout=PATIENCE) for a, b in chosen))
        )
        for (_, other), connection in zip(chosen, made, strict=True):
            assert connection.peer_id == other.peer_id
            # A direct one may come a moment later where a busy machine holds up the dials.
            await until(partial(takes, connection, method))
        pairs = {frozenset((a.peer_id, b.peer_id)) for a, b in chosen}
        met = {frozenset((node.peer_id, peer)) for node in everybody for peer in _met(node, known)}
        assert met == pairs, "one connection for each pair, known to both"
        for node, other in chosen:
            await exchange(_to(node, other), _to(other, node))
        # One after the other would take long: a node lets its last words through its tunnels.
        await soon(asyncio.gather(*(node.close() for node in everybody)))


def _met(node: Node, known: tuple[Node, ...]) -> list[PeerId]:
    """Whom a node is connected to besides the known peers, with repetitions if there are any."""
    strangers = {n.peer_id for n in known}
    peers = [c.peer_id for c in node.connections if c.peer_id not in strangers]
    assert len(peers) == len(set(peers)), "one connection for each peer"
    return peers


def _to(node: Node, other: Node) -> Connection:
    (connection,) = (c for c in node.connections if c.peer_id == other.peer_id)
    return connection


def takes(connection: Connection, method: str) -> bool:
    return connection.path is not None and connection.path.method == method
