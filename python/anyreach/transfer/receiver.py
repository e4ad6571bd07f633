"""The receiving side of a file transfer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from anyreach.errors import StreamClosed, StreamReset

from .errors import TransferError, TransferErrorCode
from .frames import encode_frame, read_frame
from .messages import Done, Offer, Prefix, Resume, Trailer, refusal
from .names import check_name, partial_name
from .stream import RESET_CANCELLED, RESET_CHANGED, STOP_REFUSED, ByteStream, patience
from .worker import Worker

if TYPE_CHECKING:
    from .store import Inbox, Partial

__all__ = ["Progress", "Received", "Receiver"]

#: Bytes gathered before they are hashed and written; two such buffers per transfer.
BLOCK: Final = 1 << 20

#: Transfers at once: each has a thread and two blocks, 128 MiB together.
MAX_ACTIVE: Final = 64

#: Seconds without a byte after which another connection may take a transfer over: a sender
#: that was killed looks like this until QUIC's idle timeout.
STALLED_SECONDS: Final = 2.0

#: Seconds a transfer that is taken over gets to write what it has and let go.
_HANDOVER_SECONDS: Final = 10.0

#: Seconds to hand over the reason of a refusal; on a broken connection there is no taker.
_REFUSAL_SECONDS: Final = 5.0

#: Called with the offer and the bytes of the file that are present.
Progress = Callable[[Offer, int], object]


@dataclass(frozen=True, slots=True)
class Received:
    """A file that arrived, verified, under its final name.

    Attributes:
        name: its name in the folder.
        size: in bytes.
        sha256: in hexadecimal.
        resumed_at: bytes that were there before this connection.
        existing: the whole file was there already.
        seconds: how long this connection took for it.
    """

    name: str
    size: int
    sha256: str
    resumed_at: int
    existing: bool
    seconds: float


@dataclass(slots=True, eq=False)
class _Active:
    """A transfer in progress: who sends it and when the last byte came."""

    source: object
    task: asyncio.Task[object] | None
    last_byte: float
    timer_moved: float = 0.0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    superseded: bool = False


class Receiver:
    """Takes files into an :class:`Inbox`; one per folder and process."""

    def __init__(self, inbox: Inbox, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.inbox: Final = inbox
        self._clock = clock
        self._active: dict[str, _Active] = {}

    async def receive(
        self, stream: ByteStream, source: object, progress: Progress = lambda *_: None
    ) -> Received:
        """Receives the one file of a stream and answers its sender.

        Args:
            source: who sends, usually the PeerId; the same source may take over its own
                transfer from a connection that broke.
            progress: called with the offer and the bytes present, at the start and per block.

        Raises:
            TransferError: refused, damaged, or no space; the sender was told.
            ConnectionError, EOFError: the sender or the connection went away; the bytes so far
                are kept for the next attempt.
            TimeoutError: the sender fell silent.
        """
        try:
            async with asyncio.timeout(patience()):
                offer = Offer.from_body(await read_frame(stream))
            check_name(offer.name, windows=os.name == "nt")
            async with self._claim(offer, source) as active:
                receiving = _Receiving(stream, offer, self.inbox, active, progress, self._clock)
                return await receiving.run()
        except TransferError as error:
            await _refuse(stream, error)
            raise
        except asyncio.CancelledError:
            _abandon(stream)
            raise
        except (OSError, EOFError):
            _abandon(stream)
            raise

    @contextlib.asynccontextmanager
    async def _claim(self, offer: Offer, source: object) -> AsyncIterator[_Active]:
        """Makes sure that one transfer at a time writes a partial file."""
        key = partial_name(offer.name, offer.content_id)
        other = self._active.get(key)
        if other is not None:
            stalled = self._clock() - other.last_byte > STALLED_SECONDS
            if other.task is None or (other.source != source and not stalled):
                raise _busy(offer)
            other.superseded = True
            other.task.cancel()
            try:
                async with asyncio.timeout(_HANDOVER_SECONDS):
                    await other.over.wait()
            except TimeoutError:
                raise _busy(offer) from None
        if key in self._active:
            raise _busy(offer)
        if len(self._active) >= MAX_ACTIVE:
            raise TransferError(TransferErrorCode.BUSY, "too many transfers at once")
        active = _Active(source, asyncio.current_task(), self._clock())
        self._active[key] = active
        try:
            yield active
        except asyncio.CancelledError:
            if not active.superseded or active.task is None:
                raise
            # Cancelled by a newer connection, not by our caller.
            active.task.uncancel()
            raise TransferError(
                TransferErrorCode.BUSY, "a newer connection continues this transfer"
            ) from None
        finally:
            del self._active[key]
            active.over.set()


@dataclass(slots=True)
class _Receiving:
    """The steps of one transfer, in the order of :mod:`anyreach.transfer.messages`."""

    stream: ByteStream
    offer: Offer
    inbox: Inbox
    active: _Active
    progress: Progress
    clock: Callable[[], float]
    worker: Worker = field(default_factory=Worker)

    async def run(self) -> Received:
        offer, started = self.offer, self.clock()
        partial: Partial | None = None

        def open_partial() -> Partial:
            nonlocal partial
            partial = self.inbox.open_partial(offer.name, offer.content_id)
            return partial

        def close() -> None:
            # Runs in the worker, after open_partial() even if nobody waited for that.
            if partial is not None:
                partial.close()

        try:
            if sha256 := await self._offer_existing():
                name, offset = offer.name, offer.size
                self.progress(offer, offset)
                await self._check_trailer(sha256)
            else:
                file = await self.worker.submit(open_partial)
                offset = await self._agree(file)
                self.progress(offer, offset)
                sha256, name = await self._store(file)
        finally:
            # The file must be closed before the claim ends, or a successor finds it locked.
            await self.worker.close(close)
        existing = partial is None
        await _answer(self.stream, Done(name, existing).to_body())
        return Received(name, offer.size, sha256, offset, existing, self.clock() - started)

    async def _offer_existing(self) -> str | None:
        """Proposes the finished file of this name; its SHA-256 if the sender has the same."""
        name, size = self.offer.name, self.offer.size
        if size == 0:
            return None
        sha256 = await self.worker.submit(self.inbox.existing_sha256, name, size)
        if sha256 is None or await self._propose(size) != sha256:
            return None
        await self._send_resume(size)
        return sha256

    async def _agree(self, partial: Partial) -> int:
        """The offset the sender starts at; everything before is in ``partial``, hashed."""
        offset, size = partial.size, self.offer.size
        self.inbox.check_size(size, offset)
        if 0 < offset <= size:
            sha256 = await self.worker.submit(partial.rehash)
            if partial.size == offset and await self._propose(offset) == sha256:
                await self._send_resume(offset)
                return offset
        await self.worker.submit(partial.restart)
        await self._send_resume(0)
        return 0

    async def _propose(self, offset: int) -> str:
        """Proposes an offset; the SHA-256 of the sender's bytes before it."""
        await self._send_resume(offset)
        async with asyncio.timeout(patience(offset)):
            return Prefix.from_body(await read_frame(self.stream)).sha256

    async def _send_resume(self, offset: int) -> None:
        await self.stream.write(encode_frame(Resume(offset).to_body()))

    async def _store(self, partial: Partial) -> tuple[str, str]:
        """Receives the rest into ``partial`` and commits it: SHA-256 and final name."""
        try:
            await self._read_body(partial)
            sha256 = partial.digest()
            await self._check_trailer(sha256)
        except StreamReset as error:
            if error.code == RESET_CHANGED:
                await self.worker.submit(partial.discard)
            raise
        except TransferError as error:
            if error.code is TransferErrorCode.HASH_MISMATCH:
                await self.worker.submit(partial.discard)
            raise
        return sha256, await self.worker.submit(partial.commit, self.offer.name)

    async def _read_body(self, partial: Partial) -> None:
        """Reads the bytes of the file; the previous block is hashed and written meanwhile."""
        size, arrived, filled = self.offer.size, partial.size, 0
        block = min(BLOCK, max(size - arrived, 1))
        filling, spare = memoryview(bytearray(block)), memoryview(bytearray(block))
        written: asyncio.Future[None] | None = None
        try:
            async with asyncio.timeout(patience()) as limit:
                while arrived < size:
                    want = min(block, filled + size - arrived)
                    count = await self.stream.readinto(filling[filled:want])
                    if count == 0:
                        raise EOFError("the sender ended the stream before the file was complete")
                    filled += count
                    arrived += count
                    self._note_byte(limit)
                    if filled == want:
                        if written is not None:
                            await written
                        written = self.worker.submit(partial.write, filling[:filled])
                        filling, spare, filled = spare, filling, 0
                        self.progress(self.offer, arrived)
        finally:
            # Whatever ended the loop, what was received goes to the disk, in order.
            if filled:
                rest = self.worker.submit(partial.write, filling[:filled])
                rest.add_done_callback(_ignore)
            if written is not None:
                written.add_done_callback(_ignore)
        if written is not None:
            await written

    def _note_byte(self, limit: asyncio.Timeout) -> None:
        self.active.last_byte = now = self.clock()
        # Moving a timer for every packet would cost more than reading it.
        if now - self.active.timer_moved > 1:
            self.active.timer_moved = now
            limit.reschedule(asyncio.get_running_loop().time() + patience())

    async def _check_trailer(self, sha256: str) -> None:
        async with asyncio.timeout(patience()):
            trailer = Trailer.from_body(await read_frame(self.stream))
        if trailer.sha256 != sha256:
            raise TransferError(
                TransferErrorCode.HASH_MISMATCH,
                "what arrived does not have the SHA-256 of the sender's file",
            )


async def _answer(stream: ByteStream, body: dict[str, object]) -> None:
    await stream.write(encode_frame(body))
    await stream.finish()


async def _refuse(stream: ByteStream, error: TransferError) -> None:
    """Tells the sender why, and to stop."""
    with contextlib.suppress(OSError, StreamClosed):
        async with asyncio.timeout(_REFUSAL_SECONDS):
            await _answer(stream, refusal(error))
    with contextlib.suppress(OSError, StreamClosed):
        stream.stop(STOP_REFUSED)


def _abandon(stream: ByteStream) -> None:
    for end in (stream.reset, stream.stop):
        with contextlib.suppress(OSError, StreamClosed):
            end(RESET_CANCELLED)


def _busy(offer: Offer) -> TransferError:
    return TransferError(TransferErrorCode.BUSY, f"{offer.name!r} is being received already")


def _ignore(future: asyncio.Future[None]) -> None:
    """Marks the outcome of a write nobody waits for any more as seen."""
    if not future.cancelled():
        future.exception()
