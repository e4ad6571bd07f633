"""Each metric has a measuring point: real traffic moves it."""

from __future__ import annotations

import re
import socket

import pytest

from anyreach import ConnectError, Identity, Node, PeerAddress, PeerId, PeerIdMismatch
from anyreach.addresses import HostPort
from anyreach.events import Disconnected, ExternalAddress, Relay
from anyreach.metrics import CONTENT_TYPE

from .support import DUAL, V4, Watch, accepted, at, exchange, nodes, port_of, until
from .trio import RELAYED, trio

SIZE = 300_000


async def test_connections() -> None:
    async with nodes(V4, V4) as (alice, bob):
        watch = Watch(alice)
        assert alice.metrics().connections["direct"] == 0
        connection = await alice.connect(at(bob, "127.0.0.1"))
        await accepted(bob)
        for node in (alice, bob):
            metrics = node.metrics()
            assert metrics.connections["direct"] == 1
            assert metrics.connections_total["direct"] == 1
            assert metrics.connect_seconds["direct"].count == 1
            assert 0 < metrics.connect_seconds["direct"].sum < 5
        connection.close()
        await watch.next(Disconnected)
        metrics = alice.metrics()
        assert metrics.connections["direct"] == 0
        assert metrics.connections_total["direct"] == 1


async def test_bytes_of_open_and_of_ended_connections() -> None:
    async with nodes(V4, V4) as (alice, bob):
        watch, their_watch = Watch(alice), Watch(bob)
        connection = await alice.connect(at(bob, "127.0.0.1"))
        other_end = await accepted(bob)
        before = alice.metrics().bytes_total
        await exchange(connection, other_end, bytes(SIZE))
        during = alice.metrics().bytes_total
        for direction in ("sent", "received"):
            assert during["direct", direction] - before["direct", direction] >= SIZE
        await exchange(connection, other_end, bytes(SIZE))
        connection.close()
        await watch.next(Disconnected)
        after = alice.metrics().bytes_total
        for direction in ("sent", "received"):
            assert after["direct", direction] - during["direct", direction] >= SIZE
        # What one side sent the other received, but for what was under way at the end.
        await their_watch.next(Disconnected)
        theirs = bob.metrics().bytes_total
        assert theirs["direct", "received"] == pytest.approx(after["direct", "sent"], rel=0.05)


async def test_candidates_and_pairs() -> None:
    async with nodes(V4, DUAL) as (alice, bob):
        await alice.connect(
            PeerAddress(
                bob.peer_id, (HostPort("::1", port_of(bob)), *at(bob, "127.0.0.1").addresses)
            )
        )
        metrics = alice.metrics()
        assert metrics.candidates_total["given", "family"] == 1
        assert metrics.candidates_total["given", "connected"] == 1
        assert metrics.candidate_pairs_total["cross_family"] == 1
        assert metrics.candidate_pairs_total["kept"] == 1
        nowhere = PeerAddress(PeerId(bytes(32)), (HostPort("192.0.2.1", 1),))
        with pytest.raises(ConnectError):
            await alice.connect(nowhere)
        assert alice.metrics().candidate_pairs_total["scope"] == 1
        assert alice.metrics().candidates_total["given", "unreachable"] == 1
        crowd = tuple(HostPort("127.0.0.1", port) for port in range(10_000, 10_040))
        with pytest.raises(ConnectError):
            await alice.connect(PeerAddress(PeerId(bytes(32)), crowd), timeout=0.01)
        metrics = alice.metrics()
        assert metrics.candidate_pairs_total["limit"] == 8
        assert metrics.candidates_total["given", "cancelled"] >= 1
        assert metrics.candidates_total["given", "unused"] >= 1


async def test_names_and_failures() -> None:
    async with nodes({**DUAL, "handshake_timeout": 0.1}, DUAL) as (alice, bob):
        await alice.connect(f"localhost:{port_of(bob)}")
        assert alice.metrics().candidates_total["dns", "connected"] == 1
        with pytest.raises(ConnectError):
            await alice.connect("127.0.0.1:9")
        assert alice.metrics().candidates_total["given", "failed"] == 1


async def test_observed_address() -> None:
    async with nodes(V4, V4) as (alice, bob):
        watch = Watch(alice)
        await alice.connect(at(bob, "127.0.0.1"))
        await watch.next(ExternalAddress)
        histogram = alice.metrics().observed_address_seconds
        assert histogram.count == 1
        assert 0 < histogram.sum < 5


