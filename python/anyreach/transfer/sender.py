"""The sending side of a file transfer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from anyreach.errors import StreamClosed, StreamReset

from .errors import FrameError, TransferError, TransferErrorCode
from .frames import encode_frame, read_frame
from .messages import Done, Offer, Prefix, Resume, Trailer
from .names import check_name
from .stream import RESET_CANCELLED, RESET_CHANGED, ByteStream, patience
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .pacing import Pacer

__all__ = ["Outgoing", "Sent", "send_file"]

#: Bytes read from the disk at once. One read ahead is in flight while the previous block is
#: written: two blocks per file in memory.
BLOCK: Final = 1 << 20

#: Bytes at each end of a file that go into its content id.
_ID_SAMPLE: Final = 64 * 1024

#: Proposals of the receiver that are followed: the finished file, a partial file, the start.
_MAX_PROPOSALS: Final = 4


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file as it was when it was looked at.

    Attributes:
        path: where it is.
        name: the name offered to the receiver.
        size: in bytes.
        modified_ns: time of its last change.
        content_id: names the content in 32 hexadecimal digits: a hash of the name, the size,
            and the first and last 64 KiB.
    """

    path: Path
    name: str
    size: int
    modified_ns: int
    content_id: str

    @classmethod
    def look_at(cls, path: Path) -> Outgoing:
        """Checks that ``path`` can be sent. Blocking, reads at most 128 KiB.

        Raises:
            TransferError: a folder, a device, or a name no receiver accepts.
            OSError: missing or not readable.
        """
        # The bytes on disk are what the name is, whatever the locale of this process.
        local = os.fsencode(path.name or path.resolve().name)
        name = check_name(local.decode("utf-8", "surrogateescape"))
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise TransferError(
                TransferErrorCode.IO,
                f"{path} is a folder: pack it first, for example with tar -czf {name}.tar.gz",
            )
        if not stat.S_ISREG(status.st_mode):
            raise TransferError(TransferErrorCode.IO, f"{path} is not a regular file")
        digest = hashlib.sha256(f"{status.st_size}/{name}/".encode())
        with path.open("rb", buffering=0) as file:
            digest.update(file.read(_ID_SAMPLE) or b"")
            if status.st_size > _ID_SAMPLE:
                file.seek(max(_ID_SAMPLE, status.st_size - _ID_SAMPLE))
                digest.update(file.read(_ID_SAMPLE) or b"")
        return cls(path, name, status.st_size, status.st_mtime_ns, digest.hexdigest()[:32])


@dataclass(frozen=True, slots=True)
class Sent:
    """A file the receiver has, verified.

    Attributes:
        name: its name at the receiver.
        size: in bytes.
        sha256: in hexadecimal.
        resumed_at: bytes the receiver had already.
        existing: the receiver had the whole file.
    """

    name: str
    size: int
    sha256: str
    resumed_at: int
    existing: bool


