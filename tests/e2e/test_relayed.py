"""Nodes find each other through a peer they share, and talk through it where they must."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from anyreach import ConnectError, Identity, Node, P2pConfig
from anyreach.events import Connected, Disconnected, Relay

from .support import DUAL, PATIENCE, V4, V6, Watch, accepted, at, exchange, nodes, soon, until
from .trio import LOOPBACK, RELAYED, trio

if TYPE_CHECKING:
    from anyreach import PeerId


async def test_a_peer_is_found_through_a_peer() -> None:
    async with trio() as nodes:
        connection, far = await nodes.connect()
        path = connection.path
        assert path is not None
        assert (path.method, path.relay) == ("direct", None)
        assert [a.reason for a in connection.attempts if a.address == path.remote] == ["ok"]
        await exchange(connection, far)
        assert nodes.alice.metrics().candidates_total["found", "connected"] == 1
        assert nodes.alice.metrics().relay_reservations == 0, "one machine needs no relay"


async def test_a_search_waits_for_known_peers_that_are_being_dialed() -> None:
    async with nodes(V4) as (hub,):
        known = {**V4, "known_peers": [at(hub, "127.0.0.1")]}
        async with nodes(known) as (bob,):
            await until(lambda: len(hub.connections) == 1)
            async with nodes(known) as (alice,):
                assert alice.connections == ()
                connection = await soon(alice.connect(bob.peer_id))
                assert connection.path is not None
                assert connection.path.method == "direct"


@pytest.mark.parametrize("reservations", [0, 2])
async def test_who_does_not_want_to_be_found_is_not(reservations: int) -> None:
    bob = {"findable": False, "relay_reservations": reservations}
    async with trio(bob=bob) as nodes:
        with pytest.raises(ConnectError, match="no peer that was asked tells") as caught:
            await soon(nodes.alice.connect(nodes.bob.peer_id))
        (attempt,) = caught.value.attempts
        assert attempt.reason == "unknown-peer"
        assert "does not want to be found" in attempt.detail
        # Nor is that a wall: whoever has the address may call.
        await soon(nodes.alice.connect(at(nodes.bob, "127.0.0.1")))


async def test_a_node_without_reservations_is_found_all_the_same() -> None:
    async with trio(both={"relay_reservations": 0}) as nodes:
        connection, far = await nodes.connect()
        await exchange(connection, far)


async def test_nobody_knows_a_stranger() -> None:
    async with trio() as nodes:
        with pytest.raises(ConnectError, match="no peer that was asked tells") as caught:
            await soon(nodes.alice.connect(Identity.generate().peer_id))
        (attempt,) = caught.value.attempts
        assert attempt.address == f"peer {nodes.hub.peer_id.short}…"
        assert attempt.detail == "it does not know the peer"


async def test_everything_through_a_relay() -> None:
    async with trio(**RELAYED) as nodes:
        watches = [Watch(node) for node in (nodes.alice, nodes.bob)]
        connection, far = await nodes.connect()
        relay = str(nodes.hub.peer_id)
        for end, watch in zip((connection, far), watches, strict=True):
            path = end.path
            assert path is not None
            assert (path.method, path.relay) == ("relayed", relay)
            told = await watch.next(Connected, method="relayed")
            assert told.relay == nodes.hub.peer_id
            assert told.to_dict()["relay"] == relay
        await exchange(connection, far, bytes(300_000))
        await exchange(far, connection, bytes(300_000))
        assert connection.paths[0].method == "relayed"
        # Alice has UDP, so bob's tunnel is enough.
        winner = [a.address for a in connection.attempts if a.reason == "ok"]
        assert len(winner) == 1
        assert f"at relay {relay[:8]}" in winner[0]
        assert "through" not in winner[0], connection.attempts


async def test_a_relay_need_not_send_to_loopback_for_its_own_clients() -> None:
    async with trio(both={"direct": False}, ready=Relay) as nodes:
        connection, far = await nodes.connect()
        # Alice's packets come from her own address at the relay: that is no loopback to anybody.
        assert any(a.reason == "ok" and "through h3" in a.address for a in connection.attempts)
        for end in (connection, far):
            assert end.path is not None
            assert (end.path.method, end.path.relay) == ("relayed", str(nodes.hub.peer_id))
        await exchange(connection, far)


async def test_a_tunnel_without_a_reservation_is_no_direct_path_to_the_other_end() -> None:
    alice = {"relay_reservations": 0, "findable": False}
    async with trio(both={"direct": False}, alice=alice, ready=Relay) as nodes:
        watch = Watch(nodes.bob)
        connection, far = await nodes.connect()
        assert (await watch.next(Connected, direction="in")).method == "relayed"
        for end in (connection, far):
            assert end.path is not None
            assert end.path.method == "relayed"
        await exchange(connection, far)


@pytest.mark.parametrize("mode", [V6, DUAL], ids=["v6", "dual"])
async def test_other_families_are_relayed_as_well(mode: dict[str, Any]) -> None:
    async with nodes({**mode, "relay_allow_targets": LOOPBACK}) as (hub,):
        known = {**mode, "known_peers": [at(hub, "::1")], "direct": False}
        async with nodes(known, known) as (alice, bob):
            await Watch(bob).next(Relay, state="reserved")
            connection = await soon(alice.connect(bob.peer_id, timeout=PATIENCE))
            assert connection.path is not None
            assert connection.path.method == "relayed"
            await exchange(connection, await accepted(bob))


async def test_a_given_address_is_reached_through_the_relay_that_lives_there() -> None:
    async with nodes({**V4, "direct": False}, V4) as (alice, bob):
        connection = await soon(alice.connect(at(bob, "127.0.0.1"), timeout=PATIENCE))
        assert connection.path is not None
        assert (connection.path.method, connection.path.relay) == ("relayed", str(bob.peer_id))
        await exchange(connection, await accepted(bob))


async def test_without_relays_nothing_is_relayed() -> None:
    async with trio(
        both={"relay_fallback": False}, bob={"direct": False, "relay_fallback": True}
    ) as nodes:
        # Bob tells no address of his own, but the hub sees one.
        connection, _ = await nodes.connect()
        assert connection.path is not None
        assert connection.path.method == "direct"
        assert not nodes.alice.metrics().relay_reservations_total


async def test_a_node_that_relays_for_nobody_is_asked_by_nobody() -> None:
    async with trio(both={"direct": False}, hub={"serve_relay": False}) as nodes:
        with pytest.raises(ConnectError):
            await soon(nodes.alice.connect(nodes.bob.peer_id, timeout=1.5))
        assert not nodes.bob.metrics().relay_reservations_total


async def test_a_relay_sends_nothing_where_its_operator_denies_it() -> None:
    hub = {**RELAYED["hub"], "relay_deny_targets": ("0.0.0.0/0",)}
    async with trio(**{**RELAYED, "hub": hub}) as nodes:
        with pytest.raises(ConnectError):
            await soon(nodes.alice.connect(nodes.bob.peer_id, timeout=1.5))
        reasons = nodes.hub.metrics().rejected_total
        # From a client that tunnels, and to one whose relayed address was dialed.
        assert reasons["relay_target"] + reasons["relay_source"] > 0, reasons


async def test_all_clients_of_a_relay_share_its_total() -> None:
    hub = {**RELAYED["hub"], "relay_quota": 0, "relay_total_quota": "2MiB/s"}
    async with trio(**{**RELAYED, "hub": hub}) as nodes:
        connection, far = await nodes.connect()
        for _ in range(4):  # more than the 4 MiB all may be ahead of the rate
            await exchange(connection, far, bytes(1 << 20))
        assert nodes.hub.metrics().rejected_total["relay_total_quota"] > 0


async def test_a_relay_that_restarts_is_used_again() -> None:
    identity = Identity.generate()
    options = {**RELAYED, "hub": {**RELAYED["hub"], "identity": identity}}
    async with trio(**options) as nodes:
        watch = Watch(nodes.bob)
        place = nodes.hub.addresses[0]
        await nodes.hub.close()
        await watch.next(Relay, state="lost")
        again = P2pConfig(
            bind_addr=place, ip_mode="v4", identity=identity, relay_allow_targets=LOOPBACK
        )
        async with Node(again):
            await watch.next(Relay, state="reserved", peer_id=identity.peer_id)
            for node in (nodes.alice, nodes.bob):
                await until(partial(knows, node, identity.peer_id))
            connection, far = await nodes.connect()
            await exchange(connection, far)


async def test_the_end_of_the_relay_ends_what_goes_through_it() -> None:
    options = {
        **RELAYED,
        "both": {**RELAYED["both"], "idle_timeout": 3.0, "keep_alive_interval": 1.0},
    }
    async with trio(**options) as nodes:
        watch = Watch(nodes.alice)
        connection, _ = await nodes.connect()
        await nodes.hub.close()
        lost = await soon(connection.wait_closed())
        assert lost.reason == "timeout"
        await watch.next(Disconnected, peer_id=nodes.bob.peer_id)


async def test_closing_in_the_middle_of_a_search() -> None:
    async with trio(both={"direct": False}, hub={"serve_relay": False}) as nodes:
        calls = [
            asyncio.create_task(nodes.alice.connect(Identity.generate().peer_id)) for _ in range(5)
        ]
        calls.append(asyncio.create_task(nodes.alice.connect(nodes.bob.peer_id)))
        await asyncio.sleep(0)
        await soon(nodes.alice.close())
        results = await soon(asyncio.gather(*calls, return_exceptions=True))
        assert all(isinstance(result, Exception) for result in results)


def knows(node: Node, peer: PeerId) -> bool:
    return any(connection.peer_id == peer for connection in node.connections)
