"""Datagrams of several services on one connection, told apart by the id of their stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anyreach.errors import ConnectionLost

from .header import decode_varint, encode_varint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyreach import Connection

__all__ = ["DatagramFlows"]

#: Datagrams taken at once: one wake-up for many when they come fast.
_BATCH: Final = 256

Handler = Callable[[list[bytes], int], object]


class DatagramFlows:
    """Hands the datagrams of a connection to the services they belong to.

    Datagrams are only read while a service wants some; those of nobody are dropped.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._handlers: dict[int, Handler] = {}
        self._reader: asyncio.Task[None] | None = None

    @staticmethod
    def prefix(stream_id: int) -> bytes:
        """What every datagram of the service on this stream starts with."""
        return encode_varint(stream_id)

    @contextlib.contextmanager
    def open(self, stream_id: int, handler: Handler) -> Iterator[bytes]:
        """Calls ``handler`` with the datagrams of a service.

        Args:
            handler: gets datagrams that arrived together and where their payload starts.

        Yields:
            The prefix for datagrams to send.
        """
        self._handlers[stream_id] = handler
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        try:
            yield self.prefix(stream_id)
        finally:
            del self._handlers[stream_id]
            if not self._handlers:
                self._reader.cancel()
                self._reader = None

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionLost):
            while True:
                batch = await self._connection.receive_datagrams(max=_BATCH)
                while batch:
                    batch = self._hand_over(batch)

    def _hand_over(self, batch: list[bytes]) -> list[bytes]:
        """Gives the datagrams that belong with the first one away; the others."""
        decoded = decode_varint(batch[0])
        if decoded is None:
            return batch[1:]
        prefix = batch[0][: decoded[1]]
        same = [datagram for datagram in batch if datagram.startswith(prefix)]
        if handler := self._handlers.get(decoded[0]):
            handler(same, len(prefix))
        if len(same) == len(batch):
            return []
        return [datagram for datagram in batch if not datagram.startswith(prefix)]
