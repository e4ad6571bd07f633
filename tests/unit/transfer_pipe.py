"""Two ends of an in-memory stream with the interface of ``anyreach.Stream``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from anyreach.errors import ConnectionLost, StreamClosed, StreamReset

#: Bytes one direction buffers before a writer waits, as a flow-control window would.
WINDOW = 256 * 1024


@dataclass
class Direction:
    """One direction: buffer, end, reset and stop."""

    buffer: bytearray = field(default_factory=bytearray)
    finished: bool = False
    reset: int | None = None
    stopped: int | None = None
    lost: bool = False
    total: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


class PipeEnd:
    """One end; ``cut`` breaks the connection after so many bytes written by this end."""

    def __init__(self, outgoing: Direction, incoming: Direction, cut: int | None = None) -> None:
        self.outgoing, self.incoming, self.cut = outgoing, incoming, cut
        self.tasks: set[asyncio.Task[None]] = set()

    async def write(self, data: bytes, /) -> None:
        out = self.outgoing
        rest = memoryview(data)
        while rest:
            async with out.changed:
                await out.changed.wait_for(
                    lambda: len(out.buffer) < WINDOW or out.stopped is not None or out.lost
                )
                self._check_writable()
                piece = rest[: WINDOW - len(out.buffer)]
                if self.cut is not None:
                    piece = piece[: max(0, self.cut - out.total)]
                out.buffer += piece
                out.total += len(piece)
                rest = rest[len(piece) :]
                out.changed.notify_all()
            if self.cut is not None and out.total >= self.cut:
                await self.break_connection()
                raise ConnectionLost("cut", reason="timeout")

    def _check_writable(self) -> None:
        if self.outgoing.lost:
            raise ConnectionLost("cut", reason="timeout")
        if self.outgoing.stopped is not None:
            raise StreamReset("stopped", self.outgoing.stopped)
        if self.outgoing.finished or self.outgoing.reset is not None:
            raise StreamClosed("finished")

    async def break_connection(self) -> None:
        for direction in (self.outgoing, self.incoming):
            direction.lost = True
            await direction.notify()

    async def finish(self) -> None:
        self._check_writable()
        self.outgoing.finished = True
        await self.outgoing.notify()

    async def readinto(self, buffer: memoryview, /) -> int:
        inc = self.incoming
        async with inc.changed:
            await inc.changed.wait_for(
                lambda: inc.buffer or inc.finished or inc.reset is not None or inc.lost
            )
            if inc.reset is not None:
                raise StreamReset("reset", inc.reset)
            count = min(len(buffer), len(inc.buffer))
            if not count and not inc.finished:
                raise ConnectionLost("cut", reason="timeout")
            buffer[:count] = inc.buffer[:count]
            del inc.buffer[:count]
            inc.changed.notify_all()
            return count

    async def readexactly(self, n: int, /) -> bytes:
        buffer = bytearray(n)
        filled = 0
        while filled < n:
            count = await self.readinto(memoryview(buffer)[filled:])
            if not count:
                raise asyncio.IncompleteReadError(bytes(buffer[:filled]), n)
            filled += count
        return bytes(buffer)

    def reset(self, code: int, /) -> None:
        if not self.outgoing.finished and not self.outgoing.lost:
            self.outgoing.reset = code
            self._spawn(self.outgoing)

    def stop(self, code: int, /) -> None:
        self.incoming.stopped = code
        self._spawn(self.incoming)

    def _spawn(self, direction: Direction) -> None:
        task = asyncio.get_running_loop().create_task(direction.notify())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def pipe(cut: int | None = None) -> tuple[PipeEnd, PipeEnd]:
    """Two connected ends; the first one's connection breaks after ``cut`` bytes it wrote."""
    there, back = Direction(), Direction()
    return PipeEnd(there, back, cut), PipeEnd(back, there)
