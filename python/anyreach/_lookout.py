"""After a direct path has failed: where is this node now?

A NAT that got another address, or forgot its mappings, tells nobody. Peers see it with the next
packet they get, which may be a keep-alive many seconds away, and report it (OBSERVED_ADDRESS). So
those that see this node directly are sent something at once.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from anyreach._paths import has_direct
from anyreach.errors import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach import _core
    from anyreach._flow import Waiter

__all__ = ["Lookout"]

MAX_ASKED: Final = 4
"""Peers asked at a time: two agree, and two may have been lost in the same outage."""

ASK_PAUSE: Final = 1.0
"""Least seconds between two times: a line that flaps must not make its owner chatter."""


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def connections(self) -> list[_core.Connection]:
        """The established connections."""
        ...


class Lookout:
    """Has peers look at one node.

    Args:
        core: the node's endpoint.
        wait: awaits a ``poll_*`` method of the core.
    """

    def __init__(self, core: Core, wait: Waiter) -> None:
        self._core = core
        self._wait = wait
        self._failed = asyncio.Event()
        self._by: int | None = None

    def failed_over(self, connection: _core.Connection) -> None:
        """A path of ``connection`` failed."""
        self._by = connection.id
        self._failed.set()

    async def run(self) -> None:
        """Ask when there is reason to, until cancelled."""
        while True:
            await self._failed.wait()
            self._failed.clear()
            async with asyncio.TaskGroup() as tasks:
                for peer in islice(self._observers(), MAX_ASKED):
                    tasks.create_task(self._ask(peer))
            await asyncio.sleep(ASK_PAUSE)

    def _observers(self) -> Iterable[_core.Connection]:
        others = [c for c in self._core.connections() if c.id != self._by and has_direct(c)]
        # Those that were dialed are known peers as a rule, and not behind NATs of their own.
        return sorted(others, key=lambda connection: not connection.outbound)

    async def _ask(self, peer: _core.Connection) -> None:
        try:
            await self._wait(peer.poll_answers)
        except ConnectionLost:
            return
