"""The node's addresses at relays: whether it needs any, at whom, and who is told.

Evidence comes in from the node (:class:`Relaying` is told of peers, addresses and tunnels), the
judgement is that of :mod:`anyreach.reachability`, the choice that of the relay policy.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from anyreach import _core
from anyreach._local import from_core, to_core
from anyreach._tunnels import Target, Tunnel, TunnelFailed
from anyreach.addresses import HostPort, Scope
from anyreach.backoff import STABLE_AFTER
from anyreach.events import Relay
from anyreach.peer import PeerId
from anyreach.reachability import (
    Evidence,
    Inbound,
    Reachability,
    SelfProbe,
    Surroundings,
    judge,
)
from anyreach.relays import RelayCandidate, RelaySituation, Reservation
from anyreach.scores import Scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from anyreach._flow import Waiter
    from anyreach._local import LocalView
    from anyreach._tunnels import Tunnels
    from anyreach.addresses import IpAddress, SocketAddress
    from anyreach.carriers import Carrier
    from anyreach.events import Event
    from anyreach.metrics import Recorder
    from anyreach.reachability import Family
    from anyreach.relays import RelayPolicy, ReservationState

__all__ = ["Contacts", "Relaying"]

logger = logging.getLogger(__name__)

MAX_CONTACTS: Final = 4096
"""IP addresses remembered as contacted. One that was forgotten could only be taken for a
stranger's, and its NAT mapping is long gone by then."""

PROBE_SECONDS: Final = 3.0
"""How long a packet to the node itself may take: a handshake across the world and back, with one
repetition."""

MAX_PROBES: Final = 4
"""Probes of one address of the node: enough to prove something twice through two relays."""

OUTAGE: Final = 10.0
"""Seconds a tunnel may be down before its reservation is given up. The core reconnects it, and the
connections inside go on: a restarted router or a change of network takes a few seconds."""

SETTLE: Final = 0.02
"""Seconds to wait for what else changes at the same moment, before deciding and telling peers."""


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

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

    def announce(
        self,
        direct: Sequence[tuple[str, int]],
        relayed: Sequence[tuple[bytes, Sequence[tuple[str, int]]]],
        findable: bool,
    ) -> None:
        """Tell all peers where the node can be reached."""
        ...


