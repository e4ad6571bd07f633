"""One race over the addresses of one peer, from names to a connection or an explained failure.

Here the pure policy (:mod:`anyreach.candidates`, :mod:`anyreach.happy_eyeballs`) meets the
resolver, the clock and the core.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from anyreach import _core
from anyreach._attempts import NO_ANSWER, AttemptLog, Record
from anyreach._local import from_core, to_core
from anyreach._paths import current
from anyreach._way import MAX_RELAYED_WAYS, Way
from anyreach.addresses import IpMode, SocketAddress
from anyreach.candidates import MAX_CANDIDATES, Candidate, CandidateKind, DropReason
from anyreach.happy_eyeballs import Exhausted, Race, Start, Wait, attempt_delay_after
from anyreach.resolver import ResolutionError, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from anyreach.addresses import HostPort
    from anyreach.dialer import Dialer
    from anyreach.errors import ConnectError
    from anyreach.peer import PeerAddress

__all__ = ["Endpoint", "Flow", "Waiter"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

PRIMING_TTL: Final = 2
"""Routers that packets pass which are to open our own NAT alone: one at home, and none beyond."""

_NAMED: Final = frozenset({"given", "dns"})
"""Sources of addresses the caller vouches for: somebody else there is worth an error of its own."""

_SILENCE: Final = frozenset({None, "handshake-timeout", "unreachable"})
"""What may be the network's doing, and not that of somebody who answered."""


class Endpoint(Protocol):
    """What a dialer needs of :class:`anyreach._core.Endpoint`."""

    @property
    def ip_mode(self) -> str:
        """``"dual"``, ``"v4"`` or ``"v6"``."""
        ...

    def dial(
        self,
        ip: str,
        port: int,
        peer_id: bytes | None,
        timeout: float,
        *,
        via: _core.Tunnel | None = None,
        relayed: bool = False,
    ) -> _core.Dial:
        """Start an attempt."""
        ...

    def prime(self, addresses: Sequence[tuple[str, int]], ttl: int) -> int:
        """Open our own NATs for these addresses."""
        ...

    def connection(self, peer_id: bytes) -> _core.Connection | None:
        """The established connection to a peer."""
        ...


class Waiter(Protocol):
    """What a dialer needs of :class:`anyreach._bridge.LoopBridge`."""

    async def __call__(self, poll: Callable[..., T | None], *args: object) -> T:
        """The result of ``poll`` once it has one."""
        ...


