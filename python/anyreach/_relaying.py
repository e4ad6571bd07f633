"""The node's addresses at relays: whether it needs any, at whom, and who is told.

Evidence comes in from the node (:class:`Relaying` is told of peers, addresses and tunnels), the
judgement is that of :mod:`anyreach.reachability`, the choice that of the relay policy.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from anyreach import _proving
from anyreach._local import from_core, to_core
from anyreach._paths import current
from anyreach._proving import Proving
from anyreach._tunnels import Target, Tunnel, TunnelFailed
from anyreach.addresses import HostPort, Scope
from anyreach.backoff import STABLE_AFTER
from anyreach.events import Relay
from anyreach.peer import PeerId
from anyreach.relays import RelayCandidate, RelaySituation, Reservation
from anyreach.scores import Scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from anyreach import _core
    from anyreach._flow import Waiter
    from anyreach._local import LocalView
    from anyreach._proving import Contacts
    from anyreach._tunnels import Tunnels
    from anyreach.addresses import SocketAddress
    from anyreach.carriers import Carrier
    from anyreach.events import Event
    from anyreach.metrics import Recorder
    from anyreach.reachability import Family, Reachability
    from anyreach.relays import RelayPolicy, ReservationState

__all__ = ["OUTAGE", "Relaying"]

logger = logging.getLogger(__name__)

OUTAGE: Final = 10.0
"""Seconds a tunnel may be down before its reservation is given up. The core reconnects it, and the
connections inside go on: a restarted router or a change of network takes a few seconds."""

SETTLE: Final = 0.02
"""Seconds to wait for what else changes at the same moment, before deciding and telling peers."""


class Core(_proving.Core, Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def announce(
        self,
        direct: Sequence[tuple[str, int]],
        relayed: Sequence[tuple[bytes, Sequence[tuple[str, int]]]],
        findable: bool,
        load: int | None,
    ) -> None:
        """Tell all peers where the node can be reached, and how busy it is as a relay."""
        ...


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
    granted: bool = False
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
        wanted: reservations to hold while they are needed.
        direct: whether others may reach the node without relays; if not, they are always needed.
        findable: whether peers may tell others where the node is.
        load: how busy the node is as a relay, in percent; ``None`` if it is none.
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
        direct: bool,
        findable: bool,
        load: Callable[[], int | None],
        local: LocalView,
        contacts: Contacts,
        emit: Callable[[Event], None],
        recorder: Recorder,
    ) -> None:
        self._recorder = recorder
        self._me = me
        self._core = core
        self._tunnels = tunnels
        self._policy = policy
        self._wanted = wanted
        self._direct = direct
        self._findable = findable
        self._load = load
        self._local = local
        self._proving = Proving(core, wait, local=local, contacts=contacts, changed=self.changed)
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._peers: dict[PeerId, _Peer] = {}
        self._held: dict[PeerId, _Held] = {}
        self._scores = Scores()
        self._announced: object = None
        self._changed = asyncio.Event()

    @property
    def reachability(self) -> Reachability:
        """What the evidence says by now."""
        paths = [path for peer in self._peers.values() for path in peer.core.paths()]
        blocked = bool(paths) and all(path.method == "relayed" for path in paths)
        return self._proving.reachability(udp_blocked=blocked)

    @property
    def reservations(self) -> int:
        """Reservations held now."""
        return sum(held.reserved for held in self._held.values())

    # What happens

    def arrived(self, core: _core.Connection, *, known: bool) -> None:
        """A peer is connected; ``known``: the user named it."""
        peer_id = PeerId(core.peer_id)
        self._proving.arrived(core)
        # One that came to us, or that others relay to, may be behind a NAT: what it lends would
        # lead nowhere.
        path = current(core.paths()) or core.first_path
        alone = path is not None and (path.method == "direct" or path.via == core.peer_id)
        trusted = (core.outbound and alone) or known or peer_id in self._peers
        if "relay" in core.capabilities and trusted:
            self._peers[peer_id] = _Peer(core, known)
        self.changed()

    def left(self, peer_id: PeerId) -> None:
        """The last connection to a peer has ended."""
        self._peers.pop(peer_id, None)
        self.changed()

    def changed(self) -> None:
        """Something else changed, such as the own addresses."""
        self._changed.set()

    def tunnels_changed(self) -> None:
        """A tunnel came up, went down, or has other addresses.

        Peers are told at once: one that is dialed through the tunnel must not take the address it
        sees for the node's own.
        """
        self._announce()
        self.changed()

    def address_gone(self, address: SocketAddress) -> None:
        """Nobody sees the node at ``address`` any more: what was proved there is void."""
        self._proving.address_gone(address)
        self.changed()

    def network_changed(self) -> None:
        """The node is somewhere else."""
        self._proving.network_changed()
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
            await self._proving.end()

    def _decide(self) -> float | None:
        now = self._loop.time()
        self._look(now)
        reachability = self.reachability
        needed = not self._direct or reachability.needs_reservation
        decision = self._policy.decide(
            RelaySituation(
                me=self._me,
                candidates=tuple(self._candidates()),
                reservations=tuple(self._reservations()),
                now=now,
                wanted=self._wanted if needed else 0,
                cover=reachability.cover if self._direct else frozenset((4, 6)),
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
            path = current(peer.core.paths())
            if path is None or peer.core.close_reason is not None:
                continue
            if path.method == "relayed" and path.via != bytes(peer_id):
                continue  # it cannot be reached from outside itself
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
                load=peer.core.relay_load,
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
        held.since, held.lost_at, held.reserved, held.granted = now, None, False, False
        peer = self._peers.get(relay)
        path = None if peer is None else current(peer.core.paths())
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
        if held.tunnel.down:
            held.down_since = now  # somebody else has it still; it gets no longer than after a loss
        self._look(now)

    def _release(self, relay: PeerId) -> None:
        held = self._held.pop(relay, None)
        if held is None:
            return
        self._give_up(held)
        if held.reserved:
            self._lost(held)

    def _give_up(self, held: _Held) -> None:
        if held.tunnel is not None:
            self._tunnels.give_up(held.tunnel, self)
            held.tunnel = None

    def _look(self, now: float) -> None:
        """Take in what became of the tunnels."""
        for held in self._held.values():
            tunnel = held.tunnel
            if tunnel is None or held.lost_at is not None:
                continue
            if tunnel.up:
                self._is_up(held, tunnel, now)
                self._proving.probe(held.relay, tunnel)
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
            held.reserved, held.granted, held.down_since = True, True, None
            self._scores.record(held.relay, "relay", True, now)
        elif held.address == address:
            return
        held.address, held.carrier = address, tunnel.carrier or held.carrier
        held.families = frozenset(6 if a.version == 6 else 4 for a in public)
        self._recorder.reservation(held.carrier, "reserved")
        self._emit(Relay(held.relay, address, held.carrier, "reserved"))

    def _failed(self, held: _Held, now: float) -> None:
        up_until = now if held.down_since is None else held.down_since
        lasted = held.granted and up_until - held.since >= STABLE_AFTER
        held.failures = 1 if lasted else held.failures + 1
        held.lost_at = now
        self._scores.record(held.relay, "relay", False, now)
        if held.reserved:
            self._lost(held)
        elif not held.granted:
            self._recorder.reservation(held.carrier, "failed")
        held.reserved, held.down_since = False, None
        self._give_up(held)
        self.changed()  # when it may be asked again is for the policy to say

    def _lost(self, held: _Held) -> None:
        self._recorder.reservation(held.carrier, "lost")
        self._emit(Relay(held.relay, held.address, held.carrier, "lost"))

    def _is_forgettable(self, held: _Held) -> bool:
        return held.lost_at is not None and held.relay not in self._peers

    # Telling

    def _announce(self) -> None:
        own = self._local.offer() if self._direct else ()
        direct = tuple((to_core(a), a.port) for a in own if _tellable(a))
        # Also where nothing is reserved: as long as there is a tunnel, its addresses work.
        bound = tuple(
            (bytes(tunnel.relay), tuple((a.host, a.port) for a in tunnel.public))
            for tunnel in sorted(self._tunnels, key=lambda tunnel: self not in tunnel.holders)
            if tunnel.up and tunnel.relay is not None and tunnel.public
        )
        load = self._load()
        if (direct, bound, load) != self._announced:
            self._announced = (direct, bound, load)
            self._core.announce(direct, bound, self._findable, load)


def _tellable(address: SocketAddress) -> bool:
    """Whether an address means anything to somebody else; zones do not."""
    return address.scope.dialable and address.scope not in (Scope.LINK_LOCAL, Scope.LOOPBACK)
