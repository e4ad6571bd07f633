"""Cancelled awaits lose nothing: not a byte, not a stream, not a datagram."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import TYPE_CHECKING

import pytest

from anyreach._bridge import current_bridge
from anyreach._core import DialFailed

from .core import accept, address_of, connected, dial, make_endpoint, shut

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyreach.streams import Stream

    from .conftest import Run

DOWNLOAD = 64 << 20
CANCELS = 400
PIECE = 64 << 10


async def read(stream: Stream) -> bytes:
    return await stream.read(PIECE)


async def readexactly(stream: Stream) -> bytes:
    try:
        return await stream.readexactly(PIECE)
    except asyncio.IncompleteReadError as error:
        return error.partial


async def readinto(stream: Stream) -> bytes:
    buffer = bytearray(PIECE)
    count = await stream.readinto(buffer)
    return bytes(buffer[:count])


async def iterate(stream: Stream) -> bytes:
    async for chunk in stream:
        return chunk
    return b""


class Transfer:
    """A download whose reads are cancelled while they wait, and which is compared by digest."""

    def __init__(self) -> None:
        self.rng = random.Random(CANCELS)
        self.cancelled = 0
        self.starving = asyncio.Event()

    async def upload(self, stream: Stream) -> bytes:
        """Writes pseudo-random data; while reads are to be cancelled, only to a waiting reader."""
        digest = hashlib.sha256()
        missing = DOWNLOAD
        while missing:
            if self.cancelled < CANCELS:
                await self.starving.wait()
                self.starving.clear()
            data = self.rng.randbytes(min(missing, self.rng.randrange(1, 2 * PIECE)))
            await stream.write(data)
            digest.update(data)
            missing -= len(data)
        await stream.finish()
        return digest.digest()

    async def download(self, stream: Stream, step: Callable[[Stream], Awaitable[bytes]]) -> bytes:
        digest = hashlib.sha256()
        while True:
            task = asyncio.ensure_future(step(stream))
            await asyncio.sleep(0)
            if not task.done():
                self.starving.set()
            if not task.done() and self.cancelled < CANCELS:
                # Data comes before the cancellation, after it, or while the read is resumed.
                for _ in range(self.rng.randrange(6)):
                    await asyncio.sleep(0)
                self.cancelled += task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                continue
            if not (data := task.result()):
                return digest.digest()
            digest.update(data)


@pytest.mark.parametrize("step", [read, readexactly, readinto, iterate])
def test_cancelled_reads_lose_no_byte(run: Run, step: Callable[[Stream], Awaitable[bytes]]) -> None:
    async def main() -> None:
        async with connected() as pair:
            near, far = await pair.streams(bidirectional=False)
            transfer = Transfer()
            sender = asyncio.create_task(transfer.upload(near))
            assert await transfer.download(far, step) == await sender
            assert transfer.cancelled == CANCELS

    run(main())


def test_reads_that_time_out_lose_no_byte(run: Run) -> None:
    async def main() -> None:
        async with connected() as pair:
            near, far = await pair.streams()
            for number in range(50):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await far.readexactly(4)
                await near.write(number.to_bytes(2, "big"))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await far.readexactly(4)
                await near.write(b"..")
                assert await far.readexactly(4) == number.to_bytes(2, "big") + b".."

    run(main())


def test_cancelled_accepts_lose_no_stream(run: Run) -> None:
    async def main() -> None:
        async with connected() as pair:
            seen = set()
            for number in range(40):
                task = asyncio.create_task(pair.far.accept_stream())
                await asyncio.sleep(0)
                # Sent before the cancellation or after it: both orders occur.
                opened = await pair.near.open_stream(bidirectional=number % 2 == 0)
                if number % 3:
                    task.cancel()
                await opened.write(number.to_bytes(1, "big"))
                await opened.finish()
                await asyncio.wait([task])
                stream = await pair.far.accept_stream() if task.cancelled() else task.result()
                seen.add(await stream.readexactly(1))
            assert len(seen) == 40

    run(main())


def test_cancelled_opens_lose_no_stream(run: Run) -> None:
    async def main() -> None:
        async with connected(max_bidi_streams=4) as pair:
            held = [await pair.near.open_stream() for _ in range(4)]
            for stream in held:
                await stream.write(b"x")
            waiting = [asyncio.create_task(pair.near.open_stream()) for _ in range(8)]
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            assert all(task.cancelled() for task in waiting)
            # Ending the streams on both sides returns the credit; all of it is still usable.
            for stream in held:
                stream.reset()
                stream.stop()
                far = await pair.far.accept_stream()
                far.reset()
                far.stop()
            async with asyncio.timeout(10):
                assert len({(await pair.near.open_stream()).id for _ in range(4)}) == 4

    run(main())


def test_cancelled_receives_lose_no_datagram(run: Run) -> None:
    async def main() -> None:
        async with connected() as pair:
            received: list[bytes] = []
            for number in range(50):
                task = asyncio.create_task(pair.far.receive_datagrams())
                await asyncio.sleep(0)
                task.cancel()
                assert pair.near.send_datagram(number.to_bytes(2, "big"))
                await asyncio.wait([task])
                assert task.cancelled()
                received += await pair.far.receive_datagrams()
            assert received == [number.to_bytes(2, "big") for number in range(50)]

    run(main())


def test_cancelled_incoming_loses_no_connection(run: Run) -> None:
    async def main() -> None:
        listening = make_endpoint()
        dialing = [make_endpoint() for _ in range(10)]
        try:
            for endpoint in dialing:
                task = asyncio.create_task(accept(listening))
                await asyncio.sleep(0)
                task.cancel()
                near = await dial(endpoint, address_of(listening))
                await asyncio.wait([task])
                far = await accept(listening)
                assert far.direction == "in"
                assert near.direction == "out"
        finally:
            await shut(listening, *dialing)

    run(main())


def test_a_dropped_dial_ends(run: Run) -> None:
    async def main() -> None:
        async with connected() as pair:
            silent = make_endpoint()
            address = address_of(silent)
            await shut(silent)
            dialing = pair.endpoints[0]
            for _ in range(20):
                task = asyncio.create_task(dial(dialing, address))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
            attempt = dialing.dial(*address, None, 30.0)
            attempt.cancel()
            with pytest.raises(DialFailed) as failure:
                await current_bridge().wait(attempt.poll)
            assert failure.value.args[0] == "cancelled"
            assert len(dialing.connections()) == 1

    run(main())


def test_waiters_that_gave_up_are_forgotten(run: Run) -> None:
    async def main() -> None:
        async with connected() as pair:
            near, far = await pair.streams()
            for _ in range(2000):
                task = asyncio.create_task(far.read(1))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            # All of them shared one stream; a live one is still woken, at once.
            task = asyncio.create_task(far.read(1))
            await asyncio.sleep(0)
            await near.write(b"x")
            assert await task == b"x"

    run(main())
