"""Punching at the end that dialed: pairs addresses, begins rounds, and opens the paths.

What to do and when is said by :mod:`anyreach.punching` and :mod:`anyreach.rounds`; here it is done.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from anyreach import _core
from anyreach._local import from_core
from anyreach._paths import current, has_direct
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
from anyreach.candidates import Candidate, CandidateKind, PairingResult
from anyreach.errors import ConnectionLost
from anyreach.events import Punch
from anyreach.prediction import MAX_PREDICTED
from anyreach.punching import Plan, could_improve, plan
from anyreach.rounds import USUAL_TTL, Round, Schedule
from anyreach.trickling import for_round

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anyreach._punch_end import Kit
    from anyreach._punch_log import Entry
    from anyreach.addresses import SocketAddress
    from anyreach.rounds import Outcome, Tried

__all__ = ["Client"]

logger = logging.getLogger(__name__)

MAX_ROUND_PAIRS: Final = 32
"""Pairs of one round: each of the candidates a side may have, once."""

SETTLE: Final = 0.005
"""Seconds to wait for what else comes in the same flight, before a round begins."""

ANSWER_ROUND_TRIPS: Final = 4
ANSWER_SECONDS: Final = 1.5
"""How long the peer has for a step: some round trips, and the time it may take to measure."""

PATH_SECONDS: Final = 4.0
"""How long a path may take whose address is proved: one repetition of its first packet."""

MAX_OPENING: Final = 2
"""Paths opened at once to addresses that have answered: a birthday attempt may hit several."""

REFRESH_SECONDS: Final = 4.0
"""Between two packets of each socket of a pool: shorter than any mapping lives."""

DOUBT_SECONDS: Final = 0.3
"""Most seconds to wait for an experiment before the first round."""

STRAY: Final = 0.05
"""Seconds beyond a round trip that what the peer has sent at one time arrives within."""

_Pairs = tuple[tuple["SocketAddress", "SocketAddress"], ...]


class RefusedError(Exception):
    """The peer, or a limit of this node, does not allow what is wanted now."""


class NoWayError(Exception):
    """It cannot be done for lack of something; the message says of what."""


class Client(End):
    """The end of a connection that this node dialed. Works from :meth:`start` to :meth:`end`.

    Attributes:
        plan: what the NATs allow, as far as they are known.
        settled: set while a direct path is up, or when none can come.
    """

    def __init__(self, kit: Kit, core: _core.Connection) -> None:
        super().__init__(kit, core)
        self.plan: Plan | None = None
        self.settled = asyncio.Event()
        self.pairing = PairingResult((), ())
        self._schedule = Schedule(kit.budget(core.peer_id))
        self._news = asyncio.Event()
        self._arrived = asyncio.Event()
        self._direct = False
        self._moving = False  # candidates change because we had them changed
        self._answers: dict[int, asyncio.Future[list[SocketAddress]]] = {}
        self._opening: dict[SocketAddress, asyncio.Task[None]] = {}
        self._counted: set[SocketAddress] = set()
        self._entry: Entry | None = None
        self._last: Tried | None = None
        self._step: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        if self.core.punch_stats()["rounds"]:
            self._schedule.began_early(self.loop.time())
            self._entry = self.log.begin("simple")
            self._entry.because("no answer from any address of the peer")
        self.changed()
        self._task = asyncio.create_task(self._run(), name=f"anyreach-punch {self.core.id}")

    def end(self) -> list[asyncio.Task[None]]:
        """Stop; what is about to end."""
        self.settled.set()
        tasks = [self._task, self._step, *self._opening.values()]
        running = [task for task in tasks if task is not None and not task.done()]
        for task in running:
            task.cancel()
        return running

    # What happens

    def news(self) -> None:
        """Addresses or NATs of either side changed."""
        self._news.set()
        self._arrived.set()

    def changed(self) -> None:
        """The paths changed."""
        direct = has_direct(self.core)
        now = self.loop.time()
        if direct and not self._direct:
            self._schedule.direct_up(now, improving=self._can_improve())
            self.settled.set()
        elif self._direct and not direct:
            self._schedule.direct_lost(now)
            self.settled.clear()
        if direct is not self._direct:
            self._direct = direct
            self._account()
            self._news.set()

    def network_changed(self) -> None:
        """This host is somewhere else."""
        self._schedule.network_changed(self.loop.time())
        self._account()
        self.retell()
        self._news.set()

    def prepared(self, number: int, ok: bool, addresses: Iterable[SocketAddress]) -> None:
        """The peer has answered."""
        future = self._answers.get(number)
        if future is not None and not future.done():
            if ok:
                future.set_result(list(addresses))
            else:
                future.set_exception(RefusedError("the peer refused"))

    def opened(self, address: SocketAddress) -> None:
        """A packet of the peer came from there: it can be reached there."""
        self.kit.contacts.add(address.ip)
        busy = len(self._opening) >= MAX_OPENING or address in self._opening
        if busy or self._has_path(address) or (self._direct and not self._can_improve()):
            return
        task = asyncio.create_task(self._open(address), name=f"anyreach-open {address}")
        self._opening[address] = task
        task.add_done_callback(lambda _: self._opening.pop(address, None))

    # The loop

    async def _run(self) -> None:
        await self._doubt()
        while self.core.close_reason is None:
            self._news.clear()
            self._take_in()
            action = self._schedule.next(self.loop.time(), self.rtt)
            self._account()
            if isinstance(action, Round):
                await self._begin(action)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout_at(action.until):
                    await self._news.wait()
                await asyncio.sleep(SETTLE)

    async def _doubt(self) -> None:
        """Wait for an experiment under way that decides what the first round is to be: one that is
        not the right one would hold up the next by a second."""
        nat, peer = self.own_nat, self.peer_nat
        asked = nat.mapping == "unknown" and nat.ports in ("sequential", "random")
        if peer is not None and peer.mapping in DEPENDENT:
            asked = asked or nat.filtering == "unknown"
        if asked:
            with suppress(TimeoutError):
                async with asyncio.timeout(DOUBT_SECONDS):
                    await self.kit.probe.idle.wait()

    async def _begin(self, action: Round) -> None:
        if self._step is not None:
            self._step.cancel()
            await asyncio.wait([self._step])
        if self.predicted and action.method != "predict":
            self.predicted = ()  # others have taken those ports by now
            self._moving = True
            self._take_in()
            self._moving = False
        self._entry = self.log.begin(action.method)
        self._step = asyncio.create_task(
            self._carry_out(action, self._entry), name=f"anyreach-round {self.core.id}"
        )

    def _take_in(self) -> None:
        """Tell the schedule what there is by now."""
        self.tell()
        now = self.loop.time()
        before, self.pairing = self._addresses(), self._pair()
        if self._addresses() != before:
            for outcome, count in self.pairing.counts().items():
                self.kit.recorder.candidate_pair(outcome, count)
            if not self._moving:
                usable, improving = bool(self.pairing.kept), self._can_improve()
                self._schedule.candidates(now, usable=usable, improving=improving)
            if self._schedule.is_early:
                self._join_early()
        self.plan = plan(
            self.own_nat,
            self.peer_nat,
            client=True,
            birthday=self.kit.birthday,
            elsewhere=self._has_elsewhere(),
        )
        self._schedule.planned(self.plan, now)
        if not self.plan.certain:
            self.kit.probe.want()
        elif not self.plan.methods:
            self.settled.set()

    def _join_early(self) -> None:
        """The peer probes us already: let it in, from the addresses that are known by now."""
        own = dict.fromkeys(pair.local.address for pair in self.pairing.kept)
        remotes = dict.fromkeys(pair.remote.address for pair in self.pairing.kept)
        for address in remotes:
            self.kit.contacts.add(address.ip)
        if self._entry is not None:
            self._entry.uses(own, remotes, number=1)
        self.core.openers(plain(sorted(remotes, key=lambda a: a.sort_key)), USUAL_TTL)

    def _pair(self) -> PairingResult:
        remote = [
            Candidate.of(
                address,
                CandidateKind.OBSERVED if address.scope is Scope.GLOBAL else CandidateKind.HOST,
                index,
            )
            for index, address in enumerate(self.remotes())
        ]
        local = self.own().candidates
        return for_round(self.kit.policy.pair(local, remote, controlling=True))

    def remotes(self) -> list[SocketAddress]:
        """What the peer has told."""
        return [from_core(*address) for address in self.core.peer_candidates]

    def _addresses(self) -> frozenset[tuple[SocketAddress, SocketAddress]]:
        return frozenset((p.local.address, p.remote.address) for p in self.pairing.kept)

    def _has_elsewhere(self) -> bool:
        """Whether there are pairs the reports about NATs do not speak of."""
        mapped = set(self.kit.local.mapped())
        return any(
            pair.remote.address.version == 6
            or pair.remote.address.scope is not Scope.GLOBAL
            or pair.local.address in mapped
            for pair in self.pairing.kept
        )

    def _can_improve(self) -> bool:
        path = current(self.core.paths())
        if path is None or path.method == "relayed":
            return False
        return could_improve(from_core(*path.remote), self._addresses())

    def _has_path(self, address: SocketAddress) -> bool:
        return any(
            path.method != "relayed" and from_core(*path.remote) == address
            for path in self.core.paths()
        )

    # Rounds

    async def _carry_out(self, action: Round, entry: Entry) -> None:
        outcome: Outcome
        try:
            match action.method:
                case "simple":
                    await self._simple(action, entry)
                case "predict":
                    await self._predict(action, entry)
                case "pool":
                    await self._spray(entry)
                case "spray":
                    await self._pool(entry)
            return  # its end is seen by its path, or by the time
        except ConnectionLost:
            return
        except RefusedError as error:
            outcome, reason = "refused", str(error)
        except _core.DialFailed as error:
            outcome = "refused" if error.args[0] == "limit" else "failed"
            reason = str(error.args[1])
        except (NoWayError, OSError) as error:
            outcome, reason = "failed", str(error)
        if entry is self._entry:
            entry.because(reason)
            self._schedule.finished(outcome, self.loop.time())
            self._account()
            self._news.set()

    async def _simple(self, action: Round, entry: Entry) -> None:
        pairs = tuple((p.local.address, p.remote.address) for p in self.pairing.kept)
        await self._round(cover(pairs), action, entry)

    async def _round(self, pairs: _Pairs, action: Round, entry: Entry) -> None:
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

    async def _predict(self, action: Round, entry: Entry) -> None:
        """A round to and from the ports the NATs will use next; for IPv4, which is translated.

        If one side alone has to be predicted, new sockets of it send: towards the one address of
        the other there may be a mapping already, made when nobody looked. The usual socket will do
        where every address is new.
        """
        peer = self.peer_nat
        asks = peer is None or peer.mapping in DEPENDENT
        self._moving = True
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
                await self._round(matched(own, remote), action, entry)
                if few:
                    await asyncio.sleep(FEW_SECONDS)
        finally:
            measuring.cancel()
            self._take_in()
            self._moving = False

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
                    self._arrived.clear()
                    await self._arrived.wait()
                await asyncio.sleep(SETTLE)

    def _outside_of_peer(self) -> list[SocketAddress]:
        remotes = self.remotes()
        return [a for a in remotes if a.version == 4 and a.scope is Scope.GLOBAL]

    async def _spray(self, entry: Entry) -> None:
        """The peer opens a pool towards us; we try ports of its address."""
        targets = await self._ask("pool", self._one(self.outside()), POOL)
        address = next(iter(targets), None) or self._one(self._outside_of_peer())[0]
        entry.uses(self.outside()[:1], [address])
        entry.because(f"none of {SPRAY} random ports answered")
        self.kit.contacts.add(address.ip)
        (ip,) = {host for host, _ in plain([address])}
        spray = self.core.spray(ip, SPRAY, SPRAY_SECONDS)
        try:
            sent, hit = await self.kit.wait(spray.poll)
            if sent < SPRAY and not hit:
                entry.because(f"only {sent} packets were allowed, and none was answered")
        finally:
            spray.cancel()

    async def _pool(self, entry: Entry) -> None:
        """We open a pool towards the peer; it tries ports of our address."""
        address = self._one(self._outside_of_peer())[0]
        entry.uses(self.outside()[:1], [address])
        entry.because(f"none of {SPRAY} random ports of ours was hit")
        self.kit.contacts.add(address.ip)
        ((ip, port),) = plain([address])
        pool = self.core.pool(ip, port, POOL)
        try:
            await self._ask("spray", self._one(self.outside()), SPRAY)
            while True:
                await asyncio.sleep(REFRESH_SECONDS)
                pool.refresh()
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

    async def _open(self, address: SocketAddress) -> None:
        ((ip, port),) = plain([address]) or [("", 0)]
        if not ip or self.core.close_reason is not None:
            return
        attempt = self.kit.core.open_path(
            self.core,
            ip,
            port,
            PATH_SECONDS,
            via=None,
            relayed=False,
            standby=False,
            proved=True,
        )
        try:
            await self.kit.wait(attempt.poll)
        except _core.DialFailed as error:
            logger.debug("no path to %s, which had answered: %s", address, error.args[1])
        except ConnectionLost:
            return
        self.changed()

    # Accounts

    def _account(self) -> None:
        """Note the round that has ended since the last call, if one has."""
        history = self._schedule.history
        if not history or history[-1] is self._last:
            return
        tried = self._last = history[-1]
        entry, self._entry = self._entry, None
        if self._step is not None:
            self._step.cancel()  # closes what is not used
        self.kit.recorder.punch_round(tried.outcome)
        if entry is None:
            return
        path = next((p for p in self.core.paths() if p.method != "relayed"), None)
        entry.end(tried.outcome, "it made a path" if tried.outcome == "direct" else None)
        self._count_candidates(entry)
        self.kit.emit(
            Punch(
                peer_id=self.peer_id,
                method=tried.method,
                result=tried.outcome,
                ms=tried.seconds * 1000,
                remote=str(from_core(*path.remote)) if path and tried.outcome == "direct" else None,
                reason=entry.attempt.reason,
            )
        )

    def _count_candidates(self, entry: Entry) -> None:
        """Count what became of the addresses the peer told, each once."""
        used = {str(from_core(*p.remote)) for p in self.core.paths() if p.method != "relayed"}
        for address in self.remotes():
            if address in self._counted or str(address) not in entry.attempt.remote:
                continue
            self._counted.add(address)
            outcome = "connected" if str(address) in used else "failed"
            self.kit.recorder.candidate("peer", outcome)


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
