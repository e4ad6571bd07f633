"""What a node tells about its connections, its address and its NAT."""

from __future__ import annotations

import asyncio
import json
import time

from anyreach import NatReport
from anyreach.events import Connected, Disconnected, Event, ExternalAddress, Nat, Ready
from anyreach.nat import FamilyNat

from .support import DUAL, V4, Watch, at, nodes, port_of, soon, until


async def test_a_connection_from_beginning_to_end() -> None:
    async with nodes(V4, V4) as (alice, bob):
        ours, theirs = Watch(alice), Watch(bob)
        connection = await alice.connect(at(bob, "127.0.0.1"))
        out, into = await ours.next(Connected), await theirs.next(Connected)
        assert (out.direction, into.direction) == ("out", "in")
        assert (out.peer_id, into.peer_id) == (bob.peer_id, alice.peer_id)
        assert out.remote == f"127.0.0.1:{port_of(bob)}"
        assert into.remote == f"127.0.0.1:{port_of(alice)}"
        for event in (out, into):
            assert event.method == "direct"
            assert event.group == "X25519MLKEM768"
            assert 0 < event.ms < 5000
            assert 0 < event.rtt_ms < 1000
        connection.close(7, "enough")
        assert (await ours.next(Disconnected)).reason == "local"
        assert (await theirs.next(Disconnected)).reason == "closed"


async def test_ms_counts_from_the_call() -> None:
    delay = 0.2
    async with nodes({**DUAL, "attempt_delay": delay}, V4) as (alice, bob):
        watch = Watch(alice)
        address = at(bob, "127.0.0.1").addresses[0]
        dead = type(address)("::1", 9)
        await alice.connect(type(at(bob, "::1"))(bob.peer_id, (dead, address)))
        connected = await watch.next(Connected)
        assert connected.ms >= delay * 1000
        assert connected.ms > connected.rtt_ms


async def test_both_sides_learn_their_external_address() -> None:
    async with nodes(V4, V4) as (alice, bob):
        ours, theirs = Watch(alice), Watch(bob)
        await alice.connect(at(bob, "127.0.0.1"))
        for node, watch in ((alice, ours), (bob, theirs)):
            seen = await watch.next(ExternalAddress)
            assert seen == ExternalAddress(f"127.0.0.1:{port_of(node)}", observers=1)
            assert await watch.next(Nat) == Nat(mapping="none", filtering="unknown")
            assert node.nat.external_addresses == (seen.address,)
            assert node.nat.observers == (1,)


async def test_an_address_is_believed_when_peers_of_two_networks_agree() -> None:
    observers = [{"bind_addr": f"127.{net}.0.1:0", "ip_mode": "v4"} for net in (1, 2, 3)]
    wildcard = {"bind_addr": "0.0.0.0:0", "ip_mode": "v4"}
    async with nodes(wildcard, *observers) as (node, first, second, third):
        watch = Watch(node)
        await node.connect(at(first, "127.1.0.1"))
        here = f"127.0.0.1:{port_of(node)}"
        assert await watch.next(ExternalAddress) == ExternalAddress(here, 1)
        assert node.metrics().candidates_total["observed", "reported"] == 1
        assert ("observed", "believed") not in node.metrics().candidates_total
        await node.connect(at(second, "127.2.0.1"))
        assert await watch.next(ExternalAddress) == ExternalAddress(here, 2)
        assert node.metrics().candidates_total["observed", "believed"] == 1
        ours = (FamilyNat(4, "none"),)
        assert node.nat == NatReport("none", "unknown", (here,), (2,), families=ours)
        # That both leave says nothing about a NAT; but nobody vouches for the address any more.
        await first.close()
        await second.close()
        for _ in range(2):
            await watch.next(Disconnected)
        await until(lambda: not node._open().local.observed.observations())
        await node.connect(at(third, "127.3.0.1"))
        assert await watch.next(ExternalAddress) == ExternalAddress(here, 1)
        assert sum(isinstance(event, Nat) for event in watch.seen) == 1
        assert node.nat == NatReport("none", "unknown", (here,), (1,), families=ours)


async def test_events_are_json_with_the_documented_names() -> None:
    async with nodes(V4, V4) as (alice, bob):
        watch = Watch(alice)
        connection = await alice.connect(at(bob, "127.0.0.1"))
        await watch.next(Nat)
        connection.close()
        await watch.next(Disconnected)
        keys = {
            "ready": {"peer_id", "udp", "tcp", "ip_mode", "ticket"},
            "connected": {
                *("peer_id", "direction", "method", "remote", "ms", "rtt_ms", "group", "relay"),
            },
            "external_address": {"address", "observers"},
            "nat": {"mapping", "filtering", "ports", "step"},
            "disconnected": {"peer_id", "reason"},
        }
        told: set[str] = set()
        for event in watch.seen:
            assert isinstance(event, Event)
            line = json.loads(json.dumps(event.to_dict()))
            assert next(iter(line)) == "event"
            assert line.keys() - {"event"} == keys[line["event"]]
            told.add(line["event"])
        assert told == set(keys)
        ready = watch.seen[0].to_dict()
        assert ready["peer_id"] == str(alice.peer_id)
        assert ready["udp"] == list(alice.addresses)
        assert ready["ip_mode"] == "v4"
        assert ready["ticket"] == str(alice.ticket())


async def test_every_subscriber_sees_every_event() -> None:
    async with nodes(V4, V4) as (alice, bob):
        watches = [Watch(alice) for _ in range(3)]
        await alice.connect(at(bob, "127.0.0.1"))
        first, *others = await soon(asyncio.gather(*(w.next(Connected) for w in watches)))
        assert all(other == first for other in others)
        for watch in watches:
            assert isinstance(watch.seen[0], Ready)


async def test_a_visit_shorter_than_a_look_is_told_with_its_address() -> None:
    async with nodes(V4, V4) as (alice, bob):
        events = bob.events()
        connection = await soon(alice.connect(at(bob, "127.0.0.1")))
        # Bob's loop is this one, so it has had no turn since the connection came in.
        connection.close()
        time.sleep(0.3)  # noqa: ASYNC251 (the loop is to be blocked)
        told: dict[str, object] = {}
        async for event in events:
            told[event.event] = event
            if isinstance(event, Disconnected):
                break
        arrived = told["connected"]
        assert isinstance(arrived, Connected)
        assert arrived.remote == f"127.0.0.1:{port_of(alice)}"
