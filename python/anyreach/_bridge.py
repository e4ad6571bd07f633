"""Awaiting the Rust core from asyncio, one :class:`LoopBridge` per event loop.

The core is polled: a ``poll_*`` method answers at once, or returns ``None`` and later puts the
token it was given into the loop's bridge, whose descriptor wakes the loop. So an operation that
is ready costs one call and no trip through the loop, a hundred that become ready together cost
one wake-up, and a task that is cancelled while it waits leaves its result in the core.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from typing import TYPE_CHECKING, Final, TypeVar
from weakref import WeakSet, WeakValueDictionary

from anyreach import _core

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TURN_CREDIT", "LoopBridge", "current_bridge"]

T = TypeVar("T")

TURN_CREDIT: Final = 64
"""Ready operations one loop serves before it gets a turn. An operation that is ready does not
suspend its task, so a stream that is always ready would starve everything else. Bulk operations
pay one more for every 16 KiB, so a turn is about 1 MiB or well below a millisecond of calls."""


class LoopBridge:
    """Lets the tasks of one event loop await operations of the core.

    Not thread-safe, except that the core wakes it from any thread. Kept alive by its loop, which
    watches its descriptor; closing the loop ends it, and what was pending with it.

    Attributes:
        loop: the event loop.
        core: what ``poll_*`` methods are to be given.
        token: what ``poll_*`` methods are to be given with it.
        credit: ready operations left before the loop should get a turn; see :meth:`give_way`.
    """

    __slots__ = ("__weakref__", "_waiting", "core", "credit", "loop", "token")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self.core: Final = _core.Bridge()
        self.token = 0
        self.credit = TURN_CREDIT
        self._waiting: dict[int, asyncio.Future[None]] = {}
        descriptor = self.core.fileno()
        try:
            if descriptor < 0:
                raise NotImplementedError
            loop.add_reader(descriptor, self._drain)
        except NotImplementedError:
            _ThreadWatcher(self).start()

    async def wait(self, poll: Callable[..., T | None], *args: object) -> T:
        """The result of ``poll(*args, core, token)`` once it has one.

        Cancelling the wait takes nothing out of the core.
        """
        if self.credit <= 0:
            await self.give_way()
        result = poll(*args, self.core, self.token)
        if result is None:
            return await self.retry(poll, *args)
        self.credit -= 1
        return result

    async def retry(self, poll: Callable[..., T | None], *args: object) -> T:
        """As :meth:`wait`, right after a poll with the current token returned ``None``."""
        while True:
            await self._suspend()
            result = poll(*args, self.core, self.token)
            if result is not None:
                return result

    async def give_way(self) -> None:
        """Let the loop run what else is ready. Call it *before* a poll, never after: cancelling
        the task here must not cost it a result."""
        self.credit = TURN_CREDIT
        await asyncio.sleep(0)

    async def _suspend(self) -> None:
        token = self.token
        self.token = token + 1
        self.credit = TURN_CREDIT
        future = self.loop.create_future()
        self._waiting[token] = future
        try:
            await future
        finally:
            if self._waiting.pop(token, None) is not None:
                self.core.forget(token)

    def _drain(self) -> None:
        self.credit = TURN_CREDIT
        waiting = self._waiting
        for token in self.core.take():
            future = waiting.pop(token, None)
            if future is not None and not future.done():
                future.set_result(None)


def current_bridge() -> LoopBridge:
    """The bridge of the running event loop, made on first use.

    Raises:
        RuntimeError: no event loop is running in this thread.
    """
    loop = asyncio.get_running_loop()
    bridge = _bridges.get(id(loop))
    if bridge is None:
        bridge = _bridges[id(loop)] = LoopBridge(loop)
    return bridge


# By identity: a bridge keeps its loop alive, so while the entry exists no other loop can have
# that id. (A dictionary with weak loops as keys would keep every loop, for the same reason.)
_bridges: WeakValueDictionary[int, LoopBridge] = WeakValueDictionary()


class _ThreadWatcher(threading.Thread):
    """Wakes loops that cannot watch a descriptor: Windows' proactor, custom loops.

    Ends with its loop, or when the interpreter exits.
    """

    def __init__(self, bridge: LoopBridge) -> None:
        super().__init__(name="anyreach-bridge", daemon=True)
        self._bridge = bridge
        self._drained = threading.Event()
        self._stopped = False
        _watchers.add(self)

    def run(self) -> None:
        loop, core = self._bridge.loop, self._bridge.core
        while not self._stopped and not loop.is_closed():
            if not core.wait(_CHECK_SECONDS):
                continue
            self._drained.clear()
            try:
                loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # closed meanwhile
                return
            while not self._drained.wait(_CHECK_SECONDS):
                if self._stopped or loop.is_closed():
                    return

    def _drain(self) -> None:
        self._bridge._drain()
        self._drained.set()

    def stop(self) -> None:
        """End the thread and wait for it: one that returns from Rust after the interpreter was
        finalised would bring the process down."""
        self._stopped = True
        self._bridge.core.close()
        self._drained.set()
        if self.is_alive():
            self.join()


_CHECK_SECONDS: Final = 1.0
"""How often a watcher thread looks whether its loop was closed, which nobody tells it."""

_watchers: WeakSet[_ThreadWatcher] = WeakSet()


@atexit.register
def _stop_watchers() -> None:
    for watcher in list(_watchers):
        watcher.stop()


def _forget_parent() -> None:
    """Bridges of the parent process do not work in the child, and its threads are not there."""
    _bridges.clear()
    _watchers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
