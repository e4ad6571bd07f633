"""Experiments with the NAT in front of a node, with nothing but an address of its own at a relay.

A packet the node sends to that address comes back through the tunnel and says where it came from;
one sent out there to the node's own external address arrives, or does not. What comes of it is
judged by :mod:`anyreach.nat`. A node that strangers reach, and one without UDP, does nothing.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from anyreach import _core
from anyreach._local import from_core, to_core
from anyreach._paths import current
from anyreach._proving import has_contacted
from anyreach._tunnels import Target, TunnelFailed
from anyreach.addresses import HostPort, Scope, SocketAddress
from anyreach.nat import Reflected
from anyreach.peer import PeerId
from anyreach.reachability import SelfProbe

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach._flow import Waiter
    from anyreach._local import LocalView
    from anyreach._proving import Contacts
    from anyreach._tunnels import Tunnel, Tunnels
    from anyreach.addresses import IpAddress
    from anyreach.reachability import Family

__all__ = ["NatProbe", "Samples"]

logger = logging.getLogger(__name__)

REFLECT_SECONDS: Final = 1.0
"""How long a packet to ourselves may take: to a relay and back, on all but the slowest lines."""

FRESH_SAMPLES: Final = 3
"""New mappings made to see how ports are chosen: two gaps tell a counter from chance."""

INWARD: Final = 3
"""Packets through a relay to ourselves, half a round trip apart."""

ONE_WAY_AND_BACK: Final = 2.5
SETTLE: Final = 0.03
"""When it is known what became of packets to ourselves out of the relay, in round trips to the
relay and seconds: one goes there and comes back, and where it was a dial (:mod:`._proving`) so does
its answer, which a busy machine has to compute. Until then nothing may be sent where they came
from, which would let them in; and others wait for what comes of all this."""

UNKNOWN_RTT: Final = 0.1
"""Seconds to a relay and back, where nobody knows."""

AGAIN: Final = 600.0
"""Seconds after which everything is tried again: carriers change their NATs, rarely."""

SILENT: Final = 5.0
"""Seconds after which what told nothing is tried again, while somebody needs to know: after the NAT
got another address, the tunnel has to follow first."""

HELD: Final = 120.0
"""Seconds a tunnel is held that was opened for experiments alone: while rounds may need samples."""

Samples: TypeAlias = "tuple[IpAddress, tuple[tuple[float, int], ...]]"
"""Our external address, and ``(time, port)`` of new mappings of it, oldest first."""


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def connections(self) -> list[_core.Connection]:
        """All connections."""
        ...

    def reflect(
        self,
        ip: str,
        port: int,
        timeout: float,
        *,
        via: _core.Tunnel | None = None,
        fresh: bool = False,
    ) -> _core.Reflection:
        """Send a packet to ourselves."""
        ...


class NatProbe:
    """Makes the experiments of one node; :class:`~anyreach._local.LocalView` keeps the results.

    Args:
        core: its endpoint.
        wait: awaits a ``poll_*`` method of the core.
        tunnels: its tunnels.
        local: what the node knows about its addresses.
        contacts: whom it has sent something.
        enabled: whether experiments may be made, and tunnels opened for them.
        changed: called when there are results.

    Attributes:
        idle: not set while results are about to come.
    """

    def __init__(
        self,
        core: Core,
        wait: Waiter,
        *,
        tunnels: Tunnels,
        local: LocalView,
        contacts: Contacts,
        enabled: bool,
        changed: Callable[[], None],
    ) -> None:
        self._core = core
        self._wait = wait
        self._tunnels = tunnels
        self._local = local
        self._contacts = contacts
        self._enabled = enabled
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._tried: set[tuple[int, SocketAddress]] = set()
        self._silent: dict[tuple[int, SocketAddress], float] = {}  # when nothing came back
        self._flight = 0
        self._borrowed: Tunnel | None = None
        self._wanted_until = 0.0
        self._news = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    def wake(self) -> None:
        """A tunnel came up, or peers tell something new about our address."""
        self._news.set()

    def want(self) -> None:
        """Somebody needs to know what the NAT does: a tunnel may be opened for that."""
        self._wanted_until = self._loop.time() + HELD
        self._news.set()

    def external_gone(self, family: Family) -> None:
        """The NAT of a family has another address, or is another one."""
        self._local.experiments = self._local.experiments.without(family)
        self._tried = {key for key in self._tried if key[1].version != family}
        self._silent.clear()
        self._news.set()

    def network_changed(self) -> None:
        """The node is somewhere else: nothing that was found out holds any more."""
        self._tried.clear()
        self._silent.clear()
        self._news.set()

    async def run(self) -> None:
        """Make the experiments that are worth it, until cancelled."""
        if not self._enabled:
            return
        try:
            while True:
                self._news.clear()
                await self._borrow()
                for tunnel in self._usable():
                    for bound in tunnel.public:
                        await self._explore(tunnel, bound)
                await self._rest()
        finally:
            self._return()

    async def samples(
        self, family: Family
    ) -> tuple[IpAddress, tuple[tuple[float, int], ...]] | None:
        """New mappings, the last of them made just now; ``None`` if nothing comes back."""
        way = self._way(family)
        if way is None:
            return None
        known, _ = self._local.experiments.ports(family)
        back = await self._sample(way, FRESH_SAMPLES if known == "unknown" else 1)
        if not back:
            return None
        seen = SocketAddress.of(*back[-1].seen)
        return seen.ip, self._local.experiments.samples(family)

    async def _rest(self) -> None:
        """Wait for news, or until something is to be looked at again."""
        now = self._loop.time()
        all_again = until = now + AGAIN
        if self._borrowed is not None:
            until = min(until, self._wanted_until)
        if self._silent and now < self._wanted_until:
            until = min(until, min(self._silent.values()) + SILENT)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._news.wait()
        now = self._loop.time()
        if now >= all_again:
            self._tried.clear()
        if now >= self._wanted_until:
            self._return()
        else:
            due = [key for key, at in self._silent.items() if at + SILENT <= now]
            for key in due:
                del self._silent[key]
                self._tried.discard(key)

    # Tunnels

    def _usable(self) -> list[Tunnel]:
        """Tunnels that prove something, the shortest first: where UDP gets out to the relay, also
        beside a tunnel that TCP happened to win."""
        usable = [t for t in self._tunnels if t.up and (t.carrier == "h3" or self._is_seen_by(t))]
        return sorted(usable, key=lambda tunnel: tunnel.core.rtt or 0.0)

    def _is_seen_by(self, tunnel: Tunnel) -> bool:
        return any(r.observer == tunnel.relay for r in self._local.observed.observations())

    def _way(self, family: Family) -> SocketAddress | None:
        bound = (address for tunnel in self._usable() for address in tunnel.public)
        return next((address for address in bound if address.version == family), None)

    async def _borrow(self) -> None:
        """Have a tunnel, where somebody needs to know, nobody knows, and there is none."""
        if self._loop.time() >= self._wanted_until or self._usable():
            return
        nat = self._local.nat().of(4)
        open_questions = {nat.filtering} if nat.mapping == "none" else {nat.mapping, nat.ports}
        if "unknown" not in open_questions:
            return
        self._return()
        target = self._lender()
        if target is None:
            return
        try:
            tunnel = self._tunnels.hold(target, self)
        except TunnelFailed:
            return
        self._borrowed = tunnel
        with suppress(TunnelFailed):
            await tunnel.ready()

    def _return(self) -> None:
        if self._borrowed is not None:
            self._tunnels.release(self._borrowed, self)
            self._borrowed = None

    def _lender(self) -> Target | None:
        """The nearest peer that relays, is reached without a relay itself, and sees where from."""
        observers = {
            report.observer
            for report in self._local.observed.observations()
            if report.address.version == 4
        }
        nearest: tuple[float, Target] | None = None
        for core in self._core.connections():
            path, relay = current(core.paths()), PeerId(core.peer_id)
            if path is None or path.method != "direct" or "relay" not in core.capabilities:
                continue
            if relay not in observers or core.close_reason is not None:
                continue
            if nearest is None or path.rtt < nearest[0]:
                address = from_core(*path.remote)
                host = HostPort(address.host, address.port)
                nearest = path.rtt, Target(host, (address,), relay, rtt=path.rtt)
        return None if nearest is None else nearest[1]

    # Experiments

    async def _explore(self, tunnel: Tunnel, bound: SocketAddress) -> None:
        key = (tunnel.core.number, bound)
        if key in self._tried or bound.scope is not Scope.GLOBAL:
            return
        family: Family = 6 if bound.version == 6 else 4
        seen = self._seen_by(tunnel, family)
        if seen is None:
            return  # the relay will tell
        self._tried.add(key)
        if self._is_reachable(family):
            return
        self.idle.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                # New sockets disturb nothing; but what the node's own one sends to the address at
                # the relay lets answers in.
                samples = tasks.create_task(self._sample(bound, FRESH_SAMPLES))
                tasks.create_task(self._filtering(tunnel, bound, seen))
                await asyncio.sleep(self._patience(tunnel))
                tasks.create_task(self._mapping(tunnel, bound))
            if not samples.result():
                self._silent[key] = self._loop.time()
        finally:
            self.idle.set()

    def _seen_by(self, tunnel: Tunnel, family: Family) -> SocketAddress | None:
        for report in self._local.observed.observations():
            if report.observer == tunnel.relay and report.address.version == family:
                return report.address
        return None

    def _rtt(self, tunnel: Tunnel) -> float:
        """Seconds to the relay and back, also when the tunnel is too young to know."""
        if tunnel.core.rtt:
            return tunnel.core.rtt
        for core in self._core.connections():
            path = current(core.paths())
            if path is not None and tunnel.relay is not None and core.peer_id == tunnel.relay.raw:
                return path.rtt
        return UNKNOWN_RTT

    def _patience(self, tunnel: Tunnel) -> float:
        return ONE_WAY_AND_BACK * self._rtt(tunnel) + SETTLE

    def _is_reachable(self, family: Family) -> bool:
        nat = self._local.nat().of(family)
        return nat.mapping == "none" and nat.filtering == "endpoint-independent"

    async def _filtering(self, tunnel: Tunnel, bound: SocketAddress, seen: SocketAddress) -> None:
        """Whether a packet from another port of the relay comes in."""
        if tunnel.relay is None or self._contacts.knows(bound):
            return
        contacted = has_contacted(self._contacts, tunnel, seen.version)
        back = await self._inward(tunnel, seen)
        if back is not None and self._contacts.knows(bound):
            return  # late, and maybe only let in because we have sent something there
        if tunnel.up:
            self._local.evidence = self._local.evidence.with_probe(
                SelfProbe(
                    6 if seen.version == 6 else 4,
                    tunnel.relay,
                    arrived=back is not None,
                    at=self._loop.time(),
                    contacted=contacted,
                )
            )
            self._changed()

    async def _inward(self, tunnel: Tunnel, seen: SocketAddress) -> Reflected | None:
        """The first of a few packets through the relay that comes in. A single one that got lost
        would make a firewall of nothing; all are there before anything is sent out."""

        async def after(seconds: float) -> Reflected | None:
            await asyncio.sleep(seconds)
            return await self._reflect(seen, 2 * self._patience(tunnel) - seconds, via=tunnel)

        gap = self._rtt(tunnel) / 2
        tries = [asyncio.create_task(after(number * gap)) for number in range(INWARD)]
        try:
            for done in asyncio.as_completed(tries):
                if (back := await done) is not None:
                    return back
            return None
        finally:
            for task in tries:
                task.cancel()

    async def _mapping(self, tunnel: Tunnel, bound: SocketAddress) -> None:
        """Where a packet from the node's own socket comes from, seen at another port."""
        back = None
        for _ in range(2):  # one may get lost
            back = back or await self._reflect(bound)
        if back is None:
            logger.debug("nothing comes back through %s", tunnel.relay)
            return
        self._local.experiments = self._local.experiments.with_reflection(back)
        self._changed()

    async def _sample(self, bound: SocketAddress, count: int) -> list[Reflected]:
        """Have the NAT make new mappings; in one flight, so that nobody else's come between."""
        self._flight += 1
        flight = self._flight
        reflected = await asyncio.gather(
            *(self._reflect(bound, fresh=True, after=number * 1e-6) for number in range(count))
        )
        back = [entry for entry in reflected if entry is not None]
        for entry in back:
            self._local.experiments = self._local.experiments.with_reflection(
                replace(entry, flight=flight)
            )
        if back:
            self._changed()
        return back

    async def _reflect(
        self,
        address: SocketAddress,
        seconds: float = REFLECT_SECONDS,
        *,
        via: Tunnel | None = None,
        fresh: bool = False,
        after: float = 0.0,
    ) -> Reflected | None:
        """A packet to ourselves; ``None`` if it does not arrive."""
        at = self._loop.time() + after  # in the order in which they are sent
        try:
            reflection = self._core.reflect(
                to_core(address),
                address.port,
                seconds,
                via=None if via is None else via.core,
                fresh=fresh,
            )
        except (OSError, _core.DialFailed) as error:
            logger.debug("no packet to ourselves at %s: %s", address, error)
            return None
        if via is None and not fresh:
            self._contacts.add_port(address)
        source, _ = await self._wait(reflection.poll)
        if source is None:
            return None
        seen = from_core(*source)
        return Reflected(
            at,
            (address.host, address.port),
            (seen.host, seen.port),
            reflection.local_port,
            fresh=fresh,
        )
