"""A node looks at its network, and a connection explains itself."""

from __future__ import annotations

import asyncio
import socket

import pytest

from anyreach import ConfigError, Node, NodeClosed, P2pConfig

from .support import PATIENCE, V4, accepted, at, nodes, port_of, soon, until
from .trio import RELAYED, trio

SILENT = "127.0.0.1:9"


async def test_relays_are_tried_and_nothing_of_the_node_is_touched() -> None:
    async with nodes({**V4, "tcp": "auto"}) as (hub,):
        known = {**V4, "known_peers": [at(hub, "127.0.0.1")]}
        async with nodes(known) as (node,):
            report = await soon(node.netcheck())
            assert (report.peer_id, report.udp, report.online) == (str(node.peer_id), "works", True)
            (peer,) = report.peers
            assert {check.carrier: check.ok for check in peer.carriers} == {"h3": True, "h2": True}
            assert peer.sees == f"127.0.0.1:{port_of(node)}"
            assert [c.peer_id for c in hub.connections] == [node.peer_id]
            assert node.metrics().relay_reservations == 0
            assert report.port_mapping.state == "not-needed"


async def test_a_relay_that_serves_no_tcp_says_so() -> None:
    async with nodes(V4) as (hub,), nodes({**V4, "known_peers": [at(hub, "127.0.0.1")]}) as (node,):
        (peer,) = (await soon(node.netcheck())).peers
        checks = {check.carrier: check for check in peer.carriers}
        assert checks["h3"].ok
        assert not checks["h2"].ok
        assert "refuses TCP" in checks["h2"].detail


async def test_a_peer_that_does_not_relay_is_not_tried() -> None:
    quiet = {**V4, "serve_relay": False}
    async with (
        nodes(quiet) as (hub,),
        nodes({**V4, "known_peers": [at(hub, "127.0.0.1")]}) as (node,),
    ):
        (peer,) = (await soon(node.netcheck())).peers
        assert (peer.relays, peer.carriers) == (False, ())


@pytest.mark.parametrize("timeout", [0, -1, float("inf")])
async def test_timeouts_that_mean_nothing_are_refused(timeout: float) -> None:
    async with nodes(V4) as (node,):
        with pytest.raises(ConfigError):
            await node.netcheck(timeout=timeout)


async def test_a_closed_node_does_not_report() -> None:
    node = Node(P2pConfig(**V4, known_peers=[SILENT]))
    with pytest.raises(NodeClosed):
        await node.netcheck()
    await node.start()
    check = asyncio.create_task(node.netcheck(timeout=1))
    await asyncio.sleep(0)
    await node.close()
    with pytest.raises(NodeClosed):
        await soon(check)


async def test_a_cancelled_check_leaves_nothing() -> None:
    # Somebody who takes packets and says nothing, so that there is something to wait for.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        silent = f"127.0.0.1:{deaf.getsockname()[1]}"
        async with nodes({**V4, "known_peers": [silent]}) as (node,):
            check = asyncio.create_task(node.netcheck(timeout=PATIENCE))
            await until(lambda: bool(_checking()))
            check.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(check)
            assert _checking() == []


def _checking() -> list[asyncio.Task[object]]:
    """Tasks that look at networks."""
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("anyreach-netcheck")]


async def test_a_direct_connection_has_nothing_to_explain() -> None:
    async with nodes(V4, V4) as (alice, bob):
        connection = await alice.connect(at(bob, "127.0.0.1"))
        told = connection.explain()
        assert (told.method, told.direction, told.is_direct) == ("direct", "out", True)
        assert told.remote == f"127.0.0.1:{port_of(bob)}"
        assert (told.plan, told.attempts, told.helps) == (None, (), ())
        other = (await accepted(bob)).explain()
        assert (other.direction, other.peer_id) == ("in", str(alice.peer_id))
        connection.close()
        await connection.wait_closed()
        assert connection.explain().method is None


async def test_a_relayed_connection_says_what_would_help() -> None:
    async with trio(**RELAYED) as three:
        connection, far = await three.connect()
        told = connection.explain()
        assert told.method == "relayed"
        assert "turned off on this side" in told.helps[0]
        assert f"is relayed through relay {str(three.hub.peer_id)[:10]}…" in str(told)
        assert far.explain().method == "relayed"
