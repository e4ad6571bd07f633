"""Starting, closing, misuse, and what is left afterwards: nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from anyreach import (
    BindError,
    ConnectError,
    ConnectionLost,
    Identity,
    IdentityError,
    Node,
    NodeClosed,
    P2pConfig,
)
from anyreach.events import Connected, Disconnected, Ready
from anyreach.node import EVENT_BACKLOG

from .support import DUAL, PATIENCE, V4, Watch, accepted, at, nodes, port_of, soon, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_peers_learn_of_a_close_at_once() -> None:
    async with nodes(V4, V4) as (alice, bob):
        watch = Watch(bob)
        connection = await alice.connect(at(bob, "127.0.0.1"))
        other_end = await accepted(bob)
        reading = asyncio.create_task((await connection.open_stream()).read(1))
        begun = time.monotonic()
        await soon(alice.close())
        lost = await soon(other_end.wait_closed())
        assert time.monotonic() - begun < 1.0
        assert lost.reason == "closed"
        assert (await watch.next(Disconnected)).reason == "closed"
        with pytest.raises(ConnectionLost) as caught:
            await reading
        assert caught.value.reason == "local"


async def test_closing_is_idempotent_and_concurrent() -> None:
    async with nodes(DUAL) as (node,):
        await soon(asyncio.gather(*(node.close() for _ in range(5))))
        await node.close()
    assert "closed" in repr(node)


async def test_a_cancelled_close_goes_on() -> None:
    node = await Node(P2pConfig(**V4)).start()
    closing = asyncio.create_task(node.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await soon(node.close())
    with pytest.raises(NodeClosed):
        _ = node.addresses


async def test_a_node_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    async with nodes(DUAL) as (server,):
        node = Node(P2pConfig(**DUAL, known_peers=[at(server, "::1"), "127.0.0.1:9"]))
        async with node:
            await Watch(node).next(Connected)
            assert asyncio.all_tasks() > before
    assert asyncio.all_tasks() == before
    reference = weakref.ref(node)
    del node, server
    gc.collect()
    assert reference() is None


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_forgotten_node_closes() -> None:
    before = asyncio.all_tasks()
    async with nodes(V4) as (peer,):
        running = asyncio.all_tasks()
        node = await Node(P2pConfig(**V4, known_peers=[at(peer, "127.0.0.1")])).start()
        watch = Watch(node)
        await watch.next(Connected)
        (connection,) = node.connections
        other_end = await accepted(peer)
        port = port_of(node)
        with pytest.warns(ResourceWarning, match="unclosed node <Node"):
            del node
        # As if it had been closed, only that nobody could wait for it.
        assert (await soon(other_end.wait_closed())).reason == "closed"
        assert (await soon(connection.wait_closed())).reason == "local"
        with pytest.raises(NodeClosed, match="forgotten"):
            await watch.rest()
        await until(lambda: asyncio.all_tasks() <= running)

        def is_free() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again, suppress(OSError):
                again.bind(("127.0.0.1", port))
                return True
            return False

        await until(is_free)
    assert asyncio.all_tasks() == before


def test_a_node_forgotten_by_its_loop_closes() -> None:
    async def main() -> tuple[Node, int]:
        node = await Node(P2pConfig(**V4)).start()
        return node, port_of(node)

    node, port = asyncio.run(main())
    with pytest.warns(ResourceWarning, match="unclosed node"):
        del node

    async def again() -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                node = Node(P2pConfig(bind_addr=f"127.0.0.1:{port}", ip_mode="v4"))
                with suppress(BindError):
                    await node.start()
                    break
                await asyncio.sleep(0.01)
        await node.close()

    asyncio.run(again())


async def test_use_before_the_start_says_what_to_do() -> None:
    node = Node(P2pConfig(**V4))
    for use in (
        lambda: node.peer_id,
        lambda: node.addresses,
        lambda: node.nat,
        lambda: node.connections,
        node.ticket,
        node.incoming,
        node.metrics,
        node.prometheus,
    ):
        with pytest.raises(NodeClosed, match="async with Node"):
            use()
    with pytest.raises(NodeClosed, match="async with Node"):
        await node.connect("127.0.0.1:9")
    assert "not started" in repr(node)


async def test_use_after_the_close_says_what_to_do() -> None:
    async with nodes(V4) as (node,):
        peer_id = node.peer_id
    for use in (
        lambda: node.addresses,
        lambda: node.nat,
        lambda: node.connections,
        node.ticket,
        node.incoming,
        node.events,
    ):
        with pytest.raises(NodeClosed, match="make a new Node"):
            use()
    with pytest.raises(NodeClosed, match="make a new Node"):
        await node.connect("127.0.0.1:9")
    with pytest.raises(NodeClosed, match="make a new Node"):
        await node.start()
    assert node.peer_id == peer_id
    assert node.prometheus()


async def test_a_node_starts_once() -> None:
    async with nodes(V4) as (node,):
        with pytest.raises(RuntimeError, match="already"):
            await node.start()


async def test_a_node_closed_before_its_start_stays_closed() -> None:
    node = Node(P2pConfig(**V4))
    watch = Watch(node)
    await node.close()
    assert await watch.rest() == []
    with pytest.raises(NodeClosed):
        await node.start()


async def test_iterators_end_with_the_node() -> None:
    async with nodes(V4) as (node,):
        incoming = [asyncio.ensure_future(anext(node.incoming(), None)) for _ in range(3)]
        watch = Watch(node)
        await watch.next(Ready)
        await asyncio.sleep(0)
    assert await soon(asyncio.gather(*incoming)) == [None] * 3
    assert await watch.rest() == []


async def test_several_consumers_share_incoming_connections() -> None:
    async with nodes(V4, V4, V4, V4) as (server, *clients):
        consumers = [asyncio.ensure_future(anext(server.incoming())) for _ in range(3)]
        await soon(asyncio.gather(*(c.connect(at(server, "127.0.0.1")) for c in clients)))
        got = await soon(asyncio.gather(*consumers))
        assert {c.peer_id for c in got} == {client.peer_id for client in clients}


async def test_incoming_connections_wait_until_taken() -> None:
    async with nodes(V4, V4) as (server, client):
        await client.connect(at(server, "127.0.0.1"))
        await until(lambda: len(server.connections) == 1)
        assert (await accepted(server)).peer_id == client.peer_id


async def test_a_slow_subscriber_loses_the_oldest_events() -> None:
    async with nodes(V4, V4) as (server, client):
        lazy, keen = Watch(server), Watch(server)
        for _ in range(EVENT_BACKLOG // 2):  # each makes more than two events
            connection = await client.connect(at(server, "127.0.0.1"))
            await keen.next(Connected)
            connection.close()
            await keen.next(Disconnected)
        assert server.metrics().events_dropped_total > 0
        await server.close()
        left = await lazy.rest()
        assert len(left) == EVENT_BACKLOG
        assert not any(isinstance(event, Ready) for event in left)
        dropped = server.metrics().events_dropped_total
        assert len(keen.seen) + len(await keen.rest()) == len(left) + dropped


async def test_an_error_in_a_background_task_surfaces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("on purpose")

    async with nodes(V4) as (peer,):
        node = await Node(P2pConfig(**V4)).start()
        watch = Watch(node)
        monkeypatch.setattr(node._running, "_handle", broken)
        with caplog.at_level(logging.ERROR, "anyreach"):
            with suppress(ConnectError):  # the node may be gone before the dial ends
                await peer.connect(at(node, "127.0.0.1"))
            with pytest.raises(NodeClosed, match="internal error"):
                await watch.next(Connected)
        assert any(record.exc_info for record in caplog.records)
        with pytest.raises(NodeClosed, match="on purpose"):
            await node.connect("127.0.0.1:9")
        with pytest.raises(NodeClosed, match="internal error") as caught:
            await node.__aexit__(None, None, None)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_a_node_belongs_to_its_loop() -> None:
    async with nodes(V4) as (node,):
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(node.connect("127.0.0.1:9"))
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert "another event loop" in str(errors[0])


async def test_a_key_file_keeps_the_identity(tmp_path: Path) -> None:
    options = {**V4, "identity": tmp_path / "keys" / "node.pem"}
    async with nodes(options) as (node,):
        first = node.peer_id
    async with nodes(options) as (node,):
        assert node.peer_id == first == Identity.load(options["identity"]).peer_id


async def test_a_bad_key_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "node.pem"
    file.write_text("nonsense")
    file.chmod(0o600)
    node = Node(P2pConfig(**V4, identity=file))
    with pytest.raises(IdentityError, match=r"node\.pem"):
        await node.start()
    file.unlink()
    async with node:  # the reason is gone
        assert node.peer_id


async def test_addresses_and_ticket_lead_to_the_node() -> None:
    async with nodes(DUAL, V4) as (node, peer):
        port = port_of(node)
        assert node.addresses[0] == f"[::]:{port}"
        assert f"127.0.0.1:{port}" in node.addresses
        assert all(address.endswith(f":{port}") for address in node.addresses)
        ticket = peer.ticket()
        assert ticket.peer_id == peer.peer_id
        assert [str(a) for a in ticket.addresses] == list(peer.addresses)
        await node.connect(str(ticket))
