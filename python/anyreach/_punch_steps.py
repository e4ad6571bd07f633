"""What rounds of punching consist of, at the end that dialed.

When to begin one, and which, is decided by :mod:`anyreach._punch_client`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from anyreach._local import from_core
from anyreach._punch_end import (
    DEPENDENT,
    FEW_SECONDS,
    POOL,
    SPRAY,
    SPRAY_SECONDS,
    End,
    plain,
)
from anyreach.addresses import Scope
from anyreach.prediction import MAX_PREDICTED
from anyreach.rounds import USUAL_TTL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anyreach import _core
    from anyreach._punch_end import Kit
    from anyreach._punch_log import Entry
    from anyreach.addresses import SocketAddress
    from anyreach.rounds import Round

__all__ = ["SETTLE", "NoWayError", "RefusedError", "Steps", "cover", "matched"]

MAX_ROUND_PAIRS: Final = 32
"""Pairs of one round: each of the candidates a side may have, once."""

ANSWER_ROUND_TRIPS: Final = 4
ANSWER_SECONDS: Final = 1.5
"""How long the peer has for a step: some round trips, and the time it may take to measure."""

POOL_SECONDS: Final = 6.0
"""How long a pool waits to be hit: what the peer's packets take, some seconds more for a slow line,
and no more, as the next attempt waits for the end of this one."""

REFRESH_SECONDS: Final = 3.0
"""Between two packets of each socket of a pool: shorter than any mapping lives."""

STRAY: Final = 0.05
"""Seconds beyond a round trip that what the peer has sent at one time arrives within."""

SETTLE: Final = 0.005
"""Seconds to wait for what else comes in the same flight."""

_Pairs = tuple[tuple["SocketAddress", "SocketAddress"], ...]


class RefusedError(Exception):
    """The peer, or a limit of this node, does not allow what is wanted now."""


class NoWayError(Exception):
    """It cannot be done for lack of something; the message says of what."""


class Steps(End):
    """The end of a connection that this node dialed, as far as one round goes.

    Attributes:
        arrived: set when the peer has told addresses.
    """

    def __init__(self, kit: Kit, core: _core.Connection) -> None:
        super().__init__(kit, core)
        self.arrived = asyncio.Event()
        self._answers: dict[int, asyncio.Future[list[SocketAddress]]] = {}

    def prepared(self, number: int, ok: bool, addresses: Iterable[SocketAddress]) -> None:
        """The peer has answered."""
        future = self._answers.get(number)
        if future is not None and not future.done():
            if ok:
                future.set_result(list(addresses))
            else:
                future.set_exception(RefusedError("the peer refused"))

    def remotes(self) -> list[SocketAddress]:
        """What the peer has told."""
        return [from_core(*address) for address in self.core.peer_candidates]

    async def round(self, pairs: _Pairs, action: Round, entry: Entry) -> None:
        """Ask the peer to probe, and probe; more openers later, where they are wanted."""
        if not pairs:
            raise NoWayError("no address of ours goes with one of the peer")
        own = dict.fromkeys(local for local, _ in pairs)
        remotes = dict.fromkeys(remote for _, remote in pairs)
        for address in remotes:
            self.kit.contacts.add(address.ip)
        begun = self.loop.time()
        both = zip(
            plain(local for local, _ in pairs), plain(remote for _, remote in pairs), strict=True
        )
        ttl = action.opener_ttl
        if action.crossed:
            order = sorted(remotes, key=lambda a: a.sort_key, reverse=True)
            self.core.openers(plain(order), ttl)
            ttl = 0
        number = self.core.start_round(list(both), opener_ttl=ttl, hold=action.hold)
        entry.uses(own, remotes, number=number)
        entry.because("no answer from any address of the peer")
        for after in action.again:
            await asyncio.sleep(begun + after - self.loop.time())
            self.core.openers(plain(sorted(remotes, key=lambda a: a.sort_key)), 255)

    async def predict_round(self, action: Round, entry: Entry) -> None:
        """A round to and from the ports the NATs will use next; for IPv4, which is translated.

        If one side alone has to be predicted, new sockets of it send: towards the one address of
        the other there may be a mapping already, made when nobody looked. The usual socket will do
        where every address is new.
        """
        peer = self.peer_nat
        asks = peer is None or peer.mapping in DEPENDENT
        measuring = asyncio.create_task(self._measure(), name=f"anyreach-measure {self.core.id}")
        try:
            remote = self._outside_of_peer()
            if asks:  # at the same time: whatever is measured is getting older
                announced = await self._ask("predict", self.outside()[:1], MAX_PREDICTED)
                await self._announced(announced)
                ips = {address.ip for address in announced}
                remote = [a for a in self._outside_of_peer() if a.ip in ips] or remote
            own = await measuring
            remote.sort(key=lambda address: address.sort_key)
            if asks and not self.is_dependent():
                # They must get there: the peer's sockets have nobody else to answer.
                action = replace(action, opener_ttl=USUAL_TTL, hold=0.0)
            with self.few_sockets(None if asks else self._one(remote)[0]) as few:
                if few:
                    action = replace(action, opener_ttl=0, hold=0.0)
                await self.round(matched(own, remote), action, entry)
                if few:
                    await asyncio.sleep(FEW_SECONDS)
        finally:
            measuring.cancel()

    async def _measure(self) -> Sequence[SocketAddress]:
        """Where our packets will come from."""
        if not self.is_dependent():
            return self.outside()[:1]
        own = await self.predict(4, 0.0, MAX_PREDICTED)
        if not own:
            raise NoWayError("our NAT did not show how it chooses ports")
        self.predicted = own
        self.tell()
        return own

    async def _announced(self, announced: Iterable[SocketAddress]) -> None:
        """Wait until the addresses of an answer are candidates, which come by another way."""
        wanted = set(announced)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rtt + STRAY):
                while not wanted <= set(self.remotes()):
                    self.arrived.clear()
                    await self.arrived.wait()
                await asyncio.sleep(SETTLE)

    def _outside_of_peer(self) -> list[SocketAddress]:
        remotes = self.remotes()
        return [a for a in remotes if a.version == 4 and a.scope is Scope.GLOBAL]

    async def spray(self, entry: Entry) -> None:
        """The peer opens a pool towards us; we try ports of its address."""
        targets = await self._ask("pool", self._one(self.outside()), POOL)
        address = next(iter(targets), None) or self._one(self._outside_of_peer())[0]
        entry.uses(self.outside()[:1], [address])
        self.kit.contacts.add(address.ip)
        (ip,) = {host for host, _ in plain([address])}
        spray = self.core.spray(ip, SPRAY, SPRAY_SECONDS)
        try:
            sent, hit = await self.kit.wait(spray.poll)
            if not hit:
                raise NoWayError(
                    f"none of {SPRAY} random ports answered"
                    if sent == SPRAY
                    else f"only {sent} packets were allowed, and none was answered"
                )
        finally:
            spray.cancel()

    async def pool(self, entry: Entry) -> None:
        """We open a pool towards the peer; it tries ports of our address."""
        address = self._one(self._outside_of_peer())[0]
        entry.uses(self.outside()[:1], [address])
        why = f"none of {SPRAY} random ports of ours was hit"
        self.kit.contacts.add(address.ip)
        ((ip, port),) = plain([address])
        pool = self.core.pool(ip, port, POOL)
        if pool.size < POOL:
            why = f"only {pool.size} of {POOL} sockets could be opened, and none was hit"
        try:
            await self._ask("spray", self._one(self.outside()), SPRAY)
            until = self.loop.time() + POOL_SECONDS
            while pool.adopted or self.loop.time() < until:
                await asyncio.sleep(REFRESH_SECONDS)
                pool.refresh()
            raise NoWayError(why)
        finally:
            pool.close()

    def _one(self, addresses: Sequence[SocketAddress]) -> list[SocketAddress]:
        if not addresses:
            raise NoWayError("no IPv4 address of one side is known from outside")
        return [addresses[0]]

    async def _ask(
        self, method: str, addresses: Iterable[SocketAddress], count: int
    ) -> list[SocketAddress]:
        """Have the peer take a step; the addresses it answers with.

        Raises:
            RefusedError: it does not want to, or does not answer.
        """
        number = self.core.prepare(method, plain(addresses), count)
        future: asyncio.Future[list[SocketAddress]] = self.loop.create_future()
        self._answers[number] = future
        try:
            async with asyncio.timeout(ANSWER_ROUND_TRIPS * self.rtt + ANSWER_SECONDS):
                return await future
        except TimeoutError:
            raise RefusedError("the peer did not answer") from None
        finally:
            del self._answers[number]


def cover(pairs: _Pairs) -> _Pairs:
    """As few pairs as have every address of both sides, best first."""
    own: set[SocketAddress] = set()
    remotes: set[SocketAddress] = set()
    kept = []
    for local, remote in pairs:
        if local not in own or remote not in remotes:
            own.add(local)
            remotes.add(remote)
            kept.append((local, remote))
    return tuple(kept[:MAX_ROUND_PAIRS])


def matched(own: Sequence[SocketAddress], remote: Sequence[SocketAddress]) -> _Pairs:
    """The i-th of one side with the i-th of the other; the shorter list from the start again."""
    if not own or not remote:
        return ()
    count = min(max(len(own), len(remote)), MAX_ROUND_PAIRS)
    return tuple((own[i % len(own)], remote[i % len(remote)]) for i in range(count))
