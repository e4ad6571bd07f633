"""Connections between two endpoints of the core on loopback."""

from __future__ import annotations

import asyncio
import time
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from anyreach._bridge import current_bridge
from anyreach.connection import Connection
from anyreach.errors import BindError, ConnectionLost, NodeClosed
from anyreach.peer import PeerId
from lifetime.core import accept, address_of, connected, dial, make_endpoint, shut

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyreach import _core


async def each_event(endpoint: _core.Endpoint) -> AsyncIterator[tuple[Any, ...]]:
    """What happens at an endpoint, until it is closed."""
    while True:
        try:
            batch = await current_bridge().wait(endpoint.poll_events)
        except NodeClosed:
            return
        for event in batch:
            yield event


async def test_both_ends_know_each_other() -> None:
    async with connected() as pair:
        near, far = pair.near, pair.far
        assert (near.direction, far.direction) == ("out", "in")
        assert near.key_exchange_group == far.key_exchange_group == "X25519MLKEM768"
        assert PeerId.from_public_key(near.public_key) == near.peer_id
        assert near.peer_id != far.peer_id
        assert 0 < near.handshake_time < 10
        assert str(near.peer_id) in repr(near)


async def test_objects_of_one_connection_are_equal() -> None:
    async with connected() as pair:
        again = pair.endpoints[0].connection(bytes(pair.near.peer_id))
        assert again is not None
        assert Connection(again) == pair.near
        assert hash(Connection(again)) == hash(pair.near)
        assert [Connection(core) for core in pair.endpoints[1].connections()] == [pair.far]
        assert pair.near != pair.far
        assert pair.near != 1
        assert pair.endpoints[0].connection(bytes(32)) is None


async def test_a_second_dial_gives_the_same_connection() -> None:
    async with connected() as pair:
        address = address_of(pair.endpoints[1])
        attempt = pair.endpoints[0].dial(*address, bytes(pair.near.peer_id), 5.0)
        assert Connection(await current_bridge().wait(attempt.poll)) == pair.near
        attempt.cancel()  # it did not make the connection
        assert not pair.near.closed


async def test_an_attempt_takes_its_connection_along_unless_that_is_kept() -> None:
    async with connected() as pair:
        stranger = make_endpoint()
        place = address_of(pair.endpoints[1])
        for keep, cancel in product((False, True), repeat=2):
            attempts = [stranger.dial(*place, None, 5.0)]
            made = Connection(await current_bridge().wait(attempts[0].poll))
            if keep:
                attempts[0].keep()
            if cancel:
                attempts[0].cancel()
            attempts.clear()
            if keep:
                await (await made.open_stream()).finish()
                assert not made.closed
                made.close()
            async with asyncio.timeout(10):
                assert (await made.wait_closed()).reason == "local"
        await shut(stranger)


async def test_a_peer_that_listens_answers_and_one_that_is_gone_does_not() -> None:
    async with connected() as pair:
        bridge = current_bridge()
        async with asyncio.timeout(10):
            several = (bridge.wait(pair.near._core.poll_answers) for _ in range(5))
            assert await asyncio.gather(*several) == [True] * 5
            pair.near.close()
            assert await bridge.wait(pair.near._core.poll_answers) is False


async def test_paths_are_described() -> None:
    async with connected() as pair:
        near, far = await pair.streams()
        await near.write(bytes(1 << 20))
        assert len(await far.readexactly(1 << 20)) == 1 << 20
        path = pair.near.path
        assert path is not None
        assert [(each.id, each.since) for each in pair.near.paths] == [(path.id, path.since)]
        host, port = address_of(pair.endpoints[1])
        assert (path.method, path.remote, path.local) == ("direct", f"{host}:{port}", host)
        assert path.current
        assert 0 < path.rtt < 1
        assert path.mtu >= 1200
        assert path.sent_bytes > 1 << 20
        assert path.send_rate > 0
        assert path.since <= time.time()
        assert pair.near.stats().sent_bytes >= path.sent_bytes


