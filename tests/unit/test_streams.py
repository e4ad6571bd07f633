"""Streams between two endpoints of the core on loopback."""

from __future__ import annotations

import array
import asyncio
import gc
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from anyreach.errors import ConnectionLost, StreamClosed, StreamReset
from lifetime.core import Pair, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyreach.streams import BytesLike, Stream


@asynccontextmanager
async def stream_pair(*, bidirectional: bool = True) -> AsyncIterator[tuple[Stream, Stream, Pair]]:
    async with connected() as pair:
        near, far = await pair.streams(bidirectional=bidirectional)
        yield near, far, pair


async def waiting(task: asyncio.Task[object]) -> None:
    """Returns when ``task`` has started and waits."""
    await asyncio.sleep(0)
    assert not task.done()


async def read_on(stream: Stream, piece: int = 100) -> None:
    """Reads up to the end, piece by piece."""
    while await stream.read(piece):
        pass


async def write_on(stream: Stream) -> None:
    """Writes until something is raised."""
    while True:
        await stream.write(bytes(1000))
        await asyncio.sleep(0)


async def test_bytes_travel_both_ways_and_end() -> None:
    async with stream_pair() as (near, far, _):
        await near.write(b"question")
        await near.finish()
        assert await far.read() == b"question"
        assert await far.read() == b""
        await far.write(b"answer")
        await far.finish()
        assert await near.read(100) == b"answer"
        assert await near.read(100) == b""
        assert await near.read(100) == b""


async def test_a_one_way_stream_has_one_direction() -> None:
    async with stream_pair(bidirectional=False) as (near, far, _):
        assert (near.can_read, near.can_write) == (False, True)
        assert (far.can_read, far.can_write) == (True, False)
        assert near.id == far.id
        assert repr(near) == f"<Stream {near.id} out>"
        with pytest.raises(StreamClosed):
            await near.read(1)
        with pytest.raises(StreamClosed):
            await near.readexactly(1)
        with pytest.raises(StreamClosed):
            await near.readinto(bytearray(1))
        with pytest.raises(StreamClosed):
            near.stop()
        with pytest.raises(StreamClosed):
            await far.write(b"x")
        with pytest.raises(StreamClosed):
            await far.finish()
        with pytest.raises(StreamClosed):
            await far.wait_acked()
        with pytest.raises(StreamClosed):
            far.reset()
        with pytest.raises(StreamClosed):
            far.priority = 1


async def test_read_returns_what_is_there() -> None:
    async with stream_pair() as (near, far, _):
        assert await far.read(0) == b""
        await near.write(b"abcdef")
        assert await far.read(4) == b"abcd"
        assert await far.read(4) == b"ef"
        task = asyncio.create_task(far.read(4))
        await waiting(task)
        await near.write(b"g")
        assert await task == b"g"


async def test_reads_of_all_kinds_keep_the_order() -> None:
    """Random reads, a third of them cancelled, put the bytes together as they were written."""
    rng = random.Random(1)
    data = rng.randbytes(300_000)

    async def step(far: Stream) -> bytes:
        size = rng.choice([1, 100, 5_000])
        match rng.randrange(4):
            case 0:
                return await far.read(size)
            case 1:
                try:
                    return await far.readexactly(size)
                except asyncio.IncompleteReadError as error:
                    return error.partial
            case 2:
                buffer = bytearray(size)
                return bytes(buffer[: await far.readinto(buffer)])
            case _:
                async for chunk in far:
                    return chunk
                return b""

    async def write(near: Stream) -> None:
        offset = 0
        while offset < len(data):
            size = rng.choice([1, 100, 5_000])
            await near.write(data[offset : offset + size])
            offset += size
            await asyncio.sleep(0)
        await near.finish()

    async with stream_pair() as (near, far, _):
        writer = asyncio.create_task(write(near))
        received = bytearray()
        while True:
            task = asyncio.create_task(step(far))
            if not rng.randrange(3):
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                continue
            if not task.result():
                break
            received += task.result()
        await writer
        assert received == data


async def test_readexactly_joins_and_says_what_is_missing() -> None:
    async with stream_pair() as (near, far, _):
        assert await far.readexactly(0) == b""
        task = asyncio.create_task(far.readexactly(6))
        await near.write(b"abc")
        await waiting(task)
        await near.write(b"defgh")
        assert await task == b"abcdef"
        await near.finish()
        with pytest.raises(asyncio.IncompleteReadError) as error:
            await far.readexactly(3)
        assert (error.value.partial, error.value.expected) == (b"gh", 3)
        with pytest.raises(asyncio.IncompleteReadError) as error:
            await far.readexactly(3)
        assert error.value.partial == b""
        with pytest.raises(ValueError, match="negative"):
            await far.readexactly(-1)


