"""Ways around an outage: when every path of a connection has fallen silent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from anyreach._fallback import MAX_PLACES, PATIENCE, Fallback
from anyreach._proving import Contacts
from anyreach._tunnels import Tunnel
from anyreach.peer import PeerId

from .fake_core import FakeConnection, FakeEndpoint, FakePath, FakeTunnel, settle
from .virtual_time import in_virtual_time

if TYPE_CHECKING:
    from anyreach._tunnels import Tunnels

PEER, RELAY, OTHER = (PeerId(bytes([i]) * 32) for i in (2, 3, 4))
DIRECT = ("198.51.100.10", 9000)
BOUND = ("203.0.113.11", 5000)


@dataclass
class Rig:
    """A node with a tunnel, and a direct connection."""

    outbound: bool = True
    enabled: bool = True
    endpoint: FakeEndpoint = field(default_factory=FakeEndpoint)

    def __post_init__(self) -> None:
        self.tunnel = FakeTunnel(state="up", relay=RELAY.raw, carrier="h2")
        self.tunnel.node_addresses = [("203.0.113.11", 443)]
        self.tunnels = [Tunnel(self.tunnel.core(), RELAY)]
        self.connection = FakeConnection(
            id=7, peer_id=PEER.raw, outbound=self.outbound, route=[FakePath(0, DIRECT, rtt=0.04)]
        )
        self.fallback = Fallback(
            self.endpoint,
            self.endpoint.wait,
            tunnels=cast("Tunnels", self.tunnels),
            contacts=Contacts(),
            enabled=self.enabled,
        )

    async def silent(self, seconds: float = 0.1) -> None:
        """Nothing is answered for so long, which the core says every second."""
        until = asyncio.get_running_loop().time() + seconds
        while (left := until - asyncio.get_running_loop().time()) > 0:
            self.fallback.silent(self.connection.core())
            await asyncio.sleep(min(left, 1.0))

    async def end(self) -> None:
        if tasks := self.fallback.abandon():
            await asyncio.wait(tasks)


@in_virtual_time
async def test_a_silent_peer_is_looked_for_through_tunnels_and_at_its_relays() -> None:
    rig = Rig()
    rig.connection.reach = ([], [(OTHER.raw, [BOUND])])
    await rig.silent()
    assert {(p.address, p.via, p.relayed, p.standby) for p in rig.endpoint.paths} == {
        ("203.0.113.11 5000", rig.tunnel, True, True),
        ("203.0.113.11 5000", None, True, True),
        ("198.51.100.10 9000", rig.tunnel, False, True),
    }
    assert not any(path.proved for path in rig.endpoint.paths)
    assert rig.tunnel.probed == 1
    # Again, once all have failed.
    for path in rig.endpoint.paths:
        path.attempt.fail("handshake-timeout")
    await settle()
    await rig.silent()
    assert len(rig.endpoint.paths) == 6
    assert rig.tunnel.probed == 2
    # And not while that goes on.
    rig.endpoint.paths[3].attempt.outcome.set_result(1)
    await rig.silent(5)
    assert len(rig.endpoint.paths) == 6
    await rig.end()


@in_virtual_time
async def test_a_peer_that_moves_is_looked_for_where_it_was_last() -> None:
    rig = Rig(endpoint=FakeEndpoint())
    for port in range(1, 3 * MAX_PLACES):
        rig.connection.route = [FakePath(0, ("198.51.100.10", 9000 + port), rtt=0.04)]
        await rig.silent()
    for path in rig.endpoint.paths:
        path.attempt.fail("handshake-timeout")
    await settle()
    tried = len(rig.endpoint.paths)
    await rig.silent()
    again = {path.address for path in rig.endpoint.paths[tried:]}
    assert 1 <= len(again) <= MAX_PLACES
    assert "198.51.100.10 9001" not in again
    await rig.end()


@in_virtual_time
async def test_a_relay_is_reached_by_its_own_tunnel() -> None:
    rig = Rig()
    rig.connection.peer_id = RELAY.raw
    await rig.silent(5)
    assert ("203.0.113.11 443", rig.tunnel) in {(p.address, p.via) for p in rig.endpoint.paths}
    await rig.end()


@in_virtual_time
async def test_the_side_that_was_dialed_sees_to_its_tunnels() -> None:
    rig = Rig(outbound=False)
    await rig.silent(1 + 2 * PATIENCE)
    assert rig.endpoint.paths == []
    assert 1 <= rig.tunnel.probed <= 3
    await rig.end()


@pytest.mark.parametrize("why", ["off", "private", "down", "ended"])
@in_virtual_time
async def test_where_there_is_no_way(why: str) -> None:
    rig = Rig(enabled=why != "off")
    match why:
        case "private":
            rig.connection.route = [FakePath(0, ("192.168.1.7", 9000))]
        case "down":
            rig.tunnel.state = "down"
        case "ended":
            rig.connection.close_reason = ("closed", 0, "")
    await rig.silent(10)
    assert rig.endpoint.paths == []
    await rig.end()


@in_virtual_time
async def test_nothing_is_left_at_the_end() -> None:
    before = asyncio.all_tasks()
    rig = Rig()
    await rig.silent(5)
    assert rig.endpoint.paths
    rig.fallback.ended(7)
    await settle()
    await rig.end()
    assert asyncio.all_tasks() == before
