"""Streams that always have data do not starve the rest of the program, nor the GIL."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from anyreach._bridge import TURN_CREDIT, current_bridge
from anyreach.errors import StreamReset

from .core import connected

if TYPE_CHECKING:
    from anyreach.streams import Stream

    from .conftest import Run


async def send_all(stream: Stream, size: int) -> None:
    piece = bytes(1 << 20)
    for _ in range(size // len(piece)):
        await stream.write(piece)
    await stream.finish()


async def receive_all(stream: Stream, piece: int) -> int:
    total = 0
    while data := await stream.read(piece):
        total += len(data)
    return total


async def buffered(stream: Stream, far: Stream, size: int) -> None:
    """Have ``size`` bytes wait at the far end, so that reading them never suspends."""
    await stream.write(bytes(size))
    await stream.finish()
    await stream.wait_acked()
    assert far.can_read


def test_ten_ready_streams_leave_the_loop_its_turns(run: Run) -> None:
    async def main() -> None:
        size = 200_000
        async with connected() as pair:
            streams = [await pair.streams(bidirectional=False) for _ in range(10)]
            for near, far in streams:
                await buffered(near, far, size)
            turns = 0

            async def tick() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            ticker = asyncio.create_task(tick())
            # 100 bytes at a time: every one of these reads is ready at once.
            received = await asyncio.gather(*(receive_all(far, 100) for _, far in streams))
            ticker.cancel()
            assert received == [size] * 10
            reads = 10 * size // 100
            # At most ten tasks use their credit between two turns of the ticker.
            assert turns >= reads / (10 * TURN_CREDIT)

    run(main())


def test_a_ready_operation_gives_way_before_it_takes(run: Run) -> None:
    async def main() -> None:
        async with connected() as pair:
            near, far = await pair.streams(bidirectional=False)
            await buffered(near, far, 10)
            current_bridge().credit = 0
            reader = asyncio.create_task(far.read(10))
            await asyncio.sleep(0)
            assert not reader.done()  # it gave way first
            reader.cancel()
            await asyncio.wait([reader])
            assert reader.cancelled()
            assert await far.readexactly(10) == bytes(10)

    run(main())


def test_ten_busy_streams_share_a_connection(run: Run) -> None:
    async def main() -> None:
        size = 4 << 20
        async with connected() as pair:
            streams = [await pair.streams(bidirectional=False) for _ in range(10)]
            gaps: list[float] = []

            async def tick() -> None:
                last = time.perf_counter()
                while True:
                    await asyncio.sleep(0.001)
                    now = time.perf_counter()
                    gaps.append(now - last)
                    last = now

            ticker = asyncio.create_task(tick())
            senders = [asyncio.create_task(send_all(near, size)) for near, _ in streams]
            received = await asyncio.gather(*(receive_all(far, 1 << 20) for _, far in streams))
            await asyncio.gather(*senders)
            ticker.cancel()
            assert received == [size] * 10
            # Generous, for machines under load: without turns it would be the whole transfer.
            assert len(gaps) > 5

    run(main())


def test_the_gil_is_free_while_rust_works(run: Run) -> None:
    """A Python thread makes good progress next to a transfer."""

    async def main() -> None:
        count = 0
        stop = threading.Event()

        def counting() -> None:
            nonlocal count
            while not stop.is_set():
                count += 1

        async with connected() as pair:
            near, far = await pair.streams(bidirectional=False)
            thread = threading.Thread(target=counting)
            thread.start()
            started_cpu = time.thread_time()
            started = time.perf_counter()
            try:
                sender = asyncio.create_task(send_all(near, 64 << 20))
                assert await receive_all(far, 1 << 20) == 64 << 20
                await sender
            finally:
                stop.set()
                thread.join()
            elapsed = time.perf_counter() - started
            # The loop's thread needs the interpreter for a fraction of the time only.
            assert time.thread_time() - started_cpu < 0.9 * elapsed
            assert count > 10_000 * elapsed

    run(main())


def test_streams_forgotten_by_the_thousand_are_all_reset(run: Run) -> None:
    async def main() -> None:
        count = 1000
        async with connected(max_uni_streams=count) as pair:
            pairs = [await pair.streams(bidirectional=False) for _ in range(count)]
            receivers = [far for _, far in pairs]
            pairs.clear()  # the runtime resets them, not this thread
            async with asyncio.timeout(30):
                for far in receivers:
                    with pytest.raises(StreamReset) as caught:
                        await far.read(1)
                    assert caught.value.code == 0

    run(main())
