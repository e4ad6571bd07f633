"""One thread per transfer for blocking file work: the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Worker"]

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs functions one after the other in a thread of its own.

    Cancelling a caller does not stop a function that runs already. Because there is one thread,
    what :meth:`close` is given still runs after everything else: a descriptor is never closed
    under a running write.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="anyreach-file")

    def submit(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Starts ``function`` behind what was submitted before."""
        return asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))

    def close(self, last: Callable[[], T]) -> asyncio.Future[T]:
        """Starts ``last`` behind everything else and lets the thread end after it."""
        future = self.submit(last)
        self._executor.shutdown(wait=False)
        return future
