"""Bookkeeping of a node that one real path cannot exercise: what becomes of path events."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from anyreach import NatReport, Node, P2pConfig, _core, _local
from anyreach.events import Connected, Disconnected, Event, ExternalAddress, PathChanged, Ready
from anyreach.peer import PeerId

from .fake_core import FakeConnection, FakePath

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyreach._running import Running

PEER = bytes([7]) * 32
OLD, NEW = ("192.0.2.1", 9000), ("192.0.2.2", 9000)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node(P2pConfig(bind_addr="127.0.0.1:0", ip_mode="v4")) as node:
        yield node


@pytest.fixture
def running(node: Node) -> Running:
    assert node._running is not None
    return node._running


async def told(node: Node, running: Running, *core_events: tuple[object, ...]) -> list[Event]:
    """What subscribers hear of these events of the core."""
    events = node.events()
    for event in core_events:
        running._handle(event)
    await node.close()
    async with asyncio.timeout(10):
        return [event async for event in events if not isinstance(event, Ready)]


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ([FakePath(1, NEW), FakePath(0, OLD, current=False)], "better"),
        ([FakePath(1, NEW)], "failover"),
        ([FakePath(0, NEW)], "roamed"),
        ([FakePath(1, OLD, "relayed"), FakePath(0, OLD, current=False)], "better"),
    ],
)
async def test_a_path_change_has_a_reason(
    node: Node, running: Running, after: list[FakePath], reason: str
) -> None:
    connection = FakeConnection(peer_id=PEER, route=[FakePath(0, OLD)])
    running._handle(("connected", connection))
    connection.route = after
    (event,) = await told(node, running, ("path", connection, "established", None))
    assert isinstance(event, PathChanged)
    assert event.reason == reason
    assert event.peer_id == PeerId(PEER)
    assert event.remote == f"{after[0].remote[0]}:9000"
    assert event.method == after[0].method
    assert event.rtt_ms == pytest.approx(10)


@pytest.mark.parametrize(
    "after",
    [
        [FakePath(0, OLD), FakePath(1, NEW, current=False)],  # one more, not used
        [FakePath(3, OLD)],  # the same way under another number
        [],  # none is usable: what comes next decides
    ],
)
async def test_what_does_not_move_the_data_is_no_path_event(
    node: Node, running: Running, after: list[FakePath]
) -> None:
    connection = FakeConnection(peer_id=PEER, route=[FakePath(0, OLD)])
    running._handle(("connected", connection))
    connection.route = after
    assert await told(node, running, ("path", connection, "established", None)) == []


async def test_a_connection_told_twice_is_entered_once(node: Node, running: Running) -> None:
    connection = FakeConnection(peer_id=PEER)
    events = node.events()
    first = running._adopt(connection.core(), 0.5)
    running._handle(("connected", connection))
    assert running._adopt(connection.core()) is first
    assert node.connections == (first,)
    assert node.metrics().connections_total["direct"] == 1
    running._handle(("disconnected", connection, "closed", 0, ""))
    running._handle(("disconnected", connection, "closed", 0, ""))
    assert not node.connections
    await node.close()
    heard = [event async for event in events if isinstance(event, Connected | Disconnected)]
    assert [type(event) for event in heard] == [Connected, Disconnected]
    assert isinstance(heard[0], Connected)
    assert heard[0].ms == 500


async def test_a_connection_already_over_is_not_entered_again(node: Node, running: Running) -> None:
    connection = FakeConnection(peer_id=PEER, close_reason=("closed", 0, ""))
    running._handle(("connected", connection))
    running._handle(("disconnected", connection, "closed", 0, ""))
    running._adopt(connection.core(), 0.1)
    assert node.connections == ()
    assert not running._live
    assert node.metrics().connections_total["direct"] == 1


async def test_what_a_peer_sees_through_a_relay_is_not_our_address(
    node: Node, running: Running
) -> None:
    connection = FakeConnection(peer_id=PEER, route=[FakePath(0, OLD, "relayed")])
    running._handle(("connected", connection))
    observed = ("observed", connection, 0, "203.0.113.9", 4000, 0.01)
    assert await told(node, running, observed) == []
    assert node.metrics().observed_address_seconds.count == 1


async def test_an_address_stays_while_a_second_connection_reports_it(
    node: Node, running: Running
) -> None:
    old, new = (FakeConnection(id=i, peer_id=PEER) for i in (11, 12))
    for event in (
        ("connected", old),
        ("observed", old, 0, "203.0.113.9", 4000, 0.01),
        ("connected", new),
        ("disconnected", old, "replaced", 0, ""),
    ):
        running._handle(event)
    assert node.nat.external_addresses == ("203.0.113.9:4000",)
    running._handle(("disconnected", new, "closed", 0, ""))
    assert "203.0.113.9:4000" not in [str(a) for a in node.ticket().addresses]
    assert node.nat.external_addresses == ("203.0.113.9:4000",)  # as it was when last seen


async def test_the_last_report_about_a_nat_stands_until_the_network_changes(
    node: Node, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfaces = [("lo", "127.0.0.1", 8), ("eth0", "192.0.2.5", 24)]
    monkeypatch.setattr(_core, "interface_addresses", lambda: list(interfaces))
    monkeypatch.setattr(_local, "_FRESH_SECONDS", 0.0)
    peers = [
        FakeConnection(id=i, peer_id=bytes([i]) * 32, route=[FakePath(0, (f"203.0.{i}.1", 9000))])
        for i in (101, 102)
    ]
    for peer in peers:
        running._handle(("connected", peer))
        running._handle(("observed", peer, 0, "198.51.100.9", 4000, 0.01))
    told = node.nat
    assert told.mapping == "endpoint-independent"
    assert told.observers == (2,)
    for peer in peers:
        running._handle(("disconnected", peer, "closed", 0, ""))
        assert node.nat.mapping == told.mapping
    interfaces[1] = ("wlan0", "192.0.2.77", 24)
    assert node.nat == NatReport()


async def test_a_flood_of_events_leaves_the_loop_its_turns(
    node: Node, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = [FakeConnection(id=i, peer_id=i.to_bytes(32, "big")) for i in range(1, 801)]
    flood: list[tuple[object, ...]] = [("connected", each) for each in connections]
    flood += [("path", each, "established", None) for each in connections]
    batches: asyncio.Queue[list[tuple[object, ...]]] = asyncio.Queue()

    async def wait(_: object) -> list[tuple[object, ...]]:
        return await batches.get()

    class Endpoint:
        poll_events = None

        def counters(self) -> dict[str, int]:
            return {"events_dropped": 1}

        def connections(self) -> list[FakeConnection]:
            return connections

    handled, most = 0, 0
    handle = running._handle

    def count(event: tuple[object, ...]) -> None:
        nonlocal handled
        handled += 1
        handle(event)

    with monkeypatch.context() as patched:
        patched.setattr(running, "_handle", count)
        patched.setattr(running, "_endpoint", Endpoint())
        patched.setattr(running, "_bridge", SimpleNamespace(wait=wait))
        watching = asyncio.create_task(running._watch())
        batches.put_nowait(flood)
        turns = 0
        async with asyncio.timeout(10):
            while handled < len(flood) or not running._events_lost:
                before = handled
                await asyncio.sleep(0)
                most = max(most, handled - before)
                turns += 1
        watching.cancel()
    assert most <= 64
    assert turns >= len(flood) / 64
    assert len(node.connections) == len(connections)


async def test_lost_core_events_are_made_good(
    node: Node, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, missed = (FakeConnection(id=i, peer_id=PEER) for i in (21, 22))
    running._handle(("connected", gone))

    class Endpoint:
        def counters(self) -> dict[str, int]:
            return {"events_dropped": 3}

        def connections(self) -> list[FakeConnection]:
            return [missed]

    events = node.events()
    gone.close_reason = ("timeout", 0, "")
    with monkeypatch.context() as patched:
        patched.setattr(running, "_endpoint", Endpoint())
        await running._reconcile()
        await running._reconcile()
    assert [c.peer_id for c in node.connections] == [PeerId(PEER)]
    await node.close()
    heard = [e async for e in events if not isinstance(e, Ready | ExternalAddress)]
    assert [type(event) for event in heard] == [Disconnected, Connected]


def test_repr_says_the_state() -> None:
    assert repr(Node()) == "<Node not started>"
