"""Ways around an outage: when every path of a connection has fallen silent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from anyreach._fallback import LOOK, PATIENCE, SILENCE, Fallback
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
        self.running = asyncio.create_task(self.fallback.run())
        self.fallback.entered(self.connection.core())

    async def sends(self, seconds: float, *, answered: bool) -> None:
        """The connection sends for so long, and gets answers or not."""
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            self.connection.sent_packets += 1
            self.connection.received_packets += answered
            await asyncio.sleep(0.1)

    async def end(self) -> None:
        tasks = [*self.fallback.abandon(), self.running]
        self.running.cancel()
        await asyncio.wait(tasks)


@in_virtual_time
async def test_while_answers_come_nothing_is_done() -> None:
    rig = Rig()
    await rig.sends(20, answered=True)
    await asyncio.sleep(1000)  # idle is not silent
    assert rig.endpoint.paths == []
    assert rig.tunnel.probed == 0
    await rig.end()


@in_virtual_time
async def test_a_silent_peer_is_looked_for_through_tunnels_and_at_its_relays() -> None:
    rig = Rig()
    rig.connection.reach = ([], [(OTHER.raw, [BOUND])])
    await rig.sends(2, answered=True)
    await rig.sends(SILENCE + 0.16 + 3 * LOOK, answered=False)
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
    await rig.sends(2 * LOOK, answered=False)
    assert len(rig.endpoint.paths) == 6
    rig.endpoint.paths[3].attempt.outcome.set_result(1)
    await rig.sends(10, answered=True)
    assert len(rig.endpoint.paths) == 6
    await rig.end()


@in_virtual_time
async def test_no_look_is_waited_for_once_the_silence_has_lasted() -> None:
    rig = Rig()
    await rig.sends(2, answered=True)
    # Noticed by the next look; there is no other one when patience ends, 0.16 s past the second.
    await rig.sends(LOOK + SILENCE + 0.16 + 0.1, answered=False)
    assert rig.endpoint.paths
    await rig.end()


@in_virtual_time
async def test_a_relay_is_reached_by_its_own_tunnel() -> None:
    rig = Rig()
    rig.connection.peer_id = RELAY.raw
    await rig.sends(5, answered=False)
    assert ("203.0.113.11 443", rig.tunnel) in {(p.address, p.via) for p in rig.endpoint.paths}
    await rig.end()


@in_virtual_time
async def test_the_side_that_was_dialed_sees_to_its_tunnels() -> None:
    rig = Rig(outbound=False)
    await rig.sends(SILENCE + 2 * PATIENCE, answered=False)
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
            rig.fallback.ended(7)
    await rig.sends(10, answered=False)
    assert rig.endpoint.paths == []
    await rig.end()


@in_virtual_time
async def test_nothing_is_left_at_the_end() -> None:
    before = asyncio.all_tasks()
    rig = Rig()
    await rig.sends(5, answered=False)
    assert rig.endpoint.paths
    rig.fallback.ended(7)
    await settle()
    await rig.end()
    assert asyncio.all_tasks() == before