class Contacts:
    """IP addresses the node has sent something to, so that their answers prove nothing."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: OrderedDict[IpAddress, None] = OrderedDict()

    def add(self, ip: IpAddress) -> None:
        """Something is sent to ``ip``."""
        self._seen.pop(ip, None)
        while len(self._seen) >= MAX_CONTACTS:
            self._seen.popitem(last=False)
        self._seen[ip] = None

    def __contains__(self, ip: object) -> bool:
        return ip in self._seen


@dataclass(slots=True)
class _Peer:
    """A connected peer that may relay."""

    core: _core.Connection
    known: bool


@dataclass(slots=True)
class _Held:
    """A reservation, from the decision to make it to the one to give it back."""

    relay: PeerId
    since: float
    tunnel: Tunnel | None = None
    reserved: bool = False
    down_since: float | None = None
    failures: int = 0
    lost_at: float | None = None
    address: str = ""
    carrier: Carrier = "h3"
    families: frozenset[Family] = frozenset()


class Relaying:
    """Keeps the reservations of one node.

    Args:
        me: PeerId of the node.
        core: its endpoint.
        wait: awaits a ``poll_*`` method of the core.
        tunnels: its tunnels.
        policy: chooses relays.
        wanted: reservations to hold while they are needed; 0 for a node nobody is to find.
        local: what the node knows about its addresses.
        contacts: whom it has sent something.
        emit: takes the events.
        recorder: counts reservations.
    """

    def __init__(
        self,
        me: PeerId,
        core: Core,
        wait: Waiter,
        *,
        tunnels: Tunnels,
        policy: RelayPolicy,
        wanted: int,
        local: LocalView,
        contacts: Contacts,
        emit: Callable[[Event], None],
        recorder: Recorder,
    ) -> None:
        self._recorder = recorder
        self._me = me
        self._core = core
        self._wait = wait
        self._tunnels = tunnels
        self._policy = policy
        self._wanted = wanted
        self._local = local
        self._contacts = contacts
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._peers: dict[PeerId, _Peer] = {}
        self._held: dict[PeerId, _Held] = {}
        self._scores = Scores()
        self._evidence = Evidence()
        self._probed: dict[SocketAddress, int] = {}
        self._probes: set[asyncio.Task[None]] = set()
        self._announced: object = None
        self._changed = asyncio.Event()

    @property
    def reachability(self) -> Reachability:
        """What the evidence says by now."""
        return judge(
            Surroundings(
                host=self._local.host_addresses(),
                external=self._local.observed.candidates(),
                nat=self._local.nat(),
                on_link=self._local.interfaces,
                udp_blocked=self._udp_blocked(),
            ),
            self._evidence,
        )

    @property
    def reservations(self) -> int:
        """Reservations held now."""
        return sum(held.reserved for held in self._held.values())

    # What happens

    def arrived(self, core: _core.Connection, *, known: bool) -> None:
        """A peer is connected; ``known``: the user named it."""
        peer_id = PeerId(core.peer_id)
        path = next((path for path in core.paths() if path.current), core.first_path)
        if not core.outbound and path is not None and path.method == "direct":
            remote = from_core(*path.remote)
            if remote.ip not in self._contacts:
                inbound = Inbound(remote, self._loop.time())
                self._evidence = self._evidence.with_inbound(inbound)
        if "relay" in core.capabilities:
            self._peers[peer_id] = _Peer(core, known)
        self.changed()

    def left(self, peer_id: PeerId) -> None:
        """The last connection to a peer has ended."""
        self._peers.pop(peer_id, None)
        self.changed()

    def changed(self) -> None:
        """Something else changed: the own addresses, a tunnel."""
        self._changed.set()

    def address_gone(self, address: SocketAddress) -> None:
        """Nobody sees the node at ``address`` any more: what was proved there is void."""
        self._probed.pop(address, None)
        self._evidence = self._evidence.without(6 if address.version == 6 else 4)
        self.changed()

    def network_changed(self) -> None:
        """The node is somewhere else."""
        self._evidence = Evidence()
        self._probed.clear()
        self.changed()

    # What is done about it

    async def run(self) -> None:
        """Keep the reservations and tell peers of them, until cancelled."""
        try:
            while True:
                self._changed.clear()
                again_at = self._decide()
                self._announce()
                try:
                    async with asyncio.timeout_at(again_at):
                        await self._changed.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(SETTLE)
        finally:
            for task in self._probes:
                task.cancel()
            if self._probes:
                await asyncio.wait(self._probes)

    def _decide(self) -> float | None:
        now = self._loop.time()
        self._look(now)
        reachability = self.reachability
        needed = self._wanted if reachability.needs_reservation else 0
        decision = self._policy.decide(
            RelaySituation(
                me=self._me,
                candidates=tuple(self._candidates()),
                reservations=tuple(self._reservations()),
                now=now,
                wanted=needed,
                cover=reachability.cover,
            )
        )
        if decision.reserve or decision.release:
            logger.info("reachability: %s", reachability)
        for relay in decision.release:
            self._release(relay)
        for relay in decision.reserve:
            self._reserve(relay, now)
        outages = [
            held.down_since + OUTAGE for held in self._held.values() if held.down_since is not None
        ]
        return min((at for at in (*outages, decision.again_at) if at is not None), default=None)

    def _candidates(self) -> Iterable[RelayCandidate]:
        for peer_id, peer in self._peers.items():
            path = next((path for path in peer.core.paths() if path.current), None)
            if path is None or peer.core.close_reason is not None:
                continue
            held = self._held.get(peer_id)
            yield RelayCandidate(
                peer_id,
                addresses=(from_core(*path.remote),),
                rtt=path.rtt,
                score=self._scores.of(peer_id, "relay"),
                families=held.families if held is not None else frozenset(),
                carriers=frozenset((held.carrier,))
                if held is not None and held.address
                else frozenset(),
                known=peer.known,
            )

    def _reservations(self) -> Iterable[Reservation]:
        for held in self._held.values():
            if held.lost_at is not None:
                yield Reservation(held.relay, "lost", held.lost_at, None, held.failures)
            else:
                rtt = None if held.tunnel is None else held.tunnel.core.rtt
                state: ReservationState = "reserved" if held.reserved else "requested"
                yield Reservation(held.relay, state, held.since, rtt, held.failures)

    def _reserve(self, relay: PeerId, now: float) -> None:
        held = self._held.get(relay)
        if held is None:
            held = self._held[relay] = _Held(relay, now)
        held.since, held.lost_at, held.reserved = now, None, False
        peer = self._peers.get(relay)
        path = None if peer is None else next((p for p in peer.core.paths() if p.current), None)
        if path is None:
            self._failed(held, now)
            return
        address = from_core(*path.remote)
        # A path through our own tunnel shows that UDP does not get there.
        target = Target(
            HostPort(address.host, address.port), (address,), relay, not path.tunnelled, path.rtt
        )
        try:
            held.tunnel = self._tunnels.hold(target, self)
        except TunnelFailed as error:
            logger.info("no reservation at %s: %s", relay, error)
            self._failed(held, now)
            return
        self._look(now)

    def _release(self, relay: PeerId) -> None:
        held = self._held.pop(relay, None)
        if held is None:
            return
        if held.tunnel is not None:
            self._tunnels.release(held.tunnel, self)
            if not held.tunnel.holders:
                self._tunnels.close(held.tunnel)
        if held.reserved:
            self._lost(held)

    def _look(self, now: float) -> None:
        """Take in what became of the tunnels."""
        for held in self._held.values():
            tunnel = held.tunnel
            if tunnel is None or held.lost_at is not None:
                continue
            if tunnel.up:
                self._is_up(held, tunnel, now)
            elif tunnel.ended:
                self._failed(held, now)
            elif held.reserved:
                held.reserved, held.down_since = False, now
                self._lost(held)
            elif held.down_since is not None and now >= held.down_since + OUTAGE:
                self._failed(held, now)
        for held in [held for held in self._held.values() if self._is_forgettable(held)]:
            del self._held[held.relay]

    def _is_up(self, held: _Held, tunnel: Tunnel, now: float) -> None:
        public = tunnel.public
        address = str(next((a for a in public if a.version == 6), public[0])) if public else ""
        if not held.reserved:
            if held.down_since is None:
                held.since = now
            held.reserved, held.down_since = True, None
            self._scores.record(held.relay, "relay", True, now)
        elif held.address == address:
            return
        held.address, held.carrier = address, _carrier(tunnel)
        held.families = frozenset(6 if a.version == 6 else 4 for a in public)
        self._recorder.reservation(held.carrier, "reserved")
        self._emit(Relay(held.relay, address, held.carrier, "reserved"))
        self._probe(held.relay, tunnel)

    def _failed(self, held: _Held, now: float) -> None:
        up_until = now if held.down_since is None else held.down_since
        was_up = held.reserved or held.down_since is not None
        lasted = was_up and up_until - held.since >= STABLE_AFTER
        held.failures = 1 if lasted else held.failures + 1
        held.lost_at = now
        self._scores.record(held.relay, "relay", False, now)
        if held.reserved:
            self._lost(held)
        elif not was_up:
            self._recorder.reservation(held.carrier, "failed")
        held.reserved, held.down_since = False, None
        if held.tunnel is not None:
            self._tunnels.release(held.tunnel, self)
            if not held.tunnel.holders:
                self._tunnels.close(held.tunnel)
            held.tunnel = None

    def _lost(self, held: _Held) -> None:
        self._recorder.reservation(held.carrier, "lost")
        self._emit(Relay(held.relay, held.address, held.carrier, "lost"))

    def _is_forgettable(self, held: _Held) -> bool:
        return held.lost_at is not None and held.relay not in self._peers

    # Evidence

    def _probe(self, relay: PeerId, tunnel: Tunnel) -> None:
        """Send something to ourselves through the relay, for each address we may have outside."""
        served = {address.version for address in tunnel.public}
        seen = self._local.observed.candidates()
        # Peers may have seen one family only.
        own = [
            a for a in self._local.host_addresses() if a.version not in {s.version for s in seen}
        ]
        for external in (*seen, *own):
            if external.version not in served or external.scope is not Scope.GLOBAL:
                continue
            if self._probed.get(external, 0) >= MAX_PROBES:
                continue
            self._probed[external] = self._probed.get(external, 0) + 1
            task = asyncio.create_task(
                self._probe_one(relay, tunnel, external), name=f"anyreach-probe {external}"
            )
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)

    async def _probe_one(self, relay: PeerId, tunnel: Tunnel, external: SocketAddress) -> None:
        dial = self._core.dial(
            to_core(external), external.port, None, PROBE_SECONDS, via=tunnel.core, relayed=False
        )
        reason = "connected"
        try:
            await self._wait(dial.poll)
        except _core.DialFailed as error:
            reason = error.args[0]
        finally:
            dial.cancel()
        if reason in ("closed", "cancelled"):
            return  # the tunnel went
        remote = tunnel.core.remote
        probe = SelfProbe(
            6 if external.version == 6 else 4,
            relay,
            # Nobody else has this node's key: who answers as this node is this node.
            arrived=reason == "self",
            at=self._loop.time(),
            contacted=remote is None or from_core(*remote).ip in self._contacts,
        )
        self._evidence = self._evidence.with_probe(probe)
        if not probe.arrived and not tunnel.ended:
            self._probe(relay, tunnel)
        self.changed()

    def _udp_blocked(self) -> bool:
        paths = [path for peer in self._peers.values() for path in peer.core.paths()]
        return bool(paths) and all(path.method == "relayed" for path in paths)

    # Telling

    def _announce(self) -> None:
        direct = tuple((to_core(a), a.port) for a in self._local.offer() if _tellable(a))
        bound = tuple(
            (bytes(held.relay), tuple((a.host, a.port) for a in held.tunnel.public))
            for held in self._held.values()
            if held.reserved and held.tunnel is not None
        )
        findable = self._wanted > 0
        if (direct, bound, findable) != self._announced:
            self._announced = (direct, bound, findable)
            self._core.announce(direct, bound, findable)


def _tellable(address: SocketAddress) -> bool:
    """Whether an address means anything to somebody else; zones do not."""
    return address.scope.dialable and address.scope not in (Scope.LINK_LOCAL, Scope.LOOPBACK)


def _carrier(tunnel: Tunnel) -> Carrier:
    match tunnel.carrier:
        case "h2":
            return "h2"
        case "h2-proxy":
            return "h2-proxy"
        case _:
            return "h3"