async def test_the_peer_reports_our_address() -> None:
    async with connected() as pair:
        host, port = address_of(pair.endpoints[0])
        async with asyncio.timeout(10):
            async for event in each_event(pair.endpoints[0]):
                if event[0] == "observed":
                    break
        assert event[2:5] == (0, host, port)
        assert pair.near.observed_address == f"{host}:{port}"


async def test_path_changes_end_with_the_connection() -> None:
    async with connected() as pair:  # whether or not anybody reads the events

        async def watch() -> int:
            return len([change async for change in pair.near.path_changes()])

        watchers = [asyncio.create_task(watch()) for _ in range(3)]
        await asyncio.sleep(0)
        pair.near.close()
        async with asyncio.timeout(10):
            assert await asyncio.gather(*watchers) == [0, 0, 0]
            assert await watch() == 0


async def test_incoming_streams_of_both_kinds() -> None:
    async with connected() as pair:
        for number in range(10):
            stream = await pair.near.open_stream(bidirectional=number % 2 == 0)
            await stream.write(bytes([number]))
            await stream.finish()
        seen = {}
        async for stream in pair.far.incoming_streams():
            seen[(await stream.readexactly(1))[0]] = stream.can_write
            if len(seen) == 10:
                pair.near.close()
        assert seen == {number: number % 2 == 0 for number in range(10)}


async def test_the_stream_limit_is_waited_for() -> None:
    async with connected(max_uni_streams=2) as pair:
        held = [await pair.near.open_stream(bidirectional=False) for _ in range(2)]
        task = asyncio.create_task(pair.near.open_stream(bidirectional=False))
        await asyncio.sleep(0.02)
        assert not task.done()
        for stream in held:
            await stream.finish()
            assert await (await pair.far.accept_stream()).read() == b""
        async with asyncio.timeout(10):
            assert (await task).id not in {stream.id for stream in held}


async def test_datagrams_arrive_in_batches() -> None:
    async with connected() as pair:
        sent = [number.to_bytes(2, "big") for number in range(200)]
        assert pair.near.send_datagrams(sent) == 200
        received: list[bytes] = []
        async with asyncio.timeout(10):
            while len(received) < 200:
                batch = await pair.far.receive_datagrams(max=50)
                assert 0 < len(batch) <= 50
                received += batch
        assert received == sent
        with pytest.raises(ValueError, match="0 datagrams"):
            await pair.far.receive_datagrams(max=0)


async def test_datagrams_have_limits() -> None:
    async with connected() as pair:
        limit = pair.near.max_datagram_size
        assert limit is not None
        with pytest.raises(ValueError, match="too large"):
            pair.near.send_datagram(bytes(70_000))
        assert pair.near.send_datagram(bytearray(b"array"))
        assert pair.near.send_datagram(memoryview(b"a view of bytes")[2:6])
        with pytest.raises(BufferError, match="contiguous"):
            pair.near.send_datagram(memoryview(b"abcd")[::2])
        with pytest.raises(TypeError):
            pair.near.send_datagram("text")  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            received = await pair.far.receive_datagrams()
            while len(received) < 2:
                received += await pair.far.receive_datagrams()
        assert received == [b"array", b"view"]
        assert pair.near.send_datagrams([]) == 0
        # A queue that is full takes what fits, and says so.
        sent = pair.near.send_datagrams([bytes(1000)] * 5000)
        assert 0 < sent < 5000


async def test_datagrams_wait_for_room() -> None:
    async with connected() as pair:
        datagrams = [number.to_bytes(2, "big") + bytes(998) for number in range(5000)]
        assert pair.near.send_datagrams(datagrams) < 5000  # more than the queue holds
        await pair.near.send_datagrams_wait(datagrams)
        await pair.near.send_datagram_wait(b"last")
        await pair.near.send_datagrams_wait([])
        with pytest.raises(ValueError, match="too large"):
            await pair.near.send_datagram_wait(bytes(70_000))
        async with asyncio.timeout(10):
            while b"last" not in await pair.far.receive_datagrams():
                pass


