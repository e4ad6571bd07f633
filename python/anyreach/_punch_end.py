"""What both ends of a connection do to be punched: know their addresses, and tell the peer."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, cast

from anyreach._local import from_core, to_core
from anyreach._paths import current
from anyreach._punch_log import PunchLog
from anyreach.addresses import Scope
from anyreach.nat import NatReport
from anyreach.near import may_share, shared_prefixes
from anyreach.peer import PeerId
from anyreach.prediction import addresses as at_ports
from anyreach.prediction import predict
from anyreach.rounds import BirthdayBudget
from anyreach.trickling import for_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from anyreach import _core
    from anyreach._flow import Waiter
    from anyreach._local import LocalView
    from anyreach._nat_probe import NatProbe
    from anyreach._proving import Contacts
    from anyreach.addresses import SocketAddress
    from anyreach.candidates import CandidatePolicy
    from anyreach.events import Event
    from anyreach.metrics import Recorder
    from anyreach.nat import Behaviour
    from anyreach.ports import PortBehaviour
    from anyreach.reachability import Family
    from anyreach.trickling import Told

__all__ = ["DEPENDENT", "FEW_SECONDS", "POOL", "SPRAY", "SPRAY_SECONDS", "Core", "End", "Kit"]

logger = logging.getLogger(__name__)

DEPENDENT: Final = frozenset({"address-dependent", "address-and-port-dependent"})
"""Mappings that are others for other destinations."""

POOL: Final = 256
SPRAY: Final = 1400
"""Sockets of one side and packets of the other in a birthday attempt: 256 of 64,512 ports are hit
by 1,400 different guesses 996 times in 1,000, and 256 mappings are what the smallest NATs have."""

SPRAY_SECONDS: Final = 2.5
"""Over how long those packets are spread: at 30 KB a second they disturb no line that carries a
call, and half of all attempts are over after 0.3 seconds."""

FEW: Final = 4
FEW_SECONDS: Final = 4.0
"""Sockets that send from predicted ports, and how long they are kept: four mappings in a row are
among the predicted ones although others were made before them, and cost next to nothing."""

MAX_PEERS: Final = 256
"""Peers whose birthday attempts are counted; who was forgotten may be tried once more."""


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def open_path(
        self,
        connection: _core.Connection,
        ip: str,
        port: int,
        timeout: float,
        *,
        via: _core.Tunnel | None,
        relayed: bool,
        standby: bool,
        proved: bool = False,
    ) -> _core.PathAttempt:
        """Open one more path."""
        ...

    def set_near(self, prefixes: list[str]) -> None:
        """Networks in which addresses of peers are not refused."""
        ...

    def connections(self) -> list[_core.Connection]:
        """All connections."""
        ...


@dataclass(slots=True)
class Kit:
    """What all connections of a node need for punching.

    Attributes:
        core: the node's endpoint.
        wait: awaits a ``poll_*`` method of the core.
        local: what the node knows about its addresses.
        probe: finds out what the NAT does.
        policy: gathers candidates and pairs them.
        recorder: counts rounds, pairs and candidates.
        contacts: told whom something is sent to.
        emit: takes the events.
        birthday: whether pools and sprays may be used.
        per_hour: how often in an hour, for one peer.
    """

    core: Core
    wait: Waiter
    local: LocalView
    probe: NatProbe
    policy: CandidatePolicy
    recorder: Recorder
    contacts: Contacts
    emit: Callable[[Event], None]
    birthday: bool = True
    per_hour: int = 4
    _budgets: OrderedDict[bytes, BirthdayBudget] = field(default_factory=OrderedDict)

    def budget(self, peer_id: bytes) -> BirthdayBudget:
        """The birthday attempts for one peer, over all connections to it."""
        budget = self._budgets.pop(peer_id, None) or BirthdayBudget(self.per_hour)
        while len(self._budgets) >= MAX_PEERS:
            self._budgets.popitem(last=False)
        self._budgets[peer_id] = budget
        return budget


class End:
    """This node's end of one connection.

    Args:
        kit: what all connections share.
        core: the connection.
    """

    def __init__(self, kit: Kit, core: _core.Connection) -> None:
        self.kit = kit
        self.core = core
        self.peer_id = PeerId(core.peer_id)
        self.log = PunchLog()
        self.loop = asyncio.get_running_loop()
        self.predicted: tuple[SocketAddress, ...] = ()
        self._told: tuple[SocketAddress, ...] | None = None
        self._allowed: tuple[str, ...] = ()

    # What is known

    @property
    def rtt(self) -> float:
        """Seconds to the peer and back, by the path that carries requests now."""
        path = current(self.core.paths())
        return 0.0 if path is None else path.rtt

    @property
    def own_nat(self) -> NatReport:
        """What our NAT does."""
        return self.kit.local.nat()

    @property
    def peer_nat(self) -> NatReport | None:
        """What the peer says of its own."""
        told = self.core.peer_nat
        if told is None:
            return None
        mapping, filtering, ports, step = told
        return NatReport(
            mapping=cast("Behaviour", mapping),
            filtering=cast("Behaviour", filtering),
            ports=cast("PortBehaviour", ports),
            step=step,
        )

    def own(self) -> Told:
        """Our addresses for this peer."""
        return for_peer(
            self.kit.local.candidates(
                tuple(self._observed()), self.kit.local.mapped(), self.predicted
            ),
            shared=self._is_near(),
        )

    def outside(self, family: int = 4) -> tuple[SocketAddress, ...]:
        """Our addresses as others see them, best first."""
        return tuple(
            address
            for address in self.own().addresses
            if address.version == family and address.scope is Scope.GLOBAL
        )

    def peer_addresses(self) -> list[SocketAddress]:
        """Every address the peer is known by, but those at relays."""
        told = list(self.core.peer_candidates)
        if self.core.reach is not None:
            told += self.core.reach[0]
        return [*dict.fromkeys((*self._proved(), *(from_core(*address) for address in told)))]

    def _proved(self) -> list[SocketAddress]:
        """Where the peer has answered without a relay."""
        return [from_core(*path.remote) for path in self.core.paths() if path.method != "relayed"]

    def tell(self) -> None:
        """Give the core the addresses there are now; what is new or gone is told to the peer."""
        addresses = self.own().addresses
        if addresses != self._told and self.core.close_reason is None:
            self._told = addresses
            self.set_candidates(addresses)

    def set_candidates(self, addresses: Iterable[SocketAddress]) -> None:
        """Give the core these addresses."""
        self.core.set_candidates(plain(addresses))

    def retell(self) -> None:
        """The node is somewhere else: nothing that was predicted holds any more."""
        self.predicted = ()
        self.tell()

    # What is found out

    async def predict(self, family: Family, lead: float, count: int) -> tuple[SocketAddress, ...]:
        """Where our next new mappings will be, ``lead`` seconds from now; empty if nobody knows."""
        nat = self.own_nat.of(family)
        if nat.ports == "preserving":
            ports = {bound.port for bound in self.kit.local.bound if bound.port}
            ips = dict.fromkeys(address.ip for address in self.outside(family))
            return tuple(a for ip in ips for a in at_ports(ip, sorted(ports)))
        found = await self.kit.probe.samples(family)
        if found is None:
            return ()
        ip, samples = found
        now = self.loop.time()
        return at_ports(ip, predict(samples, now, step=nat.step, lead=lead, count=count))

    @contextmanager
    def few_sockets(self, towards: SocketAddress | None) -> Iterator[bool]:
        """New sockets that send to ``towards``, from the ports that were just predicted.

        Not without an address, or where the port of the socket is kept; then it gives false.
        """
        if towards is None or self.own_nat.of(4).ports != "sequential":
            yield False
            return
        self.kit.contacts.add(towards.ip)
        ((ip, port),) = plain([towards])
        pool = self.core.pool(ip, port, FEW)
        try:
            yield True
        finally:
            pool.close()

    def is_dependent(self) -> bool:
        """Whether our NAT maps every destination differently."""
        return self.own_nat.mapping in DEPENDENT

    def _is_near(self) -> bool:
        """Whether the peer may be on a network with us, so that it is told of addresses there.

        What it says of itself is not enough to send to such addresses.
        """
        local = self.kit.local
        prefixes = shared_prefixes(local.interfaces, local.external, self._proved())
        if prefixes != self._allowed:
            self._allowed = prefixes
            self.core.allow_near(prefixes)
        return may_share(local.interfaces, local.external, self.peer_addresses())

    def _observed(self) -> Iterable[SocketAddress]:
        """What peers see; of mappings that are for them alone only one for each IP address.

        Whoever filters by address has to know that much.
        """
        dependent = {family for family in (4, 6) if self.own_nat.of(family).mapping in DEPENDENT}
        known = {address.ip for address in self.predicted}
        for address in self.kit.local.observed.candidates():
            if address.version in dependent:
                if address.ip in known:
                    continue
                known.add(address.ip)
            yield address


def plain(addresses: Iterable[SocketAddress]) -> list[tuple[str, int]]:
    """Addresses as the core takes them; without those of interfaces that are gone."""
    found = []
    for address in addresses:
        try:
            found.append((to_core(address), address.port))
        except OSError:
            logger.debug("no interface for %s any more", address)
    return found
