"""A port of a router that leads to the node, as long as there is a NAT and a router that lends one.

Additive: nothing waits for it, and where no router answers nothing is told or logged above debug.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from anyreach._local import from_core
from anyreach.addresses import Scope
from anyreach.netcheck import PortMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyreach import _core
    from anyreach._flow import Waiter
    from anyreach.addresses import SocketAddress
    from anyreach.metrics import Recorder

__all__ = ["PortMapper", "behind_nat"]

logger = logging.getLogger(__name__)

Protocols: TypeAlias = Literal["pcp", "nat-pmp", "upnp"]

GIVE_BACK_SECONDS: Final = 1.0
"""How long closing a node waits for the router to take a mapping back: it answers in milliseconds.
One that does not keeps the mapping until it expires, which harms nobody."""


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def map_port(self) -> _core.PortMapping:
        """Ask the routers."""
        ...


class PortMapper:
    """Keeps a mapping while the node is behind a NAT.

    Args:
        core: the node's endpoint.
        wait: awaits a ``poll_*`` method of the core.
        enabled: whether the configuration allows it.
        changed: told when :attr:`addresses` are others than before.
        recorder: counts mappings that came, as ``("mapped", "reported")``, and those that were
            lost, as ``("mapped", "lost")``.
    """

    def __init__(
        self,
        core: Core,
        wait: Waiter,
        *,
        enabled: bool,
        changed: Callable[[], None],
        recorder: Recorder,
    ) -> None:
        self._core = core
        self._wait = wait
        self._enabled = enabled
        self._told = changed
        self._recorder = recorder
        self._needed = False
        self._external: SocketAddress | None = None
        self._protocol: Protocols | None = None
        self._error: str | None = None
        self._answered = False
        self._task: asyncio.Task[None] | None = None

    @property
    def addresses(self) -> tuple[SocketAddress, ...]:
        """Addresses of routers that lead to the node now."""
        return () if self._external is None else (self._external,)

    @property
    def report(self) -> PortMapping:
        """What came of it so far."""
        if not self._enabled:
            return PortMapping("off")
        if not self._needed:
            return PortMapping("not-needed")
        if self._external is not None:
            return PortMapping("mapped", str(self._external), self._protocol)
        return PortMapping("none" if self._answered else "asking", error=self._error)

    def found_nat(self) -> None:
        """There is a NAT: keep a mapping from now on."""
        if self._needed or not self._enabled:
            return
        self._needed = True
        self._task = asyncio.create_task(self._run(), name="anyreach-port-mapping")

    async def end(self) -> None:
        """Give the mapping back."""
        task = self.abandon()
        if task is not None:
            await asyncio.wait([task])

    def abandon(self) -> asyncio.Task[None] | None:
        """As :meth:`end` without waiting; what is about to end."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    async def _run(self) -> None:
        # The core asks again by itself: after a while, and when the network changes.
        with suppress(asyncio.CancelledError, OSError):
            mapping = self._core.map_port()
            try:
                await self._follow(mapping)
            finally:
                held = self._external is not None
                seen = mapping.changes
                mapping.close()
                self._take(None, None, None)
                if held:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(GIVE_BACK_SECONDS):
                            await self._wait(mapping.poll_change, seen)

    async def _follow(self, mapping: _core.PortMapping) -> None:
        while True:
            seen = mapping.changes  # before the rest, so that no change goes unnoticed
            external = mapping.external
            address = None if external is None else from_core(*external)
            if address is not None and not address.scope.dialable:
                address = None  # some routers answer 0.0.0.0 while they have no connection
            self._take(address, mapping.protocol, mapping.error)
            await self._wait(mapping.poll_change, seen)

    def _take(
        self, address: SocketAddress | None, protocol: Protocols | None, error: str | None
    ) -> None:
        self._protocol, self._error = protocol, error
        self._answered = address is not None or error is not None
        before, self._external = self._external, address
        if address == before:
            return
        if before is not None:
            logger.info("the port mapping at %s is gone", before)
            self._recorder.candidate("mapped", "lost")
        if address is not None:
            logger.info("%s leads here, by %s", address, protocol)
            self._recorder.candidate("mapped", "reported")
        self._told()


def behind_nat(external: Iterable[SocketAddress], host: Iterable[SocketAddress]) -> bool:
    """Whether what peers see shows a NAT that a router of this site may have.

    Args:
        external: addresses peers see the node at.
        host: addresses of this machine.

    IPv6 is left out: where it is translated, the routers of homes are not who does it.
    """
    own = {address.ip for address in host}
    return any(
        address.version == 4 and address.scope is not Scope.LOOPBACK and address.ip not in own
        for address in external
    )
