"""Known peers are joined, joined again after a restart, and told apart from ourselves."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import pytest

from anyreach import BindError, Identity, IdentityInUse, Node, P2pConfig
from anyreach.events import Disconnected, KnownPeerState, Ready

from .support import DUAL, V4, Watch, at, exchange, jobs, nodes, port_of, soon, until

if TYPE_CHECKING:
    from pathlib import Path

SILENT = "127.0.0.1:9"


async def test_a_known_peer_is_joined_by_place() -> None:
    async with nodes(V4) as (server,):
        place = f"localhost:{port_of(server)}"
        async with nodes({**DUAL, "known_peers": [place]}) as (node,):
            joined = await Watch(node).next(KnownPeerState, state="connected")
            assert joined.peer_id == server.peer_id
            assert joined.address == place
            assert joined.error is None
            (connection,) = node.connections
            await until(lambda: len(server.connections) == 1)
            await exchange(connection, server.connections[0])


async def test_events_subscribed_before_the_start_miss_nothing() -> None:
    async with nodes(V4) as (server,):
        node = Node(P2pConfig(**V4, known_peers=[at(server, "127.0.0.1")]))
        watch = Watch(node)
        async with node:
            await watch.next(KnownPeerState, state="connected", peer_id=server.peer_id)
        assert isinstance(watch.seen[0], Ready)
        assert sum(isinstance(event, Ready) for event in watch.seen) == 1


async def test_a_peer_that_restarts_is_joined_again() -> None:
    identity = Identity.generate()
    async with nodes({**V4, "identity": identity}) as (server,):
        fixed = {"bind_addr": f"127.0.0.1:{port_of(server)}", "ip_mode": "v4", "identity": identity}
        node = Node(P2pConfig(**V4, known_peers=[at(server, "127.0.0.1")]))
        watch = Watch(node)
        await node.start()
        await watch.next(KnownPeerState, state="connected")
        await server.close()
        # It learns at once, not by a timeout.
        begun = time.monotonic()
        assert (await watch.next(Disconnected)).reason == "closed"
        assert time.monotonic() - begun < 1.0
        async with nodes(fixed) as (restarted,):
            again = await watch.next(KnownPeerState, state="connected")
            assert again.peer_id == restarted.peer_id == identity.peer_id
            await until(lambda: len(restarted.connections) == 1)
            await exchange(node.connections[0], restarted.connections[0])
            await node.close()


async def test_a_peer_with_another_key_may_take_the_place() -> None:
    async with nodes(V4) as (server,):
        fixed = {"bind_addr": f"127.0.0.1:{port_of(server)}", "ip_mode": "v4"}
        async with nodes({**V4, "known_peers": [fixed["bind_addr"]]}) as (node,):
            watch = Watch(node)
            await watch.next(KnownPeerState, state="connected", peer_id=server.peer_id)
            await server.close()
            async with nodes(fixed) as (successor,):
                await watch.next(KnownPeerState, state="connected", peer_id=successor.peer_id)


async def test_an_absent_peer_is_told_and_tried_again() -> None:
    options = {**V4, "known_peers": [SILENT], "handshake_timeout": 0.1}
    async with nodes(options) as (node,):
        watch = Watch(node)
        for _ in range(2):
            failed = await watch.next(KnownPeerState, state="failed", address=SILENT)
            assert failed.peer_id is None
            assert failed.error is not None
            assert "handshake" in failed.error or "answer" in failed.error


async def test_a_wrong_peer_id_is_told() -> None:
    async with nodes(V4) as (server,):
        stranger = Identity.generate().peer_id
        entry = f"{stranger}@127.0.0.1:{port_of(server)}"
        async with nodes({**V4, "known_peers": [entry]}) as (node,):
            failed = await Watch(node).next(KnownPeerState, state="failed")
            assert failed.peer_id == stranger
            assert str(server.peer_id) in str(failed.error)


async def test_two_entries_of_one_peer_count_once() -> None:
    async with nodes(DUAL) as (server,):
        port = port_of(server)
        places = [f"127.0.0.1:{port}", f"[::1]:{port}", f"{server.peer_id}@localhost:{port}"]
        node = Node(P2pConfig(**DUAL, known_peers=places))
        watch = Watch(node)
        async with node:
            await watch.next(KnownPeerState, state="connected")
            await until(lambda: jobs("connect") == 0)
            assert len(node.connections) == len(server.connections) == 1
        joined = [e for e in (*watch.seen, *await watch.rest()) if isinstance(e, KnownPeerState)]
        assert len(joined) == 1


async def test_the_node_itself_is_dropped_from_its_known_peers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    identity = Identity.generate()
    async with nodes(V4) as (placeholder,):
        port = port_of(placeholder)
    for entry in (f"127.0.0.1:{port}", f"{identity.peer_id}@127.0.0.1:{port}"):
        options = {
            "bind_addr": f"127.0.0.1:{port}",
            "ip_mode": "v4",
            "identity": identity,
            "known_peers": [entry],
        }
        with caplog.at_level(logging.WARNING, "anyreach"):
            async with nodes(options) as (node,):
                watch = Watch(node)
                told = await watch.next(KnownPeerState, state="failed")
                assert "itself" in str(told.error)
                assert node.connections == ()
        assert any("itself" in record.message for record in caplog.records)
        assert not [e for e in await watch.rest() if isinstance(e, KnownPeerState)]
        caplog.clear()


async def test_a_known_peer_that_dials_us_ends_the_wait() -> None:
    async with nodes(V4) as (server,):
        entry = f"{server.peer_id}@{SILENT}"
        options = {**V4, "known_peers": [entry], "handshake_timeout": 0.1}
        async with nodes(options) as (node,):
            watch = Watch(node)
            for _ in range(3):  # so that the next pause may be long
                await watch.next(KnownPeerState, state="failed")
            await server.connect(at(node, "127.0.0.1"))
            await watch.next(KnownPeerState, state="connected", peer_id=server.peer_id)


async def test_closing_while_known_peers_are_dialed_or_waited_for() -> None:
    entries = [SILENT, "127.0.0.1:7", "no-such-host.invalid:1"]
    for timeout in (0.05, 10.0):
        options = {**V4, "known_peers": entries, "handshake_timeout": timeout}
        async with nodes(options) as (node,):
            await Watch(node).next(KnownPeerState, state="failed")
            await soon(node.close())


async def test_two_nodes_with_one_key_do_not_fight() -> None:
    twin = Identity.generate()
    async with nodes(V4) as (server,):
        options = {**V4, "identity": twin, "known_peers": [at(server, "127.0.0.1")]}
        async with nodes(options) as (first,):
            watch = Watch(first)
            await watch.next(KnownPeerState, state="connected")
            async with nodes(options) as (second,):
                await Watch(second).next(KnownPeerState, state="connected")
                failed = await watch.next(KnownPeerState, state="failed")
                assert "same key" in str(failed.error)
                assert failed.peer_id == server.peer_id
                # It leaves the field to the other one, for two seconds at least.
                assert len(second.connections) == 1
                assert not first.connections


async def test_a_key_file_belongs_to_one_node(tmp_path: Path) -> None:
    file = tmp_path / "node.pem"
    options = {**V4, "identity": file}
    async with nodes(options) as (node,):
        second = Node(P2pConfig(**options))
        with pytest.raises(IdentityInUse, match=r"node\.pem"):
            await second.start()
        await node.close()
        async with second:
            assert second.peer_id == node.peer_id
    # A node that cannot start does not keep the key from others.
    async with nodes(V4) as (other,):
        place = f"127.0.0.1:{port_of(other)}"
        blocked = Node(P2pConfig(bind_addr=place, ip_mode="v4", identity=file))
        with pytest.raises(BindError):
            await blocked.start()
        async with nodes(options):
            pass
        for pause in (0.0, 0.0, 0.001, 0.002):
            starting = asyncio.create_task(Node(P2pConfig(**options)).start())
            await asyncio.sleep(pause)
            starting.cancel()
            await asyncio.wait([starting])
            if not starting.cancelled():
                await starting.result().close()
            async with nodes(options):
                pass


async def test_a_peer_that_restarts_and_dials_us_is_no_second_node() -> None:
    identity = Identity.generate()
    async with nodes({**V4, "identity": identity}) as (server,):
        node = Node(P2pConfig(**V4, known_peers=[at(server, "127.0.0.1")]))
        watch = Watch(node)
        async with node:
            await watch.next(KnownPeerState, state="connected")
            async with nodes({**V4, "identity": identity}) as (again,):
                await again.connect(at(node, "127.0.0.1"))
                assert (await watch.next(Disconnected)).reason == "replaced"
                await watch.next(KnownPeerState, state="connected")
                assert not any(
                    isinstance(event, KnownPeerState) and event.state == "failed"
                    for event in watch.seen
                )
