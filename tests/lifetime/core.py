"""Two endpoints of the core on loopback, without a node: what the lifetime tests work on."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyreach import _core
from anyreach._bridge import current_bridge
from anyreach.connection import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyreach.streams import Stream

SETTINGS: dict[str, Any] = {
    "bind_addr": "127.0.0.1:0",
    "ip_mode": "v4",
    "allow_ipv4_mapped": False,
    "idle_timeout": 30.0,
    "keep_alive_interval": 10.0,
    "handshake_timeout": 10.0,
    "stream_receive_window": 2 << 20,
    "receive_window": 8 << 20,
    "send_window": 8 << 20,
    "max_bidi_streams": 128,
    "max_uni_streams": 128,
    "datagram_buffer": 1 << 20,
    "socket_buffer": 8 << 20,
    "max_connections": 64,
    "key_log": False,
    "serve_relay": False,
    "nat_traversal": True,
    "capabilities": (),
}


def make_endpoint(**settings: Any) -> _core.Endpoint:
    """An endpoint with a fresh identity on a free port of the loopback interface."""
    return _core.Endpoint(_core.Identity.generate(), **(SETTINGS | settings))


def address_of(endpoint: _core.Endpoint) -> tuple[str, int]:
    return endpoint.local_addresses()[0]


async def dial(endpoint: _core.Endpoint, address: tuple[str, int]) -> Connection:
    attempt = endpoint.dial(*address, None, 10.0)
    connection = await current_bridge().wait(attempt.poll)
    attempt.keep()
    return Connection(connection)


async def accept(endpoint: _core.Endpoint) -> Connection:
    return Connection(await current_bridge().wait(endpoint.poll_incoming))


async def shut(*endpoints: _core.Endpoint) -> None:
    """Close endpoints and wait until their ports are free."""
    for endpoint in endpoints:
        endpoint.close(0, b"")
    for endpoint in endpoints:
        await current_bridge().wait(endpoint.poll_closed)


@dataclass
class Pair:
    """Both ends of one connection."""

    endpoints: tuple[_core.Endpoint, _core.Endpoint]
    near: Connection
    far: Connection

    async def streams(self, *, bidirectional: bool = True) -> tuple[Stream, Stream]:
        """Both ends of a new stream. The far end sees it with the first byte: this reads it."""
        near = await self.near.open_stream(bidirectional=bidirectional)
        await near.write(b"!")
        far = await self.far.accept_stream()
        assert await far.readexactly(1) == b"!"
        return near, far


@asynccontextmanager
async def connected(**settings: Any) -> AsyncIterator[Pair]:
    """Two endpoints in this process, connected."""
    endpoints = make_endpoint(**settings), make_endpoint(**settings)
    try:
        near = await dial(endpoints[0], address_of(endpoints[1]))
        yield Pair(endpoints, near, await accept(endpoints[1]))
    finally:
        await shut(*endpoints)
