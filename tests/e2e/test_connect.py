"""Reaching a peer, and failing to, between real endpoints on loopback."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from anyreach import (
    BindError,
    ConfigError,
    ConnectError,
    ConnectTimeout,
    Identity,
    IpMode,
    Node,
    NodeClosed,
    P2pConfig,
    PeerAddress,
    PeerId,
    PeerIdMismatch,
    Ticket,
)
from anyreach.addresses import HostPort

from .support import (
    DUAL,
    PATIENCE,
    V4,
    V6,
    accepted,
    at,
    exchange,
    jobs,
    nodes,
    port_of,
    soon,
    until,
)

SILENT = 9
"""The discard port: nothing listens there on a test machine."""

ABSENT = PeerId(bytes(32))
"""Nobody has this PeerId."""


@pytest.mark.parametrize(
    ("dialer", "listener", "host", "remote"),
    [
        (V4, V4, "127.0.0.1", "127.0.0.1"),
        (V6, V6, "::1", "::1"),
        (DUAL, DUAL, "127.0.0.1", "127.0.0.1"),
        (DUAL, DUAL, "::1", "::1"),
        (DUAL, DUAL, "localhost", None),
        (DUAL, V4, "127.0.0.1", "127.0.0.1"),
        (V6, DUAL, "::1", "::1"),
        # An IPv4-mapped address is IPv4 wherever a user can see it.
        (DUAL, DUAL, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
async def test_two_nodes_talk(
    dialer: dict[str, str], listener: dict[str, str], host: str, remote: str | None
) -> None:
    async with nodes(dialer, listener) as (alice, bob):
        there = f"[{host}]" if ":" in host else host
        outgoing = await alice.connect(f"{bob.peer_id}@{there}:{port_of(bob)}")
        incoming = await accepted(bob)
        assert (outgoing.peer_id, incoming.peer_id) == (bob.peer_id, alice.peer_id)
        assert (outgoing.direction, incoming.direction) == ("out", "in")
        assert outgoing.key_exchange_group == "X25519MLKEM768"
        path = outgoing.path
        assert path is not None
        assert path.method == "direct"
        if remote is not None:
            assert path.remote == str(HostPort(remote, port_of(bob)))
        await exchange(outgoing, incoming)
        await exchange(incoming, outgoing)
        assert alice.connections == (outgoing,)
        assert bob.connections == (incoming,)


async def test_every_form_of_peer() -> None:
    async with nodes(DUAL, DUAL) as (alice, bob):
        address = HostPort("127.0.0.1", port_of(bob))
        first = await alice.connect(f"127.0.0.1:{address.port}")
        assert first.peer_id == bob.peer_id
        for peer in (
            bob.peer_id,
            str(bob.peer_id),
            f"{bob.peer_id}@{address}",
            PeerAddress(bob.peer_id, (address,)),
            bob.ticket(),
            str(bob.ticket()),
            Ticket.of(bob.peer_id, [address]),
        ):
            assert await alice.connect(peer) is first


async def test_a_wrong_peer_id_is_told_from_an_absent_peer() -> None:
    async with nodes(V4, V4) as (alice, bob):
        stranger = Identity.generate().peer_id
        with pytest.raises(PeerIdMismatch) as caught:
            await alice.connect(PeerAddress(stranger, at(bob, "127.0.0.1").addresses))
        assert caught.value.expected == str(stranger)
        assert caught.value.actual == str(bob.peer_id)
        (attempt,) = caught.value.attempts
        assert attempt.reason == "peer-id-mismatch"
        assert attempt.address == f"127.0.0.1:{port_of(bob)}"
        assert str(bob.peer_id) in str(caught.value)
        assert alice.connections == bob.connections == ()
        # The right one is not hurt by that.
        await alice.connect(at(bob, "127.0.0.1"))


async def test_an_unreachable_port_fails_within_the_timeout() -> None:
    async with nodes(DUAL) as (alice,):
        begun = time.monotonic()
        peer = PeerAddress(ABSENT, (HostPort("::1", SILENT), HostPort("127.0.0.1", SILENT)))
        with pytest.raises(ConnectTimeout) as caught:
            await alice.connect(peer, timeout=0.6)
        assert 0.6 <= time.monotonic() - begun < 0.6 + 1.0
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, ConnectionError)
        direct = [a for a in caught.value.attempts if a.method == "direct"]
        assert [(a.address, a.reason) for a in direct] == [
            (f"[::1]:{SILENT}", "handshake-timeout"),
            (f"127.0.0.1:{SILENT}", "handshake-timeout"),
        ]
        first, second = direct
        # Where UDP says nothing, TCP was tried, and has refused.
        over_tcp = {(a.address, a.reason) for a in caught.value.attempts if a.method == "relayed"}
        assert over_tcp <= {
            (f"[::1]:{SILENT} by h2", "refused"),
            (f"127.0.0.1:{SILENT} by h2", "refused"),
        }
        assert over_tcp
        assert first.ms == pytest.approx(600, abs=300)
        assert second.ms < first.ms - 150  # it began one attempt delay later


async def test_a_short_handshake_timeout_ends_the_attempt_first() -> None:
    async with nodes({**V4, "handshake_timeout": 0.2, "relay_fallback": False}) as (alice,):
        with pytest.raises(ConnectTimeout, match="did not answer") as caught:
            await alice.connect(f"127.0.0.1:{SILENT}", timeout=PATIENCE)
        (attempt,) = caught.value.attempts
        assert attempt.reason == "handshake-timeout"


async def test_a_dead_first_family_costs_one_attempt_delay() -> None:
    delay = 0.5
    async with nodes({**DUAL, "attempt_delay": delay}, V4) as (alice, bob):
        peer = PeerAddress(bob.peer_id, (HostPort("::1", SILENT), *at(bob, "127.0.0.1").addresses))
        begun = time.monotonic()
        connection = await alice.connect(peer)
        elapsed = time.monotonic() - begun
        assert connection.path is not None
        assert connection.path.remote == f"127.0.0.1:{port_of(bob)}"
        assert delay <= elapsed < 2 * delay


async def test_a_family_the_socket_has_not_costs_nothing() -> None:
    async with nodes({**V4, "attempt_delay": 2.0}, V4) as (alice, bob):
        peer = PeerAddress(bob.peer_id, (HostPort("::1", SILENT), *at(bob, "127.0.0.1").addresses))
        begun = time.monotonic()
        await alice.connect(peer)
        assert time.monotonic() - begun < 1.0


async def test_what_cannot_work_is_not_tried() -> None:
    async with nodes(V4) as (alice,):
        peer = PeerAddress(ABSENT, (HostPort("::1", 1000), HostPort("192.0.2.1", 1000)))
        begun = time.monotonic()
        with pytest.raises(ConnectError) as caught:
            await alice.connect(peer)
        assert time.monotonic() - begun < 1.0
        assert [(a.address, a.reason) for a in caught.value.attempts] == [
            ("[::1]:1000", "family"),
            # Bound to loopback, the socket cannot send anywhere else.
            ("192.0.2.1:1000", "unreachable"),
        ]


async def test_a_name_without_address() -> None:
    async with nodes(V4) as (alice,):
        with pytest.raises(ConnectError) as caught:
            await alice.connect("no-such-host.invalid:9000")
        (attempt,) = caught.value.attempts
        assert attempt.address == "no-such-host.invalid:9000"
        assert attempt.reason == "name-resolution"


async def test_an_unknown_peer_id_says_what_to_pass() -> None:
    async with nodes(V4) as (alice,):
        with pytest.raises(ConnectError, match="ID@HOST:PORT or a ticket") as caught:
            await alice.connect(Identity.generate().peer_id)
        assert caught.value.attempts == ()


async def test_a_peer_is_found_again_by_its_id() -> None:
    async with nodes(V4, V4) as (alice, bob):
        first = await alice.connect(at(bob, "127.0.0.1"))
        first.close()
        await soon(first.wait_closed())
        second = await alice.connect(bob.peer_id)
        assert second != first
        assert second.peer_id == bob.peer_id
        assert alice.metrics().candidates_total["remembered", "connected"] == 1


async def test_a_peer_that_dialed_us_is_found_by_its_id() -> None:
    async with nodes(V4, V4) as (alice, bob):
        await alice.connect(at(bob, "127.0.0.1"))
        incoming = await accepted(bob)
        incoming.close()
        await soon(incoming.wait_closed())
        await until(lambda: not alice.connections)
        assert (await bob.connect(alice.peer_id)).direction == "out"


async def test_link_local_addresses_with_their_zone() -> None:
    async with nodes(DUAL, DUAL) as (alice, bob):
        zoned = next((address for address in bob.addresses if "%" in address), None)
        if zoned is None:
            pytest.skip("this machine has no IPv6 link-local address")
        connection = await alice.connect(f"{bob.peer_id}@{zoned}")
        connection.close()
        await soon(connection.wait_closed())
        assert (await alice.connect(bob.peer_id)).peer_id == bob.peer_id


async def test_a_node_does_not_dial_itself() -> None:
    async with nodes(DUAL) as (alice,):
        with pytest.raises(ConnectError, match="own"):
            await alice.connect(alice.ticket())
        with pytest.raises(ConnectError, match="itself") as caught:
            await alice.connect(f"127.0.0.1:{port_of(alice)}")
        assert [a.reason for a in caught.value.attempts] == ["self"]
        assert alice.connections == ()


async def test_concurrent_calls_share_one_connection() -> None:
    async with nodes(DUAL, DUAL) as (alice, bob):
        calls = [
            alice.connect(peer)
            for peer in (
                at(bob, "127.0.0.1"),
                at(bob, "::1"),
                bob.ticket(),
                f"127.0.0.1:{port_of(bob)}",
                f"[::1]:{port_of(bob)}",
            )
            * 4
        ]
        connections = await soon(asyncio.gather(*calls))
        assert len(set(connections)) == 1
        await until(lambda: len(bob.connections) == 1)
        await exchange(connections[0], bob.connections[0])
        assert alice.metrics().connections_total["direct"] == 1


async def test_cancelling_a_call_ends_its_attempts() -> None:
    async with nodes(V4) as (alice,):
        before = asyncio.all_tasks()
        call = asyncio.create_task(alice.connect(f"127.0.0.1:{SILENT}"))
        await until(lambda: jobs("dial") > 0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert asyncio.all_tasks() == before
        assert alice.metrics().candidates_total["given", "cancelled"] == 1


async def test_cancelling_one_of_two_calls_leaves_the_other() -> None:
    async with nodes({**DUAL, "attempt_delay": 0.3}, V4) as (alice, bob):
        peer = PeerAddress(bob.peer_id, (HostPort("::1", SILENT), *at(bob, "127.0.0.1").addresses))
        first = asyncio.create_task(alice.connect(peer))
        second = asyncio.create_task(alice.connect(peer))
        await until(lambda: jobs("dial") > 0)
        first.cancel()
        assert (await soon(second)).peer_id == bob.peer_id
        assert first.cancelled()


async def test_a_second_call_brings_its_addresses_to_a_race_that_would_fail() -> None:
    async with nodes({**V4, "attempt_delay": 0.01}, V4) as (alice, bob):
        lost = PeerAddress(bob.peer_id, (HostPort("127.0.0.1", SILENT),))
        first = asyncio.create_task(alice.connect(lost))
        await until(lambda: jobs("dial") > 0)
        second = await alice.connect(at(bob, "127.0.0.1"))
        assert await soon(first) is second


async def test_a_peer_that_dials_us_ends_our_race() -> None:
    async with nodes(V4, V4) as (alice, bob):
        lost = PeerAddress(bob.peer_id, (HostPort("127.0.0.1", SILENT),))
        call = asyncio.create_task(alice.connect(lost))
        await until(lambda: jobs("dial") > 0)
        await bob.connect(at(alice, "127.0.0.1"))
        connection = await soon(call)
        assert connection.direction == "in"
        assert connection.peer_id == bob.peer_id


async def test_closing_the_node_ends_a_call() -> None:
    async with nodes(V4) as (alice,):
        calls = [asyncio.create_task(alice.connect(f"127.0.0.1:{SILENT}")) for _ in range(3)]
        await until(lambda: jobs("dial") > 0)
        await soon(alice.close())
        for call in calls:
            with pytest.raises(NodeClosed):
                await call


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
async def test_a_timeout_must_be_positive(timeout: float) -> None:
    async with nodes(V4) as (alice,):
        with pytest.raises(ConfigError, match="positive"):
            await alice.connect("127.0.0.1:9", timeout=timeout)


@pytest.mark.parametrize("peer", ["", "nonsense", "127.0.0.1", "127.0.0.1:0", "anyr1aaaa", "@:1"])
async def test_a_peer_that_is_none_is_refused(peer: str) -> None:
    async with nodes(V4) as (alice,):
        with pytest.raises(ConfigError):
            await alice.connect(peer)


async def test_a_port_in_use_is_a_clear_error() -> None:
    async with nodes(V4) as (alice,):
        taken = P2pConfig(bind_addr=f"127.0.0.1:{port_of(alice)}", ip_mode=IpMode.IPV4_ONLY)
        node = Node(taken)
        with pytest.raises(BindError, match=str(port_of(alice))) as caught:
            await node.start()
        assert isinstance(caught.value, OSError)
        await alice.close()
        async with node:  # free again, so the same node can start now
            assert node.addresses == (taken.bind_addr,)


async def test_an_address_of_another_host_cannot_be_bound() -> None:
    with pytest.raises(BindError):
        await Node(P2pConfig(bind_addr="192.0.2.77:0", ip_mode=IpMode.IPV4_ONLY)).start()


async def test_a_peer_that_is_no_node_does_not_hang_a_call() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        async with nodes(V4) as (alice,):
            with pytest.raises(ConnectTimeout):
                await alice.connect(f"127.0.0.1:{mute.getsockname()[1]}", timeout=0.2)


async def test_peer_ids_are_those_of_the_identities() -> None:
    identity = Identity.generate()
    async with nodes({**V4, "identity": identity}, V4) as (alice, bob):
        connection = await bob.connect(at(alice, "127.0.0.1"))
        assert connection.peer_id == alice.peer_id == identity.peer_id
        assert PeerId.from_public_key(connection.public_key) == identity.peer_id
