"""A connection moves to a better path and back, and what is counted of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from anyreach import Node, P2pConfig
from anyreach.addresses import SocketAddress
from anyreach.candidates import DefaultCandidatePolicy, PairingResult
from anyreach.events import PathChanged

from .support import PATIENCE, V4, Watch, at, exchange, port_of, soon, until
from .trio import LOOPBACK, Trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from anyreach import Connection
    from anyreach.candidates import Candidate

PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Nowhere(DefaultCandidatePolicy):
    """Finds no address of anybody worth a direct attempt, but for known peers."""

    but: int = 0

    def pair(
        self, local: Sequence[Candidate], remote: Sequence[Candidate], *, controlling: bool = True
    ) -> PairingResult:
        kept = [each for each in remote if each.address.port == self.but]
        return DefaultCandidatePolicy.pair(self, local, kept, controlling=controlling)


class Line(asyncio.DatagramProtocol):
    """A line to a node that can be cut: forwards datagrams both ways."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self._transport: asyncio.DatagramTransport | None = None
        self._ends: dict[Any, _Far] = {}
        self.cut = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.cut:
            return
        end = self._ends.get(addr)
        if end is None:
            end = self._ends[addr] = _Far(self, addr)
            end.task = asyncio.create_task(end.open(self._to))
        end.send(data)

    def back(self, data: bytes, addr: Any) -> None:
        if not self.cut and self._transport is not None:
            self._transport.sendto(data, addr)

    def close(self) -> None:
        for end in self._ends.values():
            end.close()
        if self._transport is not None:
            self._transport.close()


class _Far(asyncio.DatagramProtocol):
    """One user of the line, at its far end."""

    def __init__(self, line: Line, user: Any) -> None:
        self._line = line
        self._user = user
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []
        self.task: asyncio.Task[None] | None = None

    async def open(self, to: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=to)
        for data in self._waiting:
            self._transport.sendto(data)

    def send(self, data: bytes) -> None:
        if self._transport is None:
            self._waiting.append(data)
        else:
            self._transport.sendto(data)

    def datagram_received(self, data: bytes, _: Any) -> None:
        self._line.back(data, self._user)

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if self._transport is not None:
            self._transport.close()


@asynccontextmanager
async def line_to(port: int) -> AsyncIterator[tuple[Line, SocketAddress]]:
    """A line to a port of this machine, and where it begins."""
    loop = asyncio.get_running_loop()
    transport, line = await loop.create_datagram_endpoint(
        lambda: Line(("127.0.0.1", port)), local_addr=("127.0.0.1", 0)
    )
    try:
        yield line, SocketAddress.of("127.0.0.1", transport.get_extra_info("sockname")[1])
    finally:
        line.close()


def improve(nodes: Trio, connection: Connection, address: SocketAddress) -> None:
    """Have alice try a direct path to bob there, as if she had been dialing it."""
    assert nodes.alice._running is not None
    nodes.alice._running._improving.upgrades.begin(connection._core, [address], [])


async def test_data_moves_to_a_direct_path_and_back_when_that_dies() -> None:
    async with _relayed_first() as (nodes, connection, far):
        watch = Watch(nodes.alice)
        async with line_to(port_of(nodes.bob)) as (line, address):
            improve(nodes, connection, address)
            better = await watch.next(PathChanged)
            assert (better.method, better.reason) == ("direct", "better")
            assert (better.remote, better.relay) == (str(address), None)
            await until(lambda: all(_method(end) == "direct" for end in (connection, far)))
            metrics = nodes.alice.metrics()
            assert metrics.path_switches_total["relayed", "direct", "better"] == 1
            assert metrics.connections == {"direct": 2, "punched": 0, "relayed": 0}
            assert metrics.connections_total["relayed"] == 1
            assert metrics.failover_seconds.count == 0
            await exchange(connection, far)

            stream = await soon(connection.open_stream())
            sending = asyncio.create_task(_send(stream))
            received = await soon(far.accept_stream())
            await soon(received.readexactly(PIECE))
            line.cut = True
            lost = await watch.next(PathChanged)
            assert (lost.method, lost.reason) == ("relayed", "failover")
            assert lost.relay == nodes.hub.peer_id
            await soon(received.readexactly(4 * PIECE))
            sending.cancel()
            await asyncio.wait([sending])
            metrics = nodes.alice.metrics()
            assert metrics.path_switches_total["direct", "relayed", "failover"] == 1
            assert metrics.failover_seconds.count == 1
            assert 0.1 < metrics.failover_seconds.sum < PATIENCE
            assert metrics.connections["relayed"] == 1

            # The same connection all the time; and once more, without being asked.
            line.cut = False
            assert (await watch.next(PathChanged)).method == "direct"
            assert connection.close_reason is None


async def _send(stream: Any) -> None:
    while True:
        await stream.write(bytes(PIECE))


def _method(connection: Connection) -> str | None:
    path = connection.path
    return None if path is None else path.method


@asynccontextmanager
async def _relayed_first() -> AsyncIterator[tuple[Trio, Connection, Connection]]:
    """A connection that is relayed only because alice finds no address worth a try."""
    hub = P2pConfig(**V4, relay_allow_targets=LOOPBACK)
    async with Node(hub) as center:
        known = {**V4, "known_peers": [at(center, "127.0.0.1")]}
        policy = Nowhere(but=port_of(center))
        async with (
            Node(P2pConfig(**known, direct=False)) as bob,
            Node(P2pConfig(**known, candidate_policy=policy)) as alice,
        ):
            await until(lambda: bob.metrics().relay_reservations == 1)
            nodes = Trio(center, alice, bob)
            yield nodes, *await nodes.connect()
