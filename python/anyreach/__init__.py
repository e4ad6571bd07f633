"""Any two nodes reach each other, over post-quantum QUIC on one UDP socket.

A node knows others by their PeerId, the hash of a key every handshake proves::

    import asyncio
    from anyreach import Node, P2pConfig

    async def main() -> None:
        config = P2pConfig(bind_addr="127.0.0.1:0")
        async with Node(config) as alice, Node(config) as bob:
            connection = await alice.connect(bob.ticket())
            stream = await connection.open_stream()
            await stream.write(b"hello")
            print(connection.peer_id, connection.path)

    asyncio.run(main())
"""

from __future__ import annotations

import logging

from anyreach import errors, events
from anyreach._core import __version__
from anyreach.config import IpMode, P2pConfig
from anyreach.connection import Connection, ConnectionStats, Path, PathChange
from anyreach.errors import (
    AnyreachError,
    Attempt,
    BindError,
    ConfigError,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    ForkError,
    IdentityError,
    IdentityInUse,
    NodeClosed,
    PeerIdMismatch,
    StreamClosed,
    StreamReset,
)
from anyreach.explain import Explanation
from anyreach.identity import Identity
from anyreach.metrics import NodeMetrics
from anyreach.nat import NatReport
from anyreach.netcheck import NetworkReport
from anyreach.node import Node
from anyreach.paths import (
    DefaultPathPolicy,
    PathDecision,
    PathPolicy,
    PathSituation,
    PathView,
)
from anyreach.peer import PeerAddress, PeerId, Ticket
from anyreach.reachability import Reachability
from anyreach.relays import (
    DefaultRelayPolicy,
    RelayCandidate,
    RelayDecision,
    RelayPolicy,
    RelaySituation,
    Reservation,
)
from anyreach.scores import Score
from anyreach.streams import Stream

__all__ = [
    "AnyreachError",
    "Attempt",
    "BindError",
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "Connection",
    "ConnectionLost",
    "ConnectionStats",
    "DefaultPathPolicy",
    "DefaultRelayPolicy",
    "Explanation",
    "ForkError",
    "Identity",
    "IdentityError",
    "IdentityInUse",
    "IpMode",
    "NatReport",
    "NetworkReport",
    "Node",
    "NodeClosed",
    "NodeMetrics",
    "P2pConfig",
    "Path",
    "PathChange",
    "PathDecision",
    "PathPolicy",
    "PathSituation",
    "PathView",
    "PeerAddress",
    "PeerId",
    "PeerIdMismatch",
    "Reachability",
    "RelayCandidate",
    "RelayDecision",
    "RelayPolicy",
    "RelaySituation",
    "Reservation",
    "Score",
    "Stream",
    "StreamClosed",
    "StreamReset",
    "Ticket",
    "__version__",
    "errors",
    "events",
]

# A library stays silent unless the program configures logging.
logging.getLogger("anyreach").addHandler(logging.NullHandler())