class _Reader:
    """The open file and the hash of what was read. Used in one thread."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self._file = outgoing.path.open("rb", buffering=0)
        self._hash = hashlib.sha256()
        try:
            self._check_unchanged()
        except BaseException:
            self._file.close()
            raise

    def _check_unchanged(self) -> None:
        status = os.fstat(self._file.fileno())
        expected = (self._outgoing.size, self._outgoing.modified_ns)
        if (status.st_size, status.st_mtime_ns) != expected:
            raise TransferError(
                TransferErrorCode.CHANGED, f"{self._outgoing.path} changed while it was sent"
            )

    def seek(self, offset: int) -> str:
        """Hashes everything before ``offset`` and continues there; the hash in hexadecimal."""
        self._file.seek(0)
        self._hash = hashlib.sha256()
        buffer = memoryview(bytearray(min(BLOCK, offset)))
        rest = offset
        while rest:
            count = self._file.readinto(buffer[: min(rest, BLOCK)])
            if not count:
                self._check_unchanged()
                raise EOFError(f"{self._outgoing.path} ended early")
            self._hash.update(buffer[:count])
            rest -= count
        return self._hash.hexdigest()

    def read(self, limit: int) -> bytes:
        data = self._file.read(min(limit, BLOCK))
        if not data:
            self._check_unchanged()
            raise EOFError(f"{self._outgoing.path} ended early")
        self._hash.update(data)
        return data

    def finish(self) -> str:
        """The hash of the whole file, once it is certain that it did not change."""
        self._check_unchanged()
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


async def send_file(
    stream: ByteStream,
    outgoing: Outgoing,
    *,
    accepted: Callable[[], Awaitable[object]] | None = None,
    progress: Callable[[int], object] = lambda _: None,
    pacer: Pacer | None = None,
) -> Sent:
    """Sends one file on a stream of its own.

    Args:
        accepted: awaited once the offer is on its way, for what the peer says before its answer
            to it; so agreeing on a service costs no round trip of its own.
        progress: called with the number of bytes of the file that are on their way, first with
            what the receiver had already.
        pacer: limits the rate.

    Raises:
        TransferError: refused by the receiver, or the file changed.
        ConnectionError: the connection or the stream broke; the receiver keeps what it has.
        OSError: the file cannot be read.
        TimeoutError: the receiver stopped answering.
    """
    worker = Worker()
    closing = contextlib.ExitStack()
    try:
        reader = await worker.submit(lambda: closing.enter_context(_Reader(outgoing)))
        return await _Sending(stream, outgoing, worker, reader, accepted, progress, pacer).run()
    except (asyncio.CancelledError, OSError, EOFError):
        _quietly(stream.reset, RESET_CANCELLED)
        raise
    except TransferError as error:
        changed = error.code is TransferErrorCode.CHANGED and not error.remote
        _quietly(stream.reset, RESET_CHANGED if changed else RESET_CANCELLED)
        raise
    finally:
        _quietly(stream.stop, RESET_CANCELLED)
        worker.close(closing.close)


@dataclass(slots=True)
class _Sending:
    """The steps of one transfer, in the order of :mod:`anyreach.transfer.messages`."""

    stream: ByteStream
    outgoing: Outgoing
    worker: Worker
    reader: _Reader
    accepted: Callable[[], Awaitable[object]] | None
    progress: Callable[[int], object]
    pacer: Pacer | None

    async def run(self) -> Sent:
        try:
            return await self._run()
        except (StreamReset, StreamClosed):
            # The receiver stopped us; it says why in a frame. If it does not, the reset stands.
            await _read_refusal(self.stream)
            raise

    async def _run(self) -> Sent:
        size = self.outgoing.size
        offer = Offer(self.outgoing.name, size, self.outgoing.content_id)
        await self.stream.write(encode_frame(offer.to_body()))
        if self.accepted is not None:
            await self.accepted()
        offset = await self._agree()
        self.progress(offset)
        await self._write_body(offset)
        trailer = Trailer(await self.worker.submit(self.reader.finish))
        await self.stream.write(encode_frame(trailer.to_body()))
        await self.stream.finish()
        async with asyncio.timeout(patience(size)):
            done = Done.from_body(await read_frame(self.stream))
        return Sent(done.name, size, trailer.sha256, offset, done.existing)

    async def _agree(self) -> int:
        """The offset to send from: the highest proposal that our bytes agree with."""
        size = self.outgoing.size
        async with asyncio.timeout(patience(size)):
            proposed = Resume.from_body(await read_frame(self.stream), size).offset
        for _ in range(_MAX_PROPOSALS):
            prefix = Prefix(await self.worker.submit(self.reader.seek, proposed))
            if proposed == 0:
                return 0
            await self.stream.write(encode_frame(prefix.to_body()))
            async with asyncio.timeout(patience(proposed)):
                answer = Resume.from_body(await read_frame(self.stream), proposed).offset
            if answer == proposed:
                return proposed
            proposed = answer
        raise FrameError("the receiver keeps proposing offsets")

    async def _write_body(self, offset: int) -> None:
        """Writes everything from ``offset`` on; the next block is read meanwhile."""
        size, submit, read = self.outgoing.size, self.worker.submit, self.reader.read
        ahead = submit(read, size - offset) if offset < size else None
        try:
            while ahead is not None:
                data = await ahead
                offset += len(data)
                ahead = submit(read, size - offset) if offset < size else None
                for piece in self.pacer.pieces(data) if self.pacer else (data,):
                    if self.pacer:
                        await self.pacer.wait(len(piece))
                    await self.stream.write(piece)
                self.progress(offset)
        finally:
            if ahead is not None:
                ahead.cancel()


async def _read_refusal(stream: ByteStream) -> None:
    """Raises the refusal the receiver sent, if there is one."""
    try:
        async with asyncio.timeout(patience()):
            Done.from_body(await read_frame(stream))
    except (OSError, EOFError, FrameError):
        return


def _quietly(function: Callable[[int], object], code: int) -> None:
    """Resets or stops a stream that may be over already."""
    try:
        function(code)
    except (StreamClosed, OSError):
        return