class Flow:
    """The shared work of all callers that want the same peer.

    A connection that is there already is the first attempt of the race: it wins as soon as the
    peer answers on it, and until then the others wait their turn.

    Args:
        dialer: what it works for.
        peer: who is wanted.
        existing: a connection to the peer that may be dead.

    Attributes:
        peer: who is wanted, as the first caller said it.
        race: the Happy Eyeballs state.
        log: what was tried.
        straight: whether the peer is dialed at its own addresses.
        task: ends with the connection, or with :meth:`failure`.
        waiters: callers that wait for it, kept by the dialer.
    """

    def __init__(
        self, dialer: Dialer, peer: PeerAddress, existing: _core.Connection | None = None
    ) -> None:
        self._dialer = dialer
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._mode = IpMode(dialer.endpoint.ip_mode)
        self.log = AttemptLog(self._loop.time)
        self._sources: dict[SocketAddress, str] = {}
        self._outcomes: dict[SocketAddress, str] = {}
        self._hosts: set[HostPort] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self._lookers: set[asyncio.Task[None]] = set()
        self._ways: dict[Way, asyncio.Task[None]] = {}
        self._primed: set[SocketAddress] = set()
        # Ways an attempt is under way on.
        self._dialing: set[Way] = set()
        self._usable: dict[SocketAddress, None] = {}
        # What direct attempts ended with.
        self._answers: dict[SocketAddress, str] = {}
        self._searched = False
        self.straight = False
        self._changed = asyncio.Event()
        self._asking = False
        # Addresses that wait for the answer on the existing connection, and until when.
        self._held: list[tuple[tuple[HostPort, ...], str]] = []
        self._held_until = -math.inf
        self._connection: _core.Connection | None = None
        self._winner: _core.Dial | None = None
        self._delivered = False
        self._error: Exception | None = None
        self._over = False
        self.peer = peer
        self.waiters = 0
        self.race = Race(attempt_delay=dialer.attempt_delay, rtts=dialer.book.rtts)
        if existing is not None:
            self._ask(existing)
        self.task = asyncio.create_task(self._run(), name=f"anyreach-connect {peer}")

    @property
    def searches(self) -> bool:
        """Whether other peers are asked where the wanted one is."""
        return self._searched

    @property
    def settled(self) -> bool:
        """Whether there is a connection, which :attr:`task` is about to return."""
        return self._connection is not None and self._error is None

    def elapsed(self) -> float:
        """Seconds since the first caller asked."""
        return self._loop.time() - self._started

    def go_straight(self) -> None:
        """Dial the peer at its own addresses, which nothing does before."""
        if not self.straight:
            self.straight = True
            self.race.add(self._usable)
            self._changed.set()

    def add(self, hosts: Iterable[HostPort], source: str) -> None:
        """Try these as well; ``source`` says where literal addresses come from."""
        if self._loop.time() < self._held_until:
            self._held.append((tuple(hosts), source))
            return
        for host in hosts:
            if host in self._hosts:
                continue
            self._hosts.add(host)
            if host.address is not None:
                self._admit((host.address,), source)
            else:
                self.look(self._resolve(host), f"anyreach-resolve {host}")
            if source == "given" and self._dialer.ways is not None:
                self.look(self._dialer.ways.detour(self, host), f"anyreach-detour {host}")
        self._changed.set()

    def search(self) -> None:
        """Let other peers say where the wanted one is, and relays carry packets to it."""
        if self._dialer.ways is not None and not self._searched:
            self._searched = True
            self.look(self._dialer.ways.search(self), f"anyreach-search {self.peer}")

    def look(self, job: Coroutine[None, None, None], name: str) -> None:
        """Run something that may come up with ways; the race is not lost before it ends."""
        self._lookers.add(self._spawn(job, name))

    def relay(self, way: Way) -> None:
        """Try a relayed way at once, beside the direct ones: which data takes is decided later."""
        if way in self._ways or len(self._ways) >= MAX_RELAYED_WAYS or self._over:
            return
        task = self._ways[way] = self._spawn(self._attempt(way), f"anyreach-dial {way}")
        self._lookers.add(task)

    def prime(self, addresses: Iterable[SocketAddress]) -> None:
        """Have our own NATs let in what comes from there, and send nothing that gets there."""
        fresh = [address for address in addresses if address not in self._primed]
        self._primed.update(fresh)
        if self._dialer.contacts is not None:
            for address in fresh:
                self._dialer.contacts.add(address.ip)
        self._dialer.endpoint.prime([(str(a.ip), a.port) for a in fresh], PRIMING_TTL)

    async def all_failed(self, ways: Iterable[Way]) -> None:
        """Wait until no attempt on any of these ways, of those that are tried, is under way."""
        tasks = [self._ways[way] for way in ways if way in self._ways]
        if tasks:
            await asyncio.wait(tasks)

    def answered(self, host: HostPort) -> str | None:
        """What a direct attempt to ``host`` found out there; ``None`` while nobody answers."""
        reason = None if host.address is None else self._answers.get(host.address)
        return None if reason in _SILENCE else reason

    @property
    def direct_addresses(self) -> tuple[SocketAddress, ...]:
        """The addresses that are the peer's own and that packets can be sent to."""
        return tuple(self._usable)

    @property
    def relayed_ways(self) -> tuple[Way, ...]:
        """The ways through relays that were tried."""
        return tuple(self._ways)

    def arrived(self, connection: _core.Connection) -> None:
        """End the race with a connection the core tells of."""
        if connection.outbound and (self.race.running or self._dialing):
            # The attempt that made it is about to say so, or one that has met it.
            self.look(self._meet(connection), f"anyreach-meet {self.peer}")
        else:
            self._take(connection)

    async def _meet(self, connection: _core.Connection) -> None:
        await asyncio.sleep(self._dialer.attempt_delay)
        self._take(connection)

    def _take(self, connection: _core.Connection) -> None:
        if self._over or self._connection is not None:
            return
        if connection.outbound:
            # Made for another caller, who may give it up, unless it is asked for like this.
            self._dialer.endpoint.connection(connection.peer_id)
        if self._settle(connection) and connection.outbound:
            for path in connection.paths():
                self._outcomes.setdefault(from_core(*path.remote), "connected")

    def deliver(self) -> None:
        """A caller gets the connection: from now on it is not the race's to close."""
        self._delivered = True
        if self._winner is not None:
            self._winner.keep()

    def abandon(self) -> None:
        """Nobody waits any more: close what the race has made, unless somebody got it."""
        if self._winner is not None and not self._delivered:
            self._winner.cancel()

    def fail(self, error: Exception) -> None:
        """End the race with ``error``."""
        if self._error is None:
            self._error = error
            self._changed.set()

    def failure(self, timeout: float | None = None) -> ConnectError:
        """Why there is no connection; ``timeout`` if the caller's time is up."""
        joining = self._dialer.joining() if self._searched else ()
        return self.log.failure(self.peer, timeout, joining)

    async def _run(self) -> _core.Connection:
        try:
            while True:
                self._changed.clear()
                until = self._advance()
                if self._error is not None:
                    raise self._error
                if self._connection is not None:
                    self._over = True
                    attempts = self.log.attempts(("cancelled", "another way was faster"))
                    self._dialer.won(self._connection, self.elapsed(), attempts)
                    await self._stop_jobs()
                    await self._improve(self._connection)
                    return self._connection
                try:
                    async with asyncio.timeout_at(until):
                        await self._changed.wait()
                except TimeoutError:
                    continue  # time for the next attempt
        finally:
            if self._connection is None or self._error is not None:
                self.abandon()
            self._over = True
            self._account()
            await self._stop_jobs()

    async def _stop_jobs(self) -> None:
        for job in self._jobs:
            job.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs)

    async def _improve(self, connection: _core.Connection) -> None:
        """Give a direct path a moment, if the connection goes through a relay."""
        upgrades = self._dialer.upgrades
        if upgrades is not None and connection.outbound:
            upgrades.begin(connection, self.direct_addresses, self.relayed_ways)
            await upgrades.grace(connection)
            if self._primed:
                # Not dialed so far; by now the peer has opened its NAT, if it can at all. What it
                # has had its router open nothing but a dial finds.
                upgrades.begin(connection, self._primed, self.relayed_ways)

    def _advance(self) -> float | None:
        """Start what is due; the loop time at which more is, ``None`` if only events matter."""
        if self._held_until > self._loop.time():
            return self._held_until
        held, self._held = self._held, []
        for hosts, source in held:
            self.add(hosts, source)
        while self._connection is None and self._error is None:
            match self.race.next_action(self._loop.time()):
                case Start(address):
                    self._spawn(self._attempt(Way(address)), f"anyreach-dial {address}")
                case Wait(until):
                    return until
                case Exhausted() if not (self._lookers or self._asking):
                    self._error = self.failure()
                case _:
                    return None
        return None

    def _spawn(self, job: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(job, name=name)
        self._jobs.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        self._lookers.discard(task)
        if not task.cancelled():
            error = task.exception()
            if isinstance(error, Exception):
                if self._over:  # nobody will ask any more
                    logger.error("%s failed after the race", task.get_name(), exc_info=error)
                self.fail(error)
        self._changed.set()

    def _ask(self, connection: _core.Connection) -> None:
        """Let the race begin with ``connection``, if the peer still answers on it."""
        path = current(connection.paths())
        remote = None if path is None else from_core(*path.remote)
        delay = self._dialer.attempt_delay
        if path is not None and remote is not None:
            rtts = {remote: path.rtt}
            delay = attempt_delay_after(remote, attempt_delay=delay, rtts=rtts)
        record = self.log.begin(str(remote or "the connection there is"))
        record.reason = NO_ANSWER
        if path is not None:
            record.method = path.method
        self._asking = True
        self._held_until = self._started + delay
        self._spawn(self._await_answer(connection, record), f"anyreach-ask {self.peer}")

    async def _await_answer(self, connection: _core.Connection, record: Record) -> None:
        try:
            answers = await self._dialer.wait(connection.poll_answers)
        finally:
            self._asking = False
        if answers and connection.close_reason is None:
            self.log.clear()  # nothing had to be tried
            self._dialer.answered(connection)
            self._settle(connection)
        else:
            self._held_until = -math.inf
            self.log.end(record, NO_ANSWER, "the peer does not answer on the connection there is")

    async def _resolve(self, host: HostPort) -> None:
        record = self.log.begin(str(host))
        record.reason, record.detail = "name-resolution", "the resolver has not answered"
        try:
            async with aclosing(resolve(host, mode=self._mode)) as batches:
                async for batch in batches:
                    self.log.forget(record)  # its addresses speak for themselves
                    self._admit(batch, "dns")
                    self._changed.set()
        except ResolutionError as error:
            self.log.end(record, "name-resolution", f"the name could not be resolved: {error}")

    async def _attempt(self, way: Way) -> None:
        address = way.address
        direct = way.method == "direct"
        record = self.log.begin(str(way), way.method)
        dial: _core.Dial | None = None
        self._dialing.add(way)
        try:
            dial = self._dial(way)
            connection = await self._dialer.wait(dial.poll)
            # Nothing is awaited from here on: a cancelled race leaves no connection unowned.
            closed = connection.close_reason
            if closed is not None:
                raise _core.DialFailed("closed", f"the connection was lost at once: {closed}", None)
            if self._settle(connection, dial):
                if direct:
                    self.race.won(address)
                self.log.end(record, "ok", "connected")
                self._outcomes[address] = "connected"
            else:
                self._outcomes.setdefault(address, "cancelled")
        except _core.DialFailed as error:
            reason, detail, actual = error.args
            self.log.end(record, reason, detail)
            self._outcomes[address] = "failed"
            if direct and self._sources.get(address) in _NAMED:
                record.actual = actual
            if direct:
                self._answers[address] = reason
                self.race.failed(address, self._loop.time())
        except asyncio.CancelledError:
            self._outcomes.setdefault(address, "cancelled")
            raise
        finally:
            self._dialing.discard(way)
            if dial is not None and dial is not self._winner:
                dial.cancel()

    def _settle(self, connection: _core.Connection, dial: _core.Dial | None = None) -> bool:
        """End the race with ``connection``, which ``dial`` has brought; false if it is too late."""
        if self._over or self._connection is not None or connection.close_reason is not None:
            return False
        self._connection = connection
        self._winner = dial
        self._changed.set()
        return True

    def _dial(self, way: Way) -> _core.Dial:
        address = way.address
        try:
            host = to_core(address)
        except OSError as error:
            detail = f"the interface of {address.host} does not exist"
            raise _core.DialFailed("unreachable", detail, None) from error
        if self._dialer.contacts is not None and way.tunnel is None:
            self._dialer.contacts.add(address.ip)
        return self._dialer.endpoint.dial(
            host,
            address.port,
            None if self.peer.peer_id is None else bytes(self.peer.peer_id),
            self._dialer.handshake_timeout,
            via=way.tunnel,
            relayed=way.relay is not None,
        )

    def _admit(self, addresses: Iterable[SocketAddress], source: str) -> None:
        """Let those of ``addresses`` race that the candidate policy finds worth it."""
        fresh = [a for a in dict.fromkeys(addresses) if a not in self._sources]
        room = max(0, MAX_CANDIDATES - len(self._sources))
        for address in fresh[room:]:
            self._turn_away(address, "limit", f"more than {MAX_CANDIDATES} addresses were given")
            self._dialer.recorder.candidate_pair(DropReason.LIMIT.value)
        fresh = fresh[:room]
        index = len(self._sources)
        self._sources.update(dict.fromkeys(fresh, source))
        remote = [Candidate.of(a, CandidateKind.GIVEN, index + i) for i, a in enumerate(fresh)]
        local = self._dialer.local()
        result = self._dialer.policy.pair(local, remote, controlling=True)
        for outcome, count in result.counts().items():
            self._dialer.recorder.candidate_pair(outcome, count)
        usable = list(result.remotes)
        for address in fresh:
            if address in usable:
                continue
            reasons = {d.reason for d in result.dropped if d.remote.address == address}
            if DropReason.LIMIT in reasons or (not local and self._mode.allows(address.ip)):
                # The limit of pairs is about probes; one dial serves all pairs of an address.
                # And a host that names no address of its own may still have a route.
                usable.append(address)
                continue
            family = f"IPv{address.version}"
            if reasons == {DropReason.CROSS_FAMILY} or not self._mode.allows(address.ip):
                self._turn_away(address, "family", f"this node has no {family} address")
            else:
                scope = address.scope.value
                detail = f"no own {family} address reaches a {scope} one"
                self._turn_away(address, "unreachable", detail)
        self._usable.update(dict.fromkeys(usable))
        if self.straight:
            self.race.add(usable)

    def _turn_away(self, address: SocketAddress, reason: str, detail: str) -> None:
        self.log.end(self.log.begin(str(address)), reason, detail)
        self._outcomes[address] = reason

    def _account(self) -> None:
        for address, source in self._sources.items():
            default = "cancelled" if address in self.race.started else "unused"
            self._dialer.recorder.candidate(source, self._outcomes.get(address, default))
