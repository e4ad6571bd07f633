"""Evidence whether others can reach this node by themselves: who came in, and what we sent us.

:class:`Proving` collects it, :mod:`anyreach.reachability` judges it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from anyreach import _core
from anyreach._local import from_core, to_core
from anyreach._paths import current
from anyreach.addresses import Scope
from anyreach.reachability import (
    Evidence,
    Inbound,
    Reachability,
    SelfProbe,
    Surroundings,
    judge,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach._flow import Waiter
    from anyreach._local import LocalView
    from anyreach._tunnels import Tunnel
    from anyreach.addresses import IpAddress, SocketAddress
    from anyreach.peer import PeerId

__all__ = ["MAX_CONTACTS", "MAX_PROBES", "Contacts", "Proving", "has_contacted"]

MAX_CONTACTS: Final = 4096
"""IP addresses remembered as contacted. One that was forgotten could only be taken for a
stranger's, and its NAT mapping is long gone by then."""

PROBE_SECONDS: Final = 3.0
"""How long a packet to the node itself may take: a handshake across the world and back, with one
repetition."""

MAX_PROBES: Final = 4
"""Probes of one address of the node: enough to prove something twice through two relays."""


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


class Contacts:
    """IP addresses the node has sent something to, so that their answers prove nothing.

    Single ports are noted only where somebody means to find out what gets in from there.
    """

    __slots__ = ("_ports", "_seen")

    def __init__(self) -> None:
        self._seen: OrderedDict[IpAddress, None] = OrderedDict()
        self._ports: OrderedDict[SocketAddress, None] = OrderedDict()

    def add(self, ip: IpAddress) -> None:
        """Something is sent to ``ip``."""
        _remember(self._seen, ip)

    def add_port(self, address: SocketAddress) -> None:
        """Something is sent to ``address``, from where things are sent to ourselves."""
        self.add(address.ip)
        _remember(self._ports, address)

    def knows(self, address: SocketAddress) -> bool:
        """Whether something was sent to this very port."""
        return address in self._ports

    def __contains__(self, ip: object) -> bool:
        return ip in self._seen


_T = TypeVar("_T")


def _remember(known: OrderedDict[_T, None], entry: _T) -> None:
    known.pop(entry, None)
    while len(known) >= MAX_CONTACTS:
        known.popitem(last=False)
    known[entry] = None


def has_contacted(contacts: Contacts, tunnel: Tunnel, version: int) -> bool:
    """Whether what comes from our addresses at a relay comes from an IP address that the node has
    sent something to before, from its own socket."""
    remote = tunnel.core.remote
    if remote is None:
        return True  # behind a proxy; who knows
    sources = (*(address.ip for address in tunnel.public), from_core(*remote).ip)
    return any(ip in contacts for ip in sources if ip.version == version)


class Proving:
    """Collects the evidence of one node.

    Args:
        core: its endpoint.
        wait: awaits a ``poll_*`` method of the core.
        local: what the node knows about its addresses.
        contacts: whom it has sent something.
        changed: called when there is more evidence.
    """

    def __init__(
        self,
        core: Core,
        wait: Waiter,
        *,
        local: LocalView,
        contacts: Contacts,
        changed: Callable[[], None],
    ) -> None:
        self._core = core
        self._wait = wait
        self._local = local
        self._contacts = contacts
        self._changed = changed
        # Through whom each address was probed, as often as it was.
        self._probed: dict[SocketAddress, list[PeerId]] = {}
        self._probes: dict[asyncio.Task[None], SocketAddress] = {}

    def reachability(self, *, udp_blocked: bool) -> Reachability:
        """What the evidence says by now; ``udp_blocked``: whether relays answer over TCP only."""
        return judge(
            Surroundings(
                host=self._local.host_addresses(),
                external=self._local.observed.candidates(),
                nat=self._local.nat(),
                on_link=self._local.interfaces,
                udp_blocked=udp_blocked,
            ),
            self._local.evidence,
        )

    def arrived(self, core: _core.Connection) -> None:
        """A peer is connected. That it came by itself proves something, unless we lured it."""
        path = current(core.paths()) or core.first_path
        if core.outbound or path is None or path.method != "direct":
            return
        remote = from_core(*path.remote)
        if remote.ip not in self._contacts:
            now = asyncio.get_running_loop().time()
            self._local.evidence = self._local.evidence.with_inbound(Inbound(remote, now))

    def address_gone(self, address: SocketAddress) -> None:
        """Nobody sees the node at ``address`` any more: what was proved there is void."""
        self._probed.pop(address, None)
        self._cancel(address)
        self._local.evidence = self._local.evidence.without(6 if address.version == 6 else 4)

    def network_changed(self) -> None:
        """The node is somewhere else."""
        self._local.evidence = Evidence()
        self._probed.clear()
        for address in set(self._probes.values()):
            self._cancel(address)

    def probe(self, relay: PeerId, tunnel: Tunnel) -> None:
        """Send something to ourselves through the relay, for each address we may have outside.

        Once for each address; again, through the same relay, only where nothing arrived.
        """
        served = {address.version for address in tunnel.public}
        seen = self._local.observed.candidates()
        # Peers may have seen one family only.
        known = {address.version for address in seen}
        own = [a for a in self._local.host_addresses() if a.version not in known]
        for external in (*seen, *own):
            if external.version not in served or external.scope is not Scope.GLOBAL:
                continue
            if relay not in self._probed.get(external, ()):
                self._start(relay, tunnel, external)

    async def end(self) -> None:
        """Give up the probes under way."""
        probes = tuple(self._probes)
        for task in probes:
            task.cancel()
        if probes:
            await asyncio.wait(probes)

    def _start(self, relay: PeerId, tunnel: Tunnel, external: SocketAddress) -> None:
        probed = self._probed.setdefault(external, [])
        if len(probed) >= MAX_PROBES:
            return
        probed.append(relay)
        task = asyncio.create_task(
            self._probe(relay, tunnel, external), name=f"anyreach-probe {external}"
        )
        self._probes[task] = external
        task.add_done_callback(self._probes.pop)

    def _cancel(self, address: SocketAddress) -> None:
        for task, probed in self._probes.items():
            if probed == address:
                task.cancel()

    async def _probe(self, relay: PeerId, tunnel: Tunnel, external: SocketAddress) -> None:
        # Looked at before the packet may come back: its answer is sent to the relay.
        contacted = has_contacted(self._contacts, tunnel, external.version)
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
        arrived = reason == "self"
        bound = (address for address in tunnel.public if address.version == external.version)
        if arrived and any(map(self._contacts.knows, bound)):
            return  # it was asked for
        probe = SelfProbe(
            6 if external.version == 6 else 4,
            relay,
            # Nobody else has this node's key: who answers as this node is this node.
            arrived=arrived,
            at=asyncio.get_running_loop().time(),
            contacted=contacted,
        )
        self._local.evidence = self._local.evidence.with_probe(probe)
        if not probe.arrived and not tunnel.ended:
            self._start(relay, tunnel, external)
        self._changed()
