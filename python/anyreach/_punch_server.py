"""Punching at the end that was dialed: tells its addresses, and takes the steps it is asked for.

Probes on request of the peer are the core's, with its limits.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from anyreach import _core
from anyreach._local import from_core
from anyreach._punch_end import DEPENDENT, FEW_SECONDS, POOL, SPRAY, SPRAY_SECONDS, End, plain
from anyreach.addresses import Scope
from anyreach.errors import ConnectionLost
from anyreach.prediction import MAX_PREDICTED
from anyreach.rounds import BIRTHDAY_METHODS, ROUND_SPACING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyreach._punch_end import Kit
    from anyreach._punch_log import Entry
    from anyreach.addresses import SocketAddress

__all__ = ["Server"]

logger = logging.getLogger(__name__)

MAX_ANSWERED: Final = 4
"""Addresses in an answer; the others are candidates."""

POOL_SECONDS: Final = 20.0
REFRESH_SECONDS: Final = 4.0
"""How long a pool is kept for the peer's packets, and between two packets of each of its sockets:
less than any mapping lives."""


class Server(End):
    """The end of a connection that the peer dialed."""

    def __init__(self, kit: Kit, core: _core.Connection) -> None:
        super().__init__(kit, core)
        self._budget = kit.budget(core.peer_id)
        self._asked_at = -ROUND_SPACING
        self._entry: Entry | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self.tell()

    def end(self) -> list[asyncio.Task[None]]:
        """Stop; what is about to end."""
        if self._task is None or self._task.done():
            return []
        self._task.cancel()
        return [self._task]

    # What happens

    def news(self) -> None:
        """Addresses or NATs of either side changed."""
        self.tell()

    def changed(self) -> None:
        """The paths changed."""
        if self._entry is None:
            return
        path = next((path for path in self.core.paths() if path.method != "relayed"), None)
        if path is not None:
            self._entry.uses(self.outside()[:1], [from_core(*path.remote)])
            self._entry.end("direct", "it made a path")
            if self._entry.attempt.technique in BIRTHDAY_METHODS:
                self._budget.succeeded()
            self._entry = None

    def network_changed(self) -> None:
        """This host is somewhere else."""
        self.retell()

    def round(self, number: int) -> None:
        """The peer has begun a round: probes are on their way."""
        for ip, _ in () if self.core.reach is None else self.core.reach[0]:
            self.kit.contacts.add(from_core(ip, 0).ip)
        if self._entry is None or self._entry.attempt.technique != "predict":
            self._entry = self.log.begin("simple")
        self._entry.uses(self.own().addresses, (), number=number)
        self._entry.because("the peer began it")

    def opened(self, address: SocketAddress) -> None:
        """A packet of the peer came from there; the path is for the peer to open."""
        self.kit.contacts.add(address.ip)

    def prepare(
        self, number: int, method: str, addresses: Sequence[SocketAddress], count: int
    ) -> None:
        """The peer asks for a step; the latest question counts."""
        now = self.loop.time()
        soon = now < self._asked_at + ROUND_SPACING / 2
        if soon or (method != "predict" and not self._allows(addresses)):
            self.core.prepared(number, False, [])
            return
        self._asked_at = now
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(
            self._answer(number, method, addresses, count), name=f"anyreach-step {self.core.id}"
        )

    def _allows(self, addresses: Sequence[SocketAddress]) -> bool:
        """Whether a birthday attempt may be made towards these addresses, now."""
        outside = [a for a in addresses if a.scope is Scope.GLOBAL]
        return (
            self.kit.birthday and bool(outside) and self._budget.take(self.loop.time(), asked=True)
        )

    # Steps

    async def _answer(
        self, number: int, method: str, addresses: Sequence[SocketAddress], count: int
    ) -> None:
        try:
            match method:
                case "predict":
                    self._entry = self.log.begin("predict", "the peer asked for it")
                    await self._predict(number, addresses, count)
                case "pool":
                    self._entry = self.log.begin("pool", "no packet of the peer came in")
                    await self._pool(number, addresses[0], count)
                case "spray":
                    self._entry = self.log.begin("spray", "no port of the peer answered")
                    await self._spray(number, addresses[0], count)
                case _:
                    self.core.prepared(number, False, [])
        except (OSError, _core.DialFailed) as error:
            logger.debug("no %s for %s: %s", method, self.peer_id, error)
            if self._entry is not None:
                self._entry.end("refused", str(error))
            self.core.prepared(number, False, [])
        except ConnectionLost:
            pass

    async def _predict(self, number: int, addresses: Sequence[SocketAddress], count: int) -> None:
        """Say which ports our packets will come from, and have the peer told."""
        peer = self.peer_nat
        # See Client: one side alone has new sockets send, at once.
        alone = peer is not None and peer.mapping not in DEPENDENT
        towards = next(iter(addresses), None) if alone and self.is_dependent() else None
        if self.is_dependent():
            # Else from the measurement until we send it takes the answer, and the round.
            lead = 0.0 if alone else self.rtt
            predicted = await self.predict(4, lead, min(count, MAX_PREDICTED))
            if not predicted:
                self.core.prepared(number, False, [])
                return
            self.predicted = predicted
            self.tell()
        with self.few_sockets(towards) as few:
            known = self.predicted or self.outside()
            self.core.prepared(number, True, plain(known)[:MAX_ANSWERED])
            if few:
                await asyncio.sleep(FEW_SECONDS)

    async def _pool(self, number: int, address: SocketAddress, count: int) -> None:
        self.kit.contacts.add(address.ip)
        ((ip, port),) = plain([address])
        asked = min(count, POOL)
        pool = self.core.pool(ip, port, asked)
        if pool.size < asked and self._entry is not None:
            self._entry.because(f"only {pool.size} of {asked} sockets could be opened")
        try:
            self.core.prepared(number, True, plain(self.outside()[:1]))
            until = self.loop.time() + POOL_SECONDS
            while not pool.adopted and self.loop.time() < until:
                await asyncio.sleep(REFRESH_SECONDS)
                pool.refresh()
        finally:
            pool.close()

    async def _spray(self, number: int, address: SocketAddress, count: int) -> None:
        self.kit.contacts.add(address.ip)
        ((ip, _),) = plain([address])
        asked = min(count, SPRAY)
        spray = self.core.spray(ip, asked, SPRAY_SECONDS)
        try:
            self.core.prepared(number, True, plain(self.outside()[:1]))
            sent, hit = await self.kit.wait(spray.poll)
            if sent < asked and not hit and self._entry is not None:
                self._entry.because(f"only {sent} of {asked} packets were allowed, none answered")
        finally:
            spray.cancel()
