"""Two nodes that know a third, which may relay for them."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyreach import Connection, Node, P2pConfig
from anyreach.events import KnownPeerState, Relay

from .support import PATIENCE, V4, Watch, accepted, at, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOOPBACK = ["127.0.0.0/8", "::1/128"]
"""What a relay for tests on one machine must be allowed to send to."""


@dataclass
class Trio:
    """Two nodes that know a third."""

    hub: Node
    alice: Node
    bob: Node

    async def connect(self) -> tuple[Connection, Connection]:
        """Both ends of a connection of alice to bob."""
        connection = await soon(self.alice.connect(self.bob.peer_id, timeout=PATIENCE))
        far = await accepted(self.bob)
        assert (connection.peer_id, far.peer_id) == (self.bob.peer_id, self.alice.peer_id)
        return connection, far


@asynccontextmanager
async def trio(
    *,
    hub: dict[str, Any] | None = None,
    both: dict[str, Any] | None = None,
    alice: dict[str, Any] | None = None,
    bob: dict[str, Any] | None = None,
    ready: type[KnownPeerState | Relay] = KnownPeerState,
) -> AsyncIterator[Trio]:
    """Three nodes, once alice and bob have joined the hub, or have an address there."""
    async with AsyncExitStack() as stack:
        center = await stack.enter_async_context(Node(P2pConfig(**{**V4, **(hub or {})})))
        ends = []
        for options in (alice, bob):
            known = {"known_peers": [at(center, "127.0.0.1")], **(both or {}), **(options or {})}
            ends.append(Node(P2pConfig(**{**V4, **known})))
        watches = [Watch(node) for node in ends]
        for node in ends:
            await stack.enter_async_context(node)
        for watch, options in zip(watches, (alice, bob), strict=True):
            wanted = (both or {}) | (options or {})
            if ready is Relay and wanted.get("relay_reservations") != 0:
                await watch.next(Relay, state="reserved", peer_id=center.peer_id)
            else:
                await watch.next(KnownPeerState, state="connected")
        yield Trio(center, *ends)


RELAYED: dict[str, Any] = {
    "both": {"direct": False},
    "hub": {"relay_allow_targets": LOOPBACK},
    "ready": Relay,
}
