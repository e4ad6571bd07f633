"""What a transfer needs of a stream, and how long it waits for the other side."""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["RESET_CANCELLED", "RESET_CHANGED", "STOP_REFUSED", "ByteStream", "patience"]

#: Application error code of a reset: the sender gave up for now; what arrived is kept.
RESET_CANCELLED: Final = 0x20

#: Application error code of a reset: the file changed while it was sent; what arrived is useless.
RESET_CHANGED: Final = 0x21

#: Application error code of STOP_SENDING: the reason is in the reply frame.
STOP_REFUSED: Final = 0x22

#: Seconds one side may be silent while it has nothing to compute. Connections that died are
#: noticed by QUIC's idle timeout; this is for a live peer that stopped answering.
_SILENCE_SECONDS: Final = 60.0

#: Bytes per second a slow disk hashes or syncs, for waits that depend on the size of a file.
_SLOW_DISK_RATE: Final = 10_000_000


class ByteStream(Protocol):
    """The operations of :class:`anyreach.Stream` used here."""

    async def write(self, data: bytes, /) -> object:
        """Writes everything; waits while the peer takes nothing."""
        ...

    async def finish(self) -> object:
        """Ends the sending side."""
        ...

    async def readexactly(self, n: int, /) -> bytes:
        """Exactly ``n`` bytes; raises EOFError if the stream ends before."""
        ...

    async def readinto(self, buffer: memoryview, /) -> int:
        """At least one byte into ``buffer``; 0 at the end of the stream."""
        ...

    def reset(self, code: int, /) -> object:
        """Gives up the sending side."""
        ...

    def stop(self, code: int, /) -> object:
        """Asks the peer to stop sending."""
        ...


def patience(octets: int = 0) -> float:
    """Seconds to wait for a peer that may have to read ``octets`` from its disk first."""
    return _SILENCE_SECONDS + octets / _SLOW_DISK_RATE
