"""The ``bench`` service: takes or makes as much data as a connection carries.

A ``bench`` stream controls one run and stays open for its length; ``bench-data`` streams carry
the bytes and name the control stream they belong to. Datagrams carry its id as their prefix.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from anyreach.errors import ConnectionLost, StreamReset
from anyreach.transfer.errors import FrameError
from anyreach.transfer.frames import encode_frame, get_bool, get_int, get_text, read_frame

if TYPE_CHECKING:
    from anyreach import Connection, Stream

    from .flows import DatagramFlows
    from .header import Request

__all__ = ["CHUNK", "MAX_SECONDS", "BenchService", "send_datagrams_until"]

#: Bytes per write; large enough that calls cost nothing against encryption.
CHUNK: Final = 256 * 1024

#: Longest run a peer may ask for.
MAX_SECONDS: Final = 3600

#: Largest datagram a run may ask for; the connection may allow less.
MAX_DATAGRAM: Final = 65_000

#: Datagrams handed over at once, between looks at the clock.
_BATCH: Final = 64

#: Seconds without a datagram after which the rest of a run counts as lost.
_QUIET_SECONDS: Final = 0.2

#: Seconds to wait at most for that.
_DRAIN_SECONDS: Final = 3.0


@dataclass(slots=True)
class _Run:
    """One bench run and what arrived in it."""

    direction: str
    seconds: float
    received: int = 0
    datagrams: int = 0
    first: float = 0.0
    last: float = 0.0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    cpu: float = field(default_factory=time.process_time)

    def count_datagrams(self, datagrams: list[bytes], _: int) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.datagrams += len(datagrams)
        self.received += sum(map(len, datagrams))
        self.arrived.set()

    async def drained(self) -> None:
        """Waits until no datagram arrives any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while True:
                    self.arrived.clear()
                    await asyncio.wait_for(self.arrived.wait(), _QUIET_SECONDS)


class BenchService:
    """Answers the bench streams of one connection."""

    def __init__(self, connection: Connection, flows: DatagramFlows) -> None:
        self._connection = connection
        self._flows = flows
        self._runs: dict[int, _Run] = {}

    async def control(self, stream: Stream, request: Request) -> None:
        """Serves a control stream until the peer ends the run.

        Raises:
            FrameError: the parameters are not valid.
        """
        direction = get_text(request.body, "direction", limit=8)
        if direction not in ("up", "down"):
            raise FrameError("'direction' is neither up nor down")
        milliseconds = get_int(request.body, "ms", 1, MAX_SECONDS * 1000)
        datagrams = get_bool(request.body, "datagrams")
        size = get_int(request.body, "size", 1, MAX_DATAGRAM) if datagrams else 0
        run = self._runs[stream.id] = _Run(direction, milliseconds / 1000)
        sender: asyncio.Task[int] | None = None
        try:
            with self._flows.open(stream.id, run.count_datagrams) as prefix:
                await stream.write(encode_frame({"ok": True}))
                if datagrams and direction == "down":
                    deadline = time.monotonic() + run.seconds
                    sending = send_datagrams_until(self._connection, prefix, size, deadline)
                    sender = asyncio.create_task(sending)
                await read_frame(stream)
                if datagrams and direction == "up":
                    await run.drained()
        finally:
            del self._runs[stream.id]
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
        await stream.write(
            encode_frame(
                {
                    "ok": True,
                    "bytes": run.received,
                    "datagrams": run.datagrams,
                    "datagram_ms": round((run.last - run.first) * 1000),
                    "cpu_ms": round((time.process_time() - run.cpu) * 1000),
                }
            )
        )
        await stream.finish()

    async def data(self, stream: Stream, request: Request) -> None:
        """Serves a data stream: reads it to its end, or fills it until the run is over."""
        run = self._runs.get(get_int(request.body, "run", 0, 2**62))
        if run is None:
            raise FrameError("'run' names no bench run")
        if run.direction == "up":
            count = await _drain(stream)
            run.received += count
            await stream.write(encode_frame({"ok": True, "bytes": count}))
            await stream.finish()
            return
        await stream.write(encode_frame({"ok": True}))
        deadline = time.monotonic() + run.seconds
        chunk = bytes(CHUNK)
        # The peer stops the stream when its time is up; the deadline is for peers that do not.
        with contextlib.suppress(StreamReset):
            while time.monotonic() < deadline:
                await stream.write(chunk)
            await stream.finish()


async def send_datagrams_until(
    connection: Connection, prefix: bytes, size: int, deadline: float
) -> int:
    """Sends datagrams of ``size`` bytes as fast as they go; how many were queued.

    Args:
        deadline: on the clock of :func:`time.monotonic`.
    """
    datagram = prefix + bytes(max(size - len(prefix), 0))
    batch = [datagram] * _BATCH
    sent = 0
    with contextlib.suppress(ConnectionLost):
        while time.monotonic() < deadline:
            queued = connection.send_datagrams(batch)
            sent += queued
            # A full queue empties at the pace of the path; a millisecond fills no gap in it.
            # Waiting for room instead carries no more, and on one machine overruns the receiver.
            await asyncio.sleep(0 if queued == _BATCH else 0.001)
    return sent


async def _drain(stream: Stream) -> int:
    buffer = memoryview(bytearray(1 << 20))
    total = 0
    while count := await stream.readinto(buffer):
        total += count
    return total
