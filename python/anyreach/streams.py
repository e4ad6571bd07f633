"""Streams: ordered, reliable bytes to and from a peer, many at a time on one connection.

A stream is bidirectional or one-way. Received bytes wait in the core until they are asked for,
under the flow control of QUIC: a reader that pauses stops the sender, and cancelling a read loses
nothing.
"""

from __future__ import annotations

from asyncio import IncompleteReadError, get_running_loop
from typing import TYPE_CHECKING, Final, TypeAlias

from anyreach._bridge import current_bridge
from anyreach.errors import StreamClosed, StreamReset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType
    from typing import Self

    from anyreach import _core
    from anyreach._bridge import LoopBridge

__all__ = ["BytesLike", "Stream"]

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""What can be written. ``bytes`` of 4 KiB and more are sent without a copy; the others can
change while they wait to be sent, so they are copied."""


class Stream:
    """A stream to or from a peer, made by :class:`anyreach.Connection`.

    One task may read and another write at the same time; a second reader (or writer) gets a
    :class:`RuntimeError`. Methods that wait may be cancelled; what that means for the data is
    said with each of them. A stream that is forgotten before :meth:`finish` is reset with code 0,
    so the peer never takes half a stream for a whole one.

    As an asynchronous context manager it finishes when the block ends well, and resets and stops
    with code 0 when the block raises::

        async with await connection.open_stream() as stream:
            await stream.write(request)
            await stream.finish()
            reply = await stream.read()

    Every method that transfers data raises :class:`~anyreach.ConnectionLost` when the connection
    has ended, :class:`~anyreach.StreamReset` when the peer has given up this direction of the
    stream and :class:`~anyreach.StreamClosed` when this side has, or when the stream does not
    have that direction.
    """

    __slots__ = (
        "__weakref__",
        "_bridge",
        "_finished",
        "_priority",
        "_pushed_back",
        "_reading",
        "_recv",
        "_reset",
        "_send",
        "_writing",
    )

    def __init__(self, send: _core.SendStream | None, recv: _core.RecvStream | None) -> None:
        self._send: Final = send
        self._recv: Final = recv
        self._bridge: LoopBridge | None = None
        self._pushed_back = bytearray()  # taken from the core by a read that was then cancelled
        self._reading = False
        self._writing = False
        self._finished = False
        self._reset = False
        self._priority = 0

    def __repr__(self) -> str:
        kind = "bidirectional" if self._send and self._recv else "out" if self._send else "in"
        return f"<Stream {self.id} {kind}>"

    @property
    def id(self) -> int:
        """The QUIC stream id (RFC 9000, 2.1), unique within the connection."""
        half = self._send or self._recv
        assert half is not None
        return half.id

    @property
    def can_read(self) -> bool:
        """Whether the stream has a receiving direction."""
        return self._recv is not None

    @property
    def can_write(self) -> bool:
        """Whether the stream has a sending direction."""
        return self._send is not None

    # Receiving

    async def read(self, n: int = -1) -> bytes:
        """Up to ``n`` bytes, at least one, as soon as there are any; ``b""`` at the end.

        A negative ``n`` means everything up to the end, as it does in :mod:`asyncio`; that trusts
        the peer with this side's memory.

        Cancelled, it loses nothing: the next read returns what this one would have.
        """
        recv = self._recv
        if recv is None or self._reading or self._pushed_back or n <= 0:
            return await self._read_unusual(n)
        bridge = self._bridge
        if bridge is None or bridge.loop is not get_running_loop():
            bridge = self._bridge = current_bridge()
        if bridge.credit <= 0:
            await bridge.give_way()
        data = recv.poll_read(n, bridge.core, bridge.token)
        if data is None:
            self._reading = True
            try:
                data = await bridge.retry(recv.poll_read, n)
            finally:
                self._reading = False
        bridge.credit -= 1 + (len(data) >> _BULK_SHIFT)
        return data

    async def readexactly(self, n: int) -> bytes:
        """Exactly ``n`` bytes.

        Cancelled, it loses nothing: the bytes gathered so far are what the next read returns.

        Raises:
            asyncio.IncompleteReadError: the stream ended before; its ``partial`` has what came.
        """
        if n < 0:
            raise ValueError("n must not be negative")
        if not self._pushed_back and n:
            data = await self.read(n)
            if len(data) == n:
                return data
            self._pushed_back += data
            if not data:
                raise IncompleteReadError(b"", n)
        await self._gather(n)
        if len(self._pushed_back) < n:
            raise IncompleteReadError(self._take(n), n)
        return self._take(n)

    async def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` with what is there, at least one byte; how many, 0 at the end.

        Anything that offers writable contiguous memory will do. The cheapest way to receive: one
        copy, nothing allocated. Cancelled, it loses nothing and has not touched the buffer.
        """
        recv = self._readable()
        if self._pushed_back:
            with memoryview(buffer).cast("B") as view:
                data = self._take(len(view))
                view[: len(data)] = data
            return len(data)
        bridge = self._bridge
        if bridge is None or bridge.loop is not get_running_loop():
            bridge = self._bridge = current_bridge()
        if bridge.credit <= 0:
            await bridge.give_way()
        count = recv.poll_readinto(buffer, bridge.core, bridge.token)
        if count is None:
            self._reading = True
            try:
                count = await bridge.retry(recv.poll_readinto, buffer)
            finally:
                self._reading = False
        bridge.credit -= 1 + (count >> _BULK_SHIFT)
        return count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks as they come, up to the end. Their sizes mean nothing."""
        while data := await self.read(_CHUNK):
            yield data

    def stop(self, code: int = 0) -> None:
        """Ask the peer to stop sending, and throw away what was not read (STOP_SENDING).

        The peer's writes then raise :class:`~anyreach.StreamReset` with ``code``, a number below
        2**62. Harmless after the end of the stream.
        """
        if self._recv is None:
            raise StreamClosed("the stream has no receiving direction")
        self._pushed_back.clear()
        self._recv.stop(code)

    # Sending

    async def write(self, data: BytesLike) -> None:
        """Hand all of ``data`` to the connection, waiting while it or the peer has no room.

        Returning does not mean that the peer has it: see :meth:`wait_acked`. Cancelled, it may
        have sent a part; go on only if that does not matter, else :meth:`reset` the stream.
        """
        send = self._send
        if send is None or self._writing:
            raise self._not_writable()
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        size = len(data)
        if not size:
            return
        bridge = self._bridge
        if bridge is None or bridge.loop is not get_running_loop():
            bridge = self._bridge = current_bridge()
        if bridge.credit <= 0:
            await bridge.give_way()
        done = send.poll_write(data, 0, bridge.core, bridge.token)
        if done != size:
            self._writing = True
            try:
                while done is None or done < size:
                    if done is None:
                        done = await bridge.retry(send.poll_write, data, 0)
                    else:
                        done += await bridge.wait(send.poll_write, data, done)
            finally:
                self._writing = False
        bridge.credit -= 1 + (size >> _BULK_SHIFT)

    async def write_many(self, chunks: Iterable[BytesLike]) -> None:
        """Write several pieces in order; cheaper than one by one if they are small."""
        batch: list[BytesLike] = []
        size = 0
        for chunk in chunks:
            batch.append(chunk)
            size += len(chunk)
            if size >= _CHUNK:
                await self.write(batch[0] if len(batch) == 1 else b"".join(batch))
                batch, size = [], 0
        if batch:
            await self.write(b"".join(batch))

    async def finish(self) -> None:
        """Say that no more data follows (FIN); what was written is still delivered.

        A second time it does nothing. Does not wait for the peer: see :meth:`wait_acked`.
        """
        send = self._send
        if send is None or self._reset or self._writing:
            raise self._not_writable()
        if not self._finished:
            send.finish()
            self._finished = True

    async def wait_acked(self) -> None:
        """Wait until the peer has received everything up to the :meth:`finish`.

        Received, not processed: only a reply can tell that.

        Raises:
            RuntimeError: the stream was not finished, so the wait could not end.
        """
        send = self._send
        if send is None or self._reset:
            raise self._not_writable()
        if not self._finished:
            raise RuntimeError("finish() the stream first")
        code = await current_bridge().wait(send.poll_stopped)
        if code >= 0:
            raise StreamReset(f"the peer stopped reading the stream with code {code}", code)

    def reset(self, code: int = 0) -> None:
        """Abandon the sending direction: what was not delivered yet may never be (RESET_STREAM).

        The peer's reads then raise :class:`~anyreach.StreamReset` with ``code``, a number below
        2**62. After a :meth:`finish` the peer may have everything nonetheless.
        """
        if self._send is None:
            raise StreamClosed("the stream has no sending direction")
        self._send.reset(code)
        self._reset = True

    @property
    def priority(self) -> int:
        """Data of streams with a higher number is sent first; 0 at the start."""
        return self._priority

    @priority.setter
    def priority(self, value: int) -> None:
        if self._send is None:
            raise StreamClosed("the stream has no sending direction")
        self._send.set_priority(value)
        self._priority = value

    # Lifetime

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            if self._send is not None and not self._reset:
                await self.finish()
            return
        if self._send is not None:
            self._send.reset(0)
            self._reset = True
        if self._recv is not None:
            self.stop(0)

    # Internals

    async def _read_unusual(self, n: int) -> bytes:
        """The reads that are not worth a test each on the way of the usual one."""
        self._readable()
        if n == 0:
            return b""
        if n < 0:
            await self._gather(None)
            return self._take(len(self._pushed_back))
        return self._take(n)

    async def _gather(self, n: int | None) -> None:
        """Read into ``_pushed_back`` until it has ``n`` bytes (``None``: all) or the end comes."""
        recv = self._readable()
        bridge = current_bridge()
        gathered = self._pushed_back
        self._reading = True
        try:
            while n is None or len(gathered) < n:
                missing = _CHUNK if n is None else n - len(gathered)
                data = await bridge.wait(recv.poll_read, missing)
                if not data:
                    return
                gathered += data
                bridge.credit -= len(data) >> _BULK_SHIFT
        finally:
            self._reading = False

    def _take(self, n: int) -> bytes:
        data = bytes(self._pushed_back[:n])
        del self._pushed_back[:n]
        return data

    def _readable(self) -> _core.RecvStream:
        if self._recv is None:
            raise StreamClosed("the stream has no receiving direction")
        if self._reading:
            raise RuntimeError("another task is reading this stream")
        return self._recv

    def _not_writable(self) -> Exception:
        if self._send is None:
            return StreamClosed("the stream has no sending direction")
        if self._writing:
            return RuntimeError("another task is writing to this stream")
        return StreamClosed("the stream was reset")


_BULK_SHIFT: Final = 14
"""A transfer costs one credit of its loop (see ``_bridge``) and one more for each 16 KiB."""

_CHUNK: Final = 256 * 1024
"""How much is read, or gathered before a write, at once where the caller does not say: enough to
make the calls cheap, little enough to stay in the cache."""
