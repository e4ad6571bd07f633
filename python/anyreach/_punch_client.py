"""Punching at the end that dialed: pairs addresses, begins rounds, and opens the paths.

What to do and when is said by :mod:`anyreach.punching` and :mod:`anyreach.rounds`; what a round
consists of is in :mod:`anyreach._punch_steps`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from anyreach import _core
from anyreach._local import from_core
from anyreach._paths import current, has_direct
from anyreach._punch_end import DEPENDENT, plain
from anyreach._punch_steps import SETTLE, NoWayError, RefusedError, Steps, cover
from anyreach.addresses import Scope
from anyreach.candidates import Candidate, CandidateKind, PairingResult
from anyreach.errors import ConnectionLost
from anyreach.events import Punch
from anyreach.punching import Plan, could_improve, plan
from anyreach.rounds import Round, Schedule
from anyreach.trickling import for_round

if TYPE_CHECKING:
    from anyreach._punch_end import Kit
    from anyreach._punch_log import Entry
    from anyreach.addresses import SocketAddress
    from anyreach.rounds import Outcome, Tried

__all__ = ["Client"]

logger = logging.getLogger(__name__)

PATH_SECONDS: Final = 4.0
"""How long a path may take whose address is proved: one repetition of its first packet."""

MAX_OPENING: Final = 2
"""Paths opened at once to addresses that have answered: a birthday attempt may hit several."""

DOUBT_SECONDS: Final = 0.3
"""Most seconds to wait for an experiment before the first round."""


class Client(Steps):
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
        self._begun = self.loop.time()
        self._direct = False
        self._moving = False  # candidates change because we had them changed
        self._opening: dict[SocketAddress, asyncio.Task[None]] = {}
        self._counted: set[SocketAddress] = set()
        self._entry: Entry | None = None
        self._last: Tried | None = None
        self._step: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
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
        self.arrived.set()

    def changed(self) -> None:
        """The paths changed."""
        direct = has_direct(self.core)
        now = self.loop.time()
        if direct and not self._direct:
            if self._schedule.running is None:
                self._account_for_luck()
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
                    await self.spray(entry)
                case "spray":
                    await self.pool(entry)
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
        await self.round(cover(pairs), action, entry)

    async def _predict(self, action: Round, entry: Entry) -> None:
        self._moving = True
        try:
            await self.predict_round(action, entry)
        finally:
            self._take_in()
            self._moving = False

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
        entry.end(tried.outcome, "it made a path" if tried.outcome == "direct" else None)
        self._tell_of(entry, tried.seconds)

    def _account_for_luck(self) -> None:
        """Note a punched path that came up outside of any round."""
        path = next((p for p in self.core.paths() if p.method == "punched"), None)
        if path is None:
            return
        seconds = self.loop.time() - self._begun
        entry = self.log.begin("simple", ago=seconds)
        entry.uses(self.outside()[:1], [from_core(*path.remote)])
        entry.end("direct", "the peer was met without a round: it answered what we sent before")
        self.kit.recorder.punch_round("direct")
        self._tell_of(entry, seconds)

    def _tell_of(self, entry: Entry, seconds: float) -> None:
        """Tell of an attempt that has ended."""
        attempt = entry.attempt
        assert attempt.outcome is not None
        path = next((p for p in self.core.paths() if p.method != "relayed"), None)
        self._count_candidates(entry)
        self.kit.emit(
            Punch(
                peer_id=self.peer_id,
                method=attempt.technique,
                result=attempt.outcome,
                ms=seconds * 1000,
                remote=str(from_core(*path.remote))
                if path and attempt.outcome == "direct"
                else None,
                reason=attempt.reason,
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