async def test_refused_handshakes_and_junk() -> None:
    async with nodes(V4, V4) as (alice, bob):
        stranger = Identity.generate().peer_id
        with pytest.raises(PeerIdMismatch):
            await alice.connect(PeerAddress(stranger, at(bob, "127.0.0.1").addresses))
        await until(lambda: bob.metrics().rejected_total["handshake"] == 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
            there = ("127.0.0.1", port_of(bob))
            noise.sendto(b"", there)
            noise.sendto(b"\x00", there)
            # A STUN binding request: magic cookie at offset 4 (RFC 8489, 5).
            noise.sendto(bytes.fromhex("000100002112a442") + bytes(12), there)
        junk = ("junk_empty", "junk_runt", "junk_stun")
        await until(lambda: all(bob.metrics().rejected_total[reason] == 1 for reason in junk))
        # The node is none the worse for it.
        await alice.connect(at(bob, "127.0.0.1"))


async def test_the_connection_limit_is_counted() -> None:
    async with nodes({**V4, "max_connections": 1}, V4, V4) as (server, first, second):
        await first.connect(at(server, "127.0.0.1"))
        with pytest.raises(ConnectError):
            await second.connect(at(server, "127.0.0.1"))
        assert server.metrics().rejected_total["limit"] == 1


async def test_prometheus_text_of_a_node() -> None:
    async with nodes(V4, V4) as (alice, bob):
        await alice.connect(at(bob, "127.0.0.1"))
        text = alice.prometheus()
        assert "0.0.4" in CONTENT_TYPE
        names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
        assert names >= {
            "anyreach_connect_seconds",
            "anyreach_connections",
            "anyreach_connections_total",
            "anyreach_candidate_pairs_total",
            "anyreach_candidates_total",
            "anyreach_observed_address_seconds",
            "anyreach_rejected_total",
            "anyreach_bytes_total",
        }
        assert 'anyreach_connections{method="direct"} 1' in text.splitlines()


async def test_what_is_found_and_relayed() -> None:
    async with trio(**RELAYED) as trio_:
        hub, alice, bob = trio_.hub, trio_.alice, trio_.bob
        assert hub.metrics().relay_sessions == 2
        for node in (alice, bob):
            metrics = node.metrics()
            assert metrics.relay_reservations == 1
            assert metrics.relay_reservations_total == {("h3", "reserved"): 1}
            assert metrics.relay_sessions == 0
        before = {node: node.metrics().relay_bytes_total for node in (hub, alice, bob)}
        connection, far = await trio_.connect()
        for node in (alice, bob):
            metrics = node.metrics()
            assert metrics.connections["relayed"] == 1
            assert metrics.connections_total["relayed"] == 1
            assert metrics.connect_seconds["relayed"].count == 1
            assert 0 < metrics.connect_seconds["relayed"].sum < 20
        await exchange(connection, far, bytes(SIZE))

        # Each byte of alice's goes through bob's tunnel, in the words of whoever counts.
        def moved(node: Node, role: str, direction: str) -> int:
            return node.metrics().relay_bytes_total[role, direction] - before[node][role, direction]

        for here, there in (("received", "sent"), ("sent", "received")):
            assert moved(bob, "client", here) > SIZE
            assert moved(hub, "relay", there) > SIZE
        assert moved(alice, "relay", "sent") == moved(hub, "client", "sent") == 0
        assert alice.metrics().bytes_total["relayed", "sent"] > SIZE
        assert bob.metrics().bytes_total["relayed", "received"] > SIZE


async def test_losses_of_reservations_and_tunnels() -> None:
    async with trio(**RELAYED) as trio_:
        watch = Watch(trio_.bob)
        await trio_.hub.close()
        await watch.next(Relay, state="lost")
        metrics = trio_.bob.metrics()
        assert metrics.relay_reservations == 0
        assert metrics.relay_reservations_total["h3", "lost"] == 1
        assert trio_.hub.metrics().relay_sessions == 0


async def test_what_a_relay_does_not_carry() -> None:
    # Alice sends from loopback, which this relay lets nobody answer.
    async with trio(both={"direct": False}, ready=Relay) as trio_:
        await trio_.connect()
        assert trio_.hub.metrics().rejected_total["relay_source"] > 0
    async with trio(both={"direct": False}, hub={"serve_relay": False}) as trio_:
        reasons = trio_.hub.metrics().rejected_total
        assert not any(reason.startswith("relay_") for reason in reasons)


async def test_what_was_found_in_vain() -> None:
    async with trio() as trio_:
        await trio_.connect()
        assert trio_.alice.metrics().candidates_total["found", "connected"] == 1
    async with trio(
        both={"direct": False, "relay_fallback": True}, hub={"serve_relay": False}
    ) as n:
        with pytest.raises(ConnectError):
            await n.alice.connect(n.bob.peer_id, timeout=0.5)
        assert ("found", "connected") not in n.alice.metrics().candidates_total


async def test_prometheus_text_of_relays() -> None:
    async with trio(**RELAYED) as trio_:
        connection, far = await trio_.connect()
        await exchange(connection, far)
        lines = trio_.hub.prometheus().splitlines()
        assert "anyreach_relay_sessions 2" in lines
        assert 'anyreach_rejected_total{reason="relay_client_quota"} 0' in lines
        assert 'anyreach_rejected_total{reason="relay_request_relay_limit"} 0' in lines
        lines = trio_.alice.prometheus().splitlines()
        assert "anyreach_relay_reservations 1" in lines
        assert 'anyreach_relay_reservations_total{carrier="h3",outcome="reserved"} 1' in lines
        assert 'anyreach_connections{method="relayed"} 1' in lines
        assert 'anyreach_connect_seconds_count{method="relayed"} 1' in lines