async def test_a_cancelled_readexactly_leaves_its_bytes_to_any_read() -> None:
    async with stream_pair() as (near, far, _):

        async def interrupted() -> None:
            await near.write(b"abcd")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await far.readexactly(5)

        await interrupted()
        assert await far.read(3) == b"abc"
        assert await far.read(3) == b"d"
        await interrupted()
        buffer = bytearray(6)
        assert await far.readinto(memoryview(buffer)[2:5]) == 3
        assert bytes(buffer) == b"\0\0abc\0"
        assert await far.readexactly(1) == b"d"
        await interrupted()
        task = asyncio.create_task(far.readexactly(8))
        await near.write(b"efgh")
        assert await task == b"abcdefgh"
        await interrupted()
        await near.finish()
        assert await far.read() == b"abcd"


async def test_a_cancelled_read_to_the_end_loses_nothing() -> None:
    async with stream_pair() as (near, far, _):
        await near.write(b"first ")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await far.read()
        await near.write(b"second")
        await near.finish()
        assert await far.read() == b"first second"


async def test_readinto_fills_what_it_is_given() -> None:
    async with stream_pair() as (near, far, _):
        await near.write(bytes(range(12)))
        numbers = array.array("I", [0, 0])
        assert await far.readinto(memoryview(numbers)) == 8
        assert numbers.tobytes() == bytes(range(8))
        buffer = bytearray(100)
        assert await far.readinto(buffer) == 4
        with pytest.raises(ValueError, match="empty"):
            await far.readinto(bytearray())
        with pytest.raises(BufferError):
            await far.readinto(memoryview(b"read-only"))
        with pytest.raises(BufferError):
            await far.readinto(memoryview(buffer)[::2])
        await near.finish()
        assert await far.readinto(buffer) == 0


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 200_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_everything_that_holds_bytes_can_be_written(
    kind: type[bytes | bytearray | memoryview], size: int
) -> None:
    data = random.Random(size).randbytes(size)
    async with stream_pair() as (near, far, _):
        writable: BytesLike = kind(data)
        await near.write(writable)
        if isinstance(writable, bytearray):
            writable[:] = bytes(size)  # written means taken
        await near.finish()
        assert await far.read() == data


async def test_wide_items_are_written_as_bytes() -> None:
    async with stream_pair() as (near, far, _):
        numbers = array.array("I", range(1000))
        await near.write(memoryview(numbers))
        assert await far.readexactly(4000) == numbers.tobytes()
        with pytest.raises(TypeError):
            await near.write(memoryview(numbers)[::2])
        with pytest.raises(TypeError):
            await near.write("text")  # type: ignore[arg-type]


async def test_writing_waits_for_the_reader() -> None:
    size = 4 << 20  # the peer allows 2 MiB unread
    async with stream_pair() as (near, far, _):
        task = asyncio.create_task(near.write(bytearray(size)))
        await asyncio.sleep(0.1)
        assert not task.done()
        assert len(await far.readexactly(size)) == size
        await task


async def test_pieces_are_written_in_order() -> None:
    pieces = [bytes([n % 256]) * (n * 37 % 3000) for n in range(500)]
    async with stream_pair() as (near, far, _):
        await near.write_many(pieces)
        await near.write_many([])
        await near.finish()
        assert await far.read() == b"".join(pieces)


async def test_iteration_ends_with_the_stream() -> None:
    async with stream_pair() as (near, far, _):
        task = asyncio.create_task(near.write(bytes(1 << 20)))
        total = 0
        async for chunk in far:
            assert chunk
            total += len(chunk)
            if total == 1 << 20:
                await task
                await near.finish()
        assert total == 1 << 20


async def test_finish_is_final_and_may_be_repeated() -> None:
    async with stream_pair() as (near, far, _):
        await near.finish()
        await near.finish()
        with pytest.raises(StreamClosed):
            await near.write(b"more")
        assert await far.read() == b""


async def test_wait_acked_returns_when_the_peer_has_everything() -> None:
    async with stream_pair() as (near, far, _):
        with pytest.raises(RuntimeError, match="finish"):
            await near.wait_acked()
        await near.write(bytes(100_000))
        await near.finish()
        await near.wait_acked()
        await near.wait_acked()
        assert len(await far.read()) == 100_000


async def test_a_reset_reaches_the_reader() -> None:
    async with stream_pair() as (near, far, _):
        task = asyncio.create_task(far.read(1))
        await waiting(task)
        near.reset(7)
        near.reset(8)
        with pytest.raises(StreamReset) as error:
            await task
        assert error.value.code == 7
        for _ in range(3):
            with pytest.raises(StreamReset):
                await far.read(1)
        for use in (near.finish(), near.write(b"x"), near.wait_acked()):
            with pytest.raises(StreamClosed):
                await use