async def test_datagrams_that_are_given_up_are_not_sent() -> None:
    async with connected() as pair:
        filler = [bytes(1000)] * 5000
        assert pair.near.send_datagrams(filler) < 5000
        waiting = asyncio.create_task(pair.near.send_datagrams_wait([*filler, b"given up"]))
        ending = asyncio.create_task(pair.near.send_datagrams_wait(filler * 10))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)
        pair.near.close()
        with pytest.raises(ConnectionLost):
            await ending
        with pytest.raises(ConnectionLost):
            await pair.near.send_datagram_wait(b"x")


async def test_the_end_is_told_to_both_sides() -> None:
    async with connected() as pair:
        assert not pair.near.closed
        assert pair.near.close_reason is None
        task = asyncio.create_task(pair.far.wait_closed())
        await asyncio.sleep(0)
        pair.near.close(2**32 - 1, "good-bye")
        pair.near.close(1, "ignored")
        lost = await task
        assert isinstance(lost, ConnectionLost)
        assert (lost.reason, lost.code) == ("closed", 2**32 - 1)
        assert "good-bye" in str(lost)
        assert (await pair.near.wait_closed()).reason == "local"
        assert (await pair.near.wait_closed()).reason == "local"
        assert pair.near.closed
        assert repr(pair.near).endswith("closed>")
        for use in (
            pair.near.open_stream(),
            pair.near.accept_stream(),
            pair.near.receive_datagrams(),
        ):
            with pytest.raises(ConnectionLost):
                await use
        with pytest.raises(ConnectionLost):
            pair.near.send_datagram(b"x")
        assert pair.near.path is None
        assert pair.near.max_datagram_size is None
        with pytest.raises(ValueError, match="code"):
            pair.far.close(2**32)


async def test_a_connection_is_a_context_manager() -> None:
    async with connected() as pair:
        async with pair.near as near:
            assert not near.closed
        assert near.closed


async def test_a_silent_peer_times_out() -> None:
    async with connected(idle_timeout=0.3, keep_alive_interval=0.0) as pair:
        async with asyncio.timeout(10):
            assert (await pair.near.wait_closed()).reason == "timeout"


async def test_a_closed_endpoint_says_so() -> None:
    endpoint = make_endpoint()
    waiting = asyncio.create_task(accept(endpoint))
    await asyncio.sleep(0)
    await shut(endpoint)
    with pytest.raises(NodeClosed):
        await waiting
    assert [event async for event in each_event(endpoint)] == []
    with pytest.raises(NodeClosed):
        await current_bridge().wait(endpoint.poll_events)


async def test_a_port_in_use_cannot_be_bound() -> None:
    endpoint = make_endpoint()
    host, port = address_of(endpoint)
    with pytest.raises(BindError):
        make_endpoint(bind_addr=f"{host}:{port}")
    await shut(endpoint)
    again = make_endpoint(bind_addr=f"{host}:{port}")
    await shut(again)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bind_addr": "localhost:1"},
        {"ip_mode": "v5"},
        {"idle_timeout": -1.0},
        {"handshake_timeout": float("nan")},
    ],
)
def test_arguments_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is not"):
        make_endpoint(**wrong)


async def test_events_tell_what_happened() -> None:
    dialing, listening = make_endpoint(), make_endpoint()
    near = await dial(dialing, address_of(listening))
    near.close(3, "x")
    await near.wait_closed()
    names = []
    async with asyncio.timeout(10):
        async for event in each_event(dialing):
            assert Connection(event[1]) == near
            names.append(event[0])
            if event[0] == "disconnected":
                assert event[2:] == ("local", 3, "x")
                break
    assert names[0] == "connected"
    await shut(dialing, listening)
