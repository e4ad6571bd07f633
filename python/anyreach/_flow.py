"""One race over the addresses of one peer, from names to a connection or an explained failure.

Here the pure policy (:mod:`anyreach.candidates`, :mod:`anyreach.happy_eyeballs`) meets the
resolver, the clock and the core.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from anyreach import _core
from anyreach._local import from_core, to_core
from anyreach.addresses import IpMode, SocketAddress
from anyreach.candidates import MAX_CANDIDATES, Candidate, CandidateKind, DropReason
from anyreach.errors import Attempt, ConnectError, ConnectTimeout, PeerIdMismatch
from anyreach.happy_eyeballs import Exhausted, Race, Start, Wait
from anyreach.peer import PeerId
from anyreach.resolver import ResolutionError, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from anyreach.addresses import HostPort
    from anyreach.dialer import Dialer
    from anyreach.peer import PeerAddress

__all__ = ["Endpoint", "Flow", "Waiter"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

SELF: Final = "self"
"""Reason of an attempt that reached the dialing node itself."""


class Endpoint(Protocol):
    """What a dialer needs of :class:`anyreach._core.Endpoint`."""

    @property
    def ip_mode(self) -> str:
        """``"dual"``, ``"v4"`` or ``"v6"``."""
        ...

    def dial(self, ip: str, port: int, peer_id: bytes | None, timeout: float) -> _core.Dial:
        """Start an attempt."""
        ...

    def connection(self, peer_id: bytes) -> _core.Connection | None:
        """The established connection to a peer."""
        ...


class Waiter(Protocol):
    """What a dialer needs of :class:`anyreach._bridge.LoopBridge`."""

    async def __call__(self, poll: Callable[..., T | None]) -> T:
        """The result of ``poll`` once it has one."""
        ...


@dataclass(slots=True)
class _Record:
    """An attempt; reason and detail are what to say if time runs out now, until it is over."""

    address: str
    begun: float
    reason: str = "handshake-timeout"
    detail: str = "no answer in the time there was"
    seconds: float | None = None
    actual: bytes | None = None


class Flow:
    """The shared work of all callers that want the same peer.

    Attributes:
        peer: who is wanted, as the first caller said it.
        race: the Happy Eyeballs state.
        task: ends with the connection, or with :meth:`failure`.
        waiters: callers that wait for it, kept by the dialer.
    """

    def __init__(self, dialer: Dialer, peer: PeerAddress) -> None:
        self._dialer = dialer
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._mode = IpMode(dialer.endpoint.ip_mode)
        self._records: list[_Record] = []
        self._sources: dict[SocketAddress, str] = {}
        self._outcomes: dict[SocketAddress, str] = {}
        self._hosts: set[HostPort] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self._resolving = 0
        self._changed = asyncio.Event()
        self._connection: _core.Connection | None = None
        self._error: Exception | None = None
        self._over = False
        self.peer = peer
        self.waiters = 0
        self.race = Race(attempt_delay=dialer.attempt_delay, rtts=dialer.book.rtts)
        self.task = asyncio.create_task(self._run(), name=f"anyreach-connect {peer}")

    def elapsed(self) -> float:
        """Seconds since the first caller asked."""
        return self._loop.time() - self._started

    def add(self, hosts: Iterable[HostPort], source: str) -> None:
        """Try these as well; ``source`` says where literal addresses come from."""
        for host in hosts:
            if host in self._hosts:
                continue
            self._hosts.add(host)
            if host.address is not None:
                self._admit((host.address,), source)
            else:
                self._resolving += 1
                self._spawn(self._resolve(host), f"anyreach-resolve {host}")
        self._changed.set()

    def settle(self, connection: _core.Connection) -> None:
        """End the race with ``connection``, which may not come from it."""
        if self._connection is not None or connection.close_reason is not None:
            return
        self._connection = connection
        self._changed.set()
        if connection.outbound:
            # The core may tell of the connection before the attempt that made it is polled.
            for path in connection.paths():
                self._outcomes.setdefault(from_core(*path.remote), "connected")

    def fail(self, error: Exception) -> None:
        """End the race with ``error``."""
        if self._error is None:
            self._error = error
            self._changed.set()

    def failure(self, timeout: float | None = None) -> ConnectError:
        """Why there is no connection; ``timeout`` if the caller's time is up."""
        who = str(self.peer)
        attempts = self._attempts()
        expected = str(self.peer.peer_id)
        for record in self._records:
            if record.actual is not None:
                actual = str(PeerId(record.actual))
                return PeerIdMismatch(
                    f"{record.address} is {actual}, not {expected}",
                    attempts,
                    expected=expected,
                    actual=actual,
                )
        if timeout is not None:
            return ConnectTimeout(f"{who} was not reached within {timeout:g} s", attempts)
        reasons = {attempt.reason for attempt in attempts}
        if reasons == {"handshake-timeout"}:
            return ConnectTimeout(f"{who} did not answer", attempts)
        if reasons == {SELF}:
            return ConnectError(f"{who} is this node itself", attempts)
        return ConnectError(f"{who} could not be reached", attempts)

    async def _run(self) -> _core.Connection:
        try:
            while True:
                self._changed.clear()
                until = self._advance()
                if self._error is not None:
                    raise self._error
                if self._connection is not None:
                    self._dialer.won(self._connection, self.elapsed())
                    return self._connection
                try:
                    async with asyncio.timeout_at(until):
                        await self._changed.wait()
                except TimeoutError:
                    continue  # time for the next attempt
        finally:
            self._over = True
            self._account()
            for job in self._jobs:
                job.cancel()
            if self._jobs:
                await asyncio.wait(self._jobs)

    def _advance(self) -> float | None:
        """Start what is due; the loop time at which more is, ``None`` if only events matter."""
        while self._connection is None and self._error is None:
            match self.race.next_action(self._loop.time()):
                case Start(address):
                    self._spawn(self._attempt(address), f"anyreach-dial {address}")
                case Wait(until):
                    return until
                case Exhausted() if not self._resolving:
                    self._error = self.failure()
                case _:
                    return None
        return None

    def _spawn(self, job: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(job, name=name)
        self._jobs.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled():
            error = task.exception()
            if isinstance(error, Exception):
                if self._over:  # nobody will ask any more
                    logger.error("%s failed after the race", task.get_name(), exc_info=error)
                self.fail(error)
        self._changed.set()

    async def _resolve(self, host: HostPort) -> None:
        record = self._record(str(host))
        record.reason, record.detail = "name-resolution", "the resolver has not answered"
        try:
            async with aclosing(resolve(host, mode=self._mode)) as batches:
                async for batch in batches:
                    if record in self._records:
                        self._records.remove(record)  # its addresses speak for themselves
                    self._admit(batch, "dns")
                    self._changed.set()
        except ResolutionError as error:
            self._close(record, "name-resolution", f"the name could not be resolved: {error}")
        finally:
            self._resolving -= 1

    async def _attempt(self, address: SocketAddress) -> None:
        peer_id = None if self.peer.peer_id is None else bytes(self.peer.peer_id)
        record = self._record(str(address))
        try:
            dial = self._dial(address, peer_id)
            try:
                connection = await self._dialer.wait(dial.poll)
            finally:
                dial.cancel()
            closed = connection.close_reason
            if closed is not None:
                raise _core.DialFailed("closed", f"the connection was lost at once: {closed}", None)
        except _core.DialFailed as error:
            reason, detail, record.actual = error.args
            self._close(record, reason, detail)
            self._outcomes[address] = "failed"
            self.race.failed(address, self._loop.time())
            return
        except asyncio.CancelledError:
            self._outcomes.setdefault(address, "cancelled")
            raise
        self._records.remove(record)
        self._outcomes[address] = "connected"
        self.race.won(address)
        self.settle(connection)

    def _dial(self, address: SocketAddress, peer_id: bytes | None) -> _core.Dial:
        try:
            host = to_core(address)
        except OSError as error:
            detail = f"the interface of {address.host} does not exist"
            raise _core.DialFailed("unreachable", detail, None) from error
        timeout = self._dialer.handshake_timeout
        return self._dialer.endpoint.dial(host, address.port, peer_id, timeout)

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
        self.race.add(usable)

    def _turn_away(self, address: SocketAddress, reason: str, detail: str) -> None:
        self._close(self._record(str(address)), reason, detail)
        self._outcomes[address] = reason

    def _record(self, address: str) -> _Record:
        record = _Record(address, self._loop.time())
        self._records.append(record)
        return record

    def _close(self, record: _Record, reason: str, detail: str) -> None:
        record.reason, record.detail = reason, detail
        record.seconds = self._loop.time() - record.begun

    def _attempts(self) -> tuple[Attempt, ...]:
        now = self._loop.time()
        return tuple(
            Attempt(
                r.address,
                "direct",
                r.reason,
                r.detail,
                (now - r.begun if r.seconds is None else r.seconds) * 1000,
            )
            for r in self._records
        )

    def _account(self) -> None:
        for address, source in self._sources.items():
            default = "cancelled" if address in self.race.started else "unused"
            self._dialer.recorder.candidate(source, self._outcomes.get(address, default))