async def test_a_reset_never_looks_like_the_end() -> None:
    """Whatever was received before it, and however it is read."""
    for size in (1, 1000, 30_000, 200_000):
        async with stream_pair() as (near, far, _):
            await near.write(bytes(size))
            near.reset(1)
            with pytest.raises(StreamReset):
                await far.read()
            with pytest.raises(StreamReset):
                await read_on(far, 1 << 20)
            with pytest.raises(StreamReset):
                await far.readexactly(size + 1)


async def test_a_stop_reaches_the_writer() -> None:
    async with stream_pair() as (near, far, _):
        task = asyncio.create_task(near.write(bytes(8 << 20)))
        await asyncio.sleep(0)
        far.stop(9)
        far.stop(10)
        with pytest.raises(StreamReset) as error:
            await task
        assert error.value.code == 9
        await near.finish()
        with pytest.raises(StreamReset):
            await near.wait_acked()
        with pytest.raises(StreamClosed):
            await far.read(1)
        # The other direction is not concerned.
        await far.write(b"ok")
        assert await near.readexactly(2) == b"ok"


async def test_stop_after_the_end_is_harmless() -> None:
    async with stream_pair() as (near, far, _):
        await near.finish()
        assert await far.read() == b""
        far.stop(1)
        await near.wait_acked()


async def test_codes_are_checked() -> None:
    async with stream_pair() as (near, far, _):
        with pytest.raises(ValueError, match="code"):
            near.reset(2**62)
        with pytest.raises(ValueError, match="code"):
            far.stop(2**62)
        with pytest.raises(OverflowError):
            near.reset(-1)
        near.reset(2**62 - 1)
        with pytest.raises(StreamReset) as error:
            await far.read(1)
        assert error.value.code == 2**62 - 1


async def test_a_forgotten_stream_does_not_look_complete() -> None:
    async with connected() as pair:
        near, far = await pair.streams()
        await near.write(b"half of it")
        del near
        gc.collect()
        with pytest.raises(StreamReset):
            await read_on(far)


async def test_a_finished_stream_may_be_forgotten() -> None:
    async with connected() as pair:
        near, far = await pair.streams(bidirectional=False)
        await near.write(bytes(1 << 20))
        await near.finish()
        del near
        gc.collect()
        assert len(await far.read()) == 1 << 20


async def test_the_block_finishes_or_resets() -> None:
    async with connected() as pair:
        near, far = await pair.streams()
        async with near:
            await near.write(b"all")
        assert await far.read() == b"all"

        near, far = await pair.streams()

        async def fail() -> None:
            async with near:
                await near.write(b"part")
                raise KeyError

        with pytest.raises(KeyError):
            await fail()
        with pytest.raises(StreamReset):
            await far.read()
        with pytest.raises(StreamReset):
            await write_on(far)

        near, far = await pair.streams()
        async with near:
            near.reset(5)
        with pytest.raises(StreamReset) as error:
            await far.read()
        assert error.value.code == 5


async def test_one_reader_and_one_writer_at_a_time() -> None:
    async with stream_pair() as (near, far, _):
        reader = asyncio.create_task(far.read(1))
        await waiting(reader)
        for use in (far.read(1), far.read(), far.readexactly(2), far.readinto(bytearray(1))):
            with pytest.raises(RuntimeError, match="another task is reading"):
                await use
        writer = asyncio.create_task(near.write(bytes(8 << 20)))
        await asyncio.sleep(0.05)
        for other in (near.write(b"x"), near.finish()):
            with pytest.raises(RuntimeError, match="another task is writing"):
                await other
        assert await reader == b"\0"
        assert len(await far.readexactly((8 << 20) - 1)) == (8 << 20) - 1
        await writer
        await near.finish()


async def test_the_end_of_the_connection_ends_every_wait() -> None:
    async with stream_pair() as (near, far, pair):
        other = await pair.near.open_stream()
        tasks = [
            asyncio.create_task(other.write(bytes(8 << 20))),
            asyncio.create_task(near.readexactly(100)),
            asyncio.create_task(pair.near.accept_stream()),
        ]
        await asyncio.sleep(0.05)
        pair.near.close(42, "enough")
        for task in tasks:
            with pytest.raises(ConnectionLost) as error:
                await task
            assert error.value.code == 42
            assert "enough" in str(error.value)
        assert error.value.reason == "local"
        await pair.far.wait_closed()
        with pytest.raises(ConnectionLost) as error:
            await far.write(b"x")
        assert error.value.reason == "closed"


async def test_a_cancelled_write_leaves_the_stream_usable() -> None:
    async with stream_pair() as (near, far, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await near.write(bytes(8 << 20))
        near.reset(3)
        with pytest.raises(StreamReset):
            await read_on(far, 1 << 20)
        await far.write(b"still open")
        assert await near.readexactly(10) == b"still open"


async def test_priority_is_kept() -> None:
    async with stream_pair() as (near, _, _):
        assert near.priority == 0
        near.priority = 5
        assert near.priority == 5
