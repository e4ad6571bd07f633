"""Ways to a peer beyond dialing the addresses one was given: other peers, and relays.

A search asks every connected peer where the wanted one is, and lets what they say join the race:
its own addresses, its addresses at relays, and where this node cannot send there itself, a way
through a tunnel of its own. A detour reaches a node by its own relay service over TCP, where UDP
does not get through.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from anyreach._attempts import UNKNOWN
from anyreach._local import from_core
from anyreach._paths import current
from anyreach._tunnels import Target, TunnelFailed
from anyreach._way import Way
from anyreach.addresses import HostPort, IpMode, Scope
from anyreach.errors import ConnectionLost
from anyreach.offers import DENIED_PORTS, Neighbourhood, acceptable, may_be_relay
from anyreach.peer import PeerId
from anyreach.resolver import ResolutionError, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyreach import _core
    from anyreach._flow import Flow, Waiter
    from anyreach._tunnels import Tunnel, Tunnels
    from anyreach.addresses import IpAddress, SocketAddress
    from anyreach.candidates import InterfaceAddress

__all__ = ["Surroundings", "Ways"]

logger = logging.getLogger(__name__)

MAX_ASKED: Final = 16
"""Peers one search asks. One hop is enough: those that know each other's peers are relays and
rendezvous nodes, of which a node keeps a few."""

MAX_RELAYS: Final = 4
"""Relays of one peer whose addresses are tried; nodes keep two reservations, and a third while
they replace one."""

ASK_AGAIN: Final = (0.25, 0.5, 1.0)
"""Seconds after which a peer is asked again. A node that has just joined gets its addresses at
relays, and tells them, within a few round trips; and a search is over when somebody is reached."""

ASK_SECONDS: Final = 5.0
"""How long a peer has to answer: a few round trips of the slowest lines, on an open connection."""

LAST_RESORT: Final = 1.0
"""Seconds after which a search tries tunnels although nothing says that UDP is blocked: whoever
answers directly has done so by then, on all but the slowest lines."""


_Addresses: TypeAlias = "list[tuple[str, int]]"
_Answer: TypeAlias = "tuple[tuple[str, int] | None, _Addresses, list[tuple[bytes, _Addresses]]]"
"""Where the asked peer sees the wanted one, its own addresses, and those at relays."""


class Surroundings(Protocol):
    """What the node knows about itself."""

    @property
    def external(self) -> frozenset[IpAddress]:
        """IP addresses its peers see it under."""
        ...

    @property
    def interfaces(self) -> tuple[InterfaceAddress, ...]:
        """Its own addresses with their prefixes."""
        ...

    @property
    def usable(self) -> frozenset[int]:
        """Families it can send to beyond its own machine."""
        ...


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def connections(self) -> list[_core.Connection]:
        """All connections."""
        ...


class Ways:
    """Finds ways for the flows of one node.

    Args:
        me: PeerId of the node.
        core: its endpoint.
        wait: awaits a ``poll_*`` method of the core.
        tunnels: its tunnels.
        mode: the families of its socket.
        around: what it knows about itself.
        joining: waits until a peer is connected, or no known peer is on its first attempt any
            more; returns whether there may be more to come.
        direct: whether peers may be dialed without relays.
        relayed: whether relays may be used.
        delay: seconds a direct attempt gets before TCP is tried.
    """

    def __init__(
        self,
        me: PeerId,
        core: Core,
        wait: Waiter,
        *,
        tunnels: Tunnels,
        mode: IpMode,
        around: Surroundings,
        joining: Callable[[], asyncio.Future[bool]],
        direct: bool,
        relayed: bool,
        delay: float,
    ) -> None:
        self._me = me
        self._core = core
        self._wait = wait
        self._tunnels = tunnels
        self._mode = mode
        self._around = around
        self._joining = joining
        self._direct = direct
        self._relayed = relayed
        self._delay = delay

    # Through other peers

    async def search(self, flow: Flow) -> None:
        """Ask the peers there are, and those that come while some are still expected."""
        wanted = flow.peer.peer_id
        if wanted is None:
            return
        asked: set[bytes] = set()
        while True:
            expected = self._joining()
            for core in self._core.connections():
                if core.peer_id == bytes(wanted) or core.peer_id in asked:
                    continue
                if len(asked) < MAX_ASKED and core.close_reason is None:
                    asked.add(core.peer_id)
                    flow.look(self._ask(flow, core, wanted), f"anyreach-find {wanted}")
            if not await expected:
                return

    async def _ask(self, flow: Flow, core: _core.Connection, wanted: PeerId) -> None:
        """Ask one peer, and again a moment later: who has just joined tells bit by bit."""
        known: _Answer | None = None
        for pause in (*ASK_AGAIN, None):
            status, answer = await self._question(flow, core, wanted, silent=known is not None)
            if answer is not None and answer != known:
                known = answer
                flow.look(self._use(flow, core, answer), f"anyreach-found {wanted}")
            if pause is None or status not in _MAY_CHANGE:
                return
            if known is None and pause != ASK_AGAIN[0]:
                return
            await asyncio.sleep(pause)

    async def _question(
        self, flow: Flow, core: _core.Connection, wanted: PeerId, *, silent: bool
    ) -> tuple[str, _Answer | None]:
        """One question; what became of it, and what the peer knows.

        Failures are attempts, but for ``silent`` ones.
        """
        helper = PeerId(core.peer_id)
        record = flow.log.begin(f"peer {helper.short}…", "relayed")
        record.reason, record.detail = "no-answer", "it was asked for the peer and has not answered"
        try:
            async with asyncio.timeout(ASK_SECONDS):
                status, seen, direct, bound = await self._wait(core.find(bytes(wanted)).poll)
        except (ConnectionLost, TimeoutError):
            flow.log.end(record, "no-answer", "it was asked for the peer and did not answer")
            return "no-answer", None
        flow.log.forget(record)
        if status == "ok":
            return status, (seen, direct, bound)
        if not silent:
            flow.log.replace(record, UNKNOWN, _REFUSALS.get(status, f"it says {status}"))
        return status, None

    async def _use(self, flow: Flow, core: _core.Connection, answer: _Answer) -> None:
        seen, direct, bound = answer
        remote = current(core.paths())
        direct_to_helper = remote is not None and remote.method != "relayed"
        around = Neighbourhood(
            from_core(*remote.remote) if remote is not None and direct_to_helper else None,
            self._around.external,
            self._around.interfaces,
        )
        observed = None if seen is None else from_core(*seen)
        own = acceptable((from_core(*a) for a in direct), observed, around)
        ways = self._bound(bound) if self._relayed else []
        here = self._here(ways, around)
        # Where a way through a relay can be tried, not before it has had its time.
        later = tuple(a for a in own if here and a.version == 4 and a.scope is Scope.GLOBAL)
        if self._direct:
            _add(flow, (a for a in own if a not in later))
        for way in here:
            flow.relay(way)
        if self._direct and later:
            # The peer sends as soon as it has our hello.
            flow.prime(later)
            flow.look(self._hold_back(flow, here, later), f"anyreach-held {flow.peer}")
        if self._relayed:
            await self._relay(flow, own, ways, here)

    async def _hold_back(
        self, flow: Flow, ways: list[Way], addresses: tuple[SocketAddress, ...]
    ) -> None:
        """Dial a peer behind a NAT only if no relay leads to it.

        Whoever has addresses at relays cannot be reached by strangers as a rule. And where its
        router answers what belongs to no mapping, it keeps a flow for it, and then gives another
        port to the peer's own packets to us: one handshake that comes too early prevents punching
        for as long as that lasts. IPv6 is not translated, and sites are not entered by a NAT.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_RESORT):
                await flow.all_failed(ways)
        _add(flow, addresses)

    def _here(self, bound: list[Way], around: Neighbourhood) -> list[Way]:
        """The ways that take no tunnel of ours."""
        if self._udp_works() is False:
            return []
        return [
            way
            for way in bound
            if self._can_send(way.address) and may_be_relay(way.address, around)
        ]

    def _bound(self, bound: Iterable[tuple[bytes, list[tuple[str, int]]]]) -> list[Way]:
        ways = []
        for relay, addresses in list(bound)[:MAX_RELAYS]:
            who = PeerId(relay)
            if who == self._me:
                continue  # we would be relaying for ourselves: the peer is connected, then
            ways += [Way(from_core(*address), relay=who) for address in addresses]
        return [
            way
            for way in ways
            if way.address.scope.dialable and way.address.port not in DENIED_PORTS
        ]

    async def _relay(
        self,
        flow: Flow,
        own: tuple[SocketAddress, ...],
        bound: list[Way],
        here: list[Way],
    ) -> None:
        """Try ways through our own tunnels only where it takes them; ``here`` are tried already."""
        if not bound and not own:
            return
        can_reach = bool(here) or (
            self._udp_works() is not False
            and self._direct
            and any(self._can_send(address) for address in own)
        )
        if can_reach:
            await asyncio.sleep(LAST_RESORT)
        await self._through(flow, bound, own)

    async def _through(self, flow: Flow, bound: list[Way], own: tuple[SocketAddress, ...]) -> None:
        """Send through tunnels of our own: those there are, else one to a peer that may relay."""
        tried = [t for t in self._tunnels if t.up]
        if not tried:
            tried = await self._open_any(flow)
        for tunnel in tried:
            served = {address.version for address in tunnel.public}
            for way in bound:
                if way.address.version in served:
                    self._try(flow, tunnel, way.address, way.relay)
            for address in own:
                if address.version in served and address.scope is Scope.GLOBAL:
                    self._try(flow, tunnel, address, None)

    async def _open_any(self, flow: Flow) -> list[Tunnel]:
        for core in self._core.connections():
            path = current(core.paths())
            if path is None or path.method != "direct" or "relay" not in core.capabilities:
                continue
            if core.peer_id == _raw(flow.peer.peer_id):
                continue
            address = from_core(*path.remote)
            target = Target(
                HostPort(address.host, address.port),
                (address,),
                PeerId(core.peer_id),
                rtt=path.rtt,
            )
            tunnel = await self._open(flow, target)
            if tunnel is not None:
                return [tunnel]
        return []

    async def _open(self, flow: Flow, target: Target) -> Tunnel | None:
        record = flow.log.begin(f"relay {target.host}", "relayed")
        record.reason, record.detail = "handshake-timeout", "the relay has not answered"
        try:
            tunnel = self._tunnels.hold(target, flow)
            record.so_far = partial(_failed_so_far, tunnel)
            try:
                await tunnel.ready()
            finally:
                self._tunnels.release(tunnel, flow)
        except TunnelFailed as error:
            flow.log.forget(record)
            for carrier, address, reason, detail, seconds in error.attempts:
                where = f"{address or target.host} by {carrier}" if carrier else str(target.host)
                entry = flow.log.begin(where, "relayed")
                flow.log.end(entry, reason, detail)
                entry.seconds = seconds
            return None
        flow.log.forget(record)
        return tunnel

    def _try(
        self, flow: Flow, tunnel: Tunnel, address: SocketAddress, relay: PeerId | None
    ) -> None:
        flow.relay(Way(address, relay=relay, tunnel=tunnel.core, carrier=tunnel.carrier))

    def _can_send(self, address: SocketAddress) -> bool:
        """Whether packets to ``address`` can leave through the node's own socket."""
        if not self._mode.allows(address.ip):
            return False
        return address.scope is Scope.LOOPBACK or address.version in self._around.usable

    def _udp_works(self) -> bool | None:
        """Whether UDP gets out of this network, as far as the connections show."""
        methods = {p.method for c in self._core.connections() for p in c.paths()}
        if methods - {"relayed"}:
            return True
        return None if not methods else not any(t.up and t.carrier != "h3" for t in self._tunnels)

    # To a node by its own relay service

    async def detour(self, flow: Flow, host: HostPort) -> None:
        """Reach whoever is at ``host`` over TCP, if nobody answers there over UDP.

        Where nothing is dialed directly it is the only way there, and over UDP as well.
        """
        if not self._relayed:
            return
        if flow.straight:
            await asyncio.sleep(self._delay)
            if flow.answered(host) is not None:
                return  # somebody did, and said no
        addresses = await self._addresses(host)
        addresses = tuple(a for a in addresses if a in flow.direct_addresses)
        if not addresses and not self._tunnels.has_proxy(host):
            return
        target = Target(host, addresses, flow.peer.peer_id, udp=not flow.straight)
        tunnel = await self._open(flow, target)
        if tunnel is None:
            return
        for address in tunnel.node:
            self._try(flow, tunnel, address, None)

    async def _addresses(self, host: HostPort) -> tuple[SocketAddress, ...]:
        if host.address is not None:
            return (host.address,) if self._mode.allows(host.address.ip) else ()
        found: list[SocketAddress] = []
        try:
            async for batch in resolve(host, mode=self._mode):
                found += batch
        except ResolutionError:
            pass  # a proxy may know the name
        return tuple(found)


def _add(flow: Flow, addresses: Iterable[SocketAddress]) -> None:
    flow.add((HostPort(a.host, a.port) for a in addresses), "found")


def _failed_so_far(tunnel: Tunnel) -> tuple[str, str] | None:
    """Reason and detail of the carriers that failed already; those of a proxy say most."""
    attempts = sorted(tunnel.core.attempts, key=lambda attempt: attempt[0] != "h2-proxy")
    if not attempts:
        return None
    return attempts[0][2], "; ".join(f"{attempt[0]}: {attempt[3]}" for attempt in attempts)


def _raw(peer_id: PeerId | None) -> bytes | None:
    return None if peer_id is None else bytes(peer_id)


_MAY_CHANGE: Final = frozenset({"ok", "unknown"})
"""Answers after which it makes sense to ask again."""

_REFUSALS: Final = {
    "unknown": "it does not know the peer",
    "not-findable": "the peer does not want to be found through it",
    "limit": "it was asked too much lately",
}
