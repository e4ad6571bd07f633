"""A bounded queue that several tasks of one event loop may read, and that ends.

Putting never waits: a full mailbox makes room by giving up an item, and says so. That is the
right trade for notices (the newest matter) and for handed-over objects whose owner lives
elsewhere; it is the wrong one for data.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Mailbox"]

T = TypeVar("T")


class Mailbox(Generic[T]):
    """An async iterator over what was :meth:`put`; each item goes to one reader.

    Args:
        limit: how many items are kept for readers.
        victim: picks the position to give up when full; the oldest by default.
    """

    def __init__(self, limit: int, victim: Callable[[deque[T]], int] | None = None) -> None:
        self._items: deque[T] = deque()
        self._limit = limit
        self._victim = victim
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self.dropped = 0
        """How many items were given up because no reader took them in time."""

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Add an item; ``False`` if another one had to go for it. Ignored after the end."""
        if self._ended:
            return True
        fits = len(self._items) < self._limit
        if not fits:
            del self._items[0 if self._victim is None else self._victim(self._items)]
            self.dropped += 1
        self._items.append(item)
        self._wake()
        return fits

    def end(self, error: BaseException | None = None) -> None:
        """Let readers finish what is there; then they stop, or get ``error``. Idempotent."""
        if self._ended:
            return
        self._ended = True
        self._error = error
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __aiter__(self) -> Mailbox[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                # Woken and cancelled at once: the item is for the next reader.
                if waiter.done() and not waiter.cancelled() and self._items:
                    self._wake()
                raise
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self._items.popleft()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
