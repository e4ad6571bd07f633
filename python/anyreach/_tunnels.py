"""The tunnels of a node: one per relay, shared by whoever needs one, closed when nobody does.

The core keeps a tunnel up once it was up. Here is who asked for it, which carriers to try, and how
the answer is told.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from anyreach._local import from_core, to_core
from anyreach.carriers import SECOND_BEST_SECONDS, CarrierMemory, better_than, carrier_plan
from anyreach.peer import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from anyreach import _core
    from anyreach._flow import Waiter
    from anyreach._proving import Contacts
    from anyreach.addresses import HostPort, IpMode, SocketAddress
    from anyreach.carriers import Carrier, NetworkKey
    from anyreach.metrics import Recorder
    from anyreach.proxies import ProxySettings

__all__ = ["Target", "Tunnel", "TunnelFailed", "Tunnels"]

logger = logging.getLogger(__name__)

MAX_TUNNELS: Final = 16
"""Tunnels of one node: its reservations, a replacement each, and relays of some peers in other
networks. Each costs a connection and a socket at the relay."""

PARTING_SECONDS: Final = 1.0
"""Seconds the last packets of the connections inside have to leave through their tunnels, at most.
It takes microseconds, but the threads of a process under full load may not run for some hundred
milliseconds; whoever closes a node whose carrier is stuck should not wait longer."""

_PARTING_LOOK: Final = 0.005
"""Seconds between two looks at whether they have left: nothing announces it."""

SWEEP_SECONDS: Final = 15.0
"""How often tunnels nobody needs any more are looked for."""

IDLE_SECONDS: Final = 60.0
"""How long a tunnel nobody holds is kept: whoever dialed through it may dial again."""


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def open_tunnel(
        self,
        *,
        peer_id: bytes | None,
        host: str,
        port: int,
        udp: list[tuple[str, int]],
        tcp: list[tuple[str, int]],
        plan: tuple[tuple[Carrier, float], ...],
        proxy: str | None,
        ca_file: str | None,
        allow_tls_inspection: bool,
    ) -> _core.Tunnel:
        """Start a tunnel."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A relay to open a tunnel to.

    Attributes:
        host: as it was named, for HTTP proxies.
        addresses: where it is; may be empty if a proxy resolves names.
        peer_id: who it is, if that is known.
        udp: whether HTTP/3 is worth a try.
        rtt: seconds to it and back, if measured.
    """

    host: HostPort
    addresses: tuple[SocketAddress, ...]
    peer_id: PeerId | None = None
    udp: bool = True
    rtt: float | None = None


class TunnelFailed(Exception):
    """No carrier brought a tunnel up.

    Attributes:
        attempts: (carrier, address, reason, detail, seconds) of each.
    """

    def __init__(self, attempts: Iterable[tuple[str, str, str, str, float]]) -> None:
        self.attempts = tuple(attempts)
        super().__init__("; ".join(f"{a[0]} {a[1]}: {a[3]}" for a in self.attempts) or "no carrier")


@dataclass(eq=False, slots=True)
class Tunnel:
    """A tunnel in the making, up, or down for the moment.

    Attributes:
        core: the core's.
        relay: who is at the end; ``None`` until it is known.
        holders: who wants it to stay. Whoever holds it removes itself in the end.
        idle_since: loop time since when nobody holds it.
        improved_at: loop time when a better carrier was looked for last.
    """

    core: _core.Tunnel
    relay: PeerId | None
    holders: set[object] = field(default_factory=set)
    idle_since: float = 0.0
    improved_at: float = 0.0
    task: asyncio.Task[None] | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def up(self) -> bool:
        """Whether packets get through now."""
        return self.core.state == "up"

    @property
    def down(self) -> bool:
        """Whether it was up, and may be again."""
        return self.core.state == "down"

    @property
    def ended(self) -> bool:
        """Whether it will not come back."""
        return self.core.state == "closed"

    @property
    def carrier(self) -> Carrier | None:
        """What it runs over; ``None`` before the first was up."""
        return self.core.carrier

    @property
    def public(self) -> tuple[SocketAddress, ...]:
        """This node's addresses at the relay."""
        return tuple(from_core(*address) for address in self.core.public_addresses)

    @property
    def node(self) -> tuple[SocketAddress, ...]:
        """The relay's own addresses as a node, as they are reached through the tunnel."""
        return tuple(from_core(*address) for address in self.core.node_addresses)

    @property
    def sent(self) -> int:
        """Bytes sent through it so far."""
        return self.core.counters()["sent_bytes"]

    def changed(self) -> None:
        """Wake those who wait for it."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def ready(self) -> None:
        """Wait until it is up.

        Raises:
            TunnelFailed: it never will be.
        """
        while not self.up:
            if self.ended:
                raise TunnelFailed(self.core.attempts)
            await self._changed.wait()


class Tunnels:
    """All tunnels of one node.

    Args:
        core: opens them.
        wait: awaits a ``poll_*`` method of the core.
        mode: the families of the node's socket.
        proxies: the HTTP proxy, if there is one.
        ca_file: certificates that may vouch for relays with an ordinary one.
        allow_tls_inspection: whether a proxy may break the TLS to the relay.
        network: names the present network.
        used: whether connections go through a tunnel.
        changed: told about each change of a tunnel.
        contacts: told whom something is sent to.
        recorder: counts what they carry.
    """

    def __init__(
        self,
        core: Core,
        wait: Waiter,
        *,
        mode: IpMode,
        proxies: ProxySettings,
        ca_file: str | None,
        allow_tls_inspection: bool,
        network: Callable[[], NetworkKey],
        used: Callable[[Tunnel], bool],
        changed: Callable[[Tunnel], None],
        contacts: Contacts,
        recorder: Recorder,
    ) -> None:
        self._core = core
        self._wait = wait
        self._mode = mode
        self._proxies = proxies
        self._ca_file = ca_file
        self._allow_tls_inspection = allow_tls_inspection
        self._network = network
        self._used = used
        self._told = changed
        self._contacts = contacts
        self._recorder = recorder
        self._memory = CarrierMemory()
        self._tunnels: dict[PeerId | HostPort, Tunnel] = {}
        self._closed = False

    def has_proxy(self, host: HostPort) -> bool:
        """Whether a proxy stands between this node and ``host``."""
        return self._proxies.for_host(host.host, host.port) is not None

    def find(self, relay: PeerId) -> Tunnel | None:
        """The tunnel to ``relay``, in whatever state."""
        return next((t for t in self if t.relay == relay and not t.ended), None)

    def __iter__(self) -> Iterator[Tunnel]:
        return iter(tuple(dict.fromkeys(self._tunnels.values())))

    def hold(self, target: Target, holder: object) -> Tunnel:
        """The tunnel to ``target``, opened if there is none, kept until :meth:`release`.

        Raises:
            TunnelFailed: there are too many, or none can be opened.
        """
        for ended in [tunnel for tunnel in self if tunnel.ended]:
            self._forget(ended)  # it has not been told of yet
        tunnel = self.find(target.peer_id) if target.peer_id is not None else None
        tunnel = tunnel or self._tunnels.get(target.host)
        if tunnel is None:
            tunnel = self._open(target)
        tunnel.holders.add(holder)
        return tunnel

    def release(self, tunnel: Tunnel, holder: object) -> None:
        """``holder`` needs the tunnel no longer."""
        tunnel.holders.discard(holder)
        if not tunnel.holders:
            tunnel.idle_since = asyncio.get_running_loop().time()

    def give_up(self, tunnel: Tunnel, holder: object) -> None:
        """As :meth:`release`, and close it at once if nobody else needs it."""
        self.release(tunnel, holder)
        if not self._is_needed(tunnel):
            self.close(tunnel)

    def _is_needed(self, tunnel: Tunnel) -> bool:
        return bool(tunnel.holders) or self._used(tunnel)

    def close(self, tunnel: Tunnel) -> None:
        """Close it for everybody."""
        tunnel.core.close()
        self._forget(tunnel)

    async def run(self) -> None:
        """Close those nobody needs any more, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()

    def count(self) -> None:
        """Have the recorder count what was carried until now."""
        for tunnel in self:
            self._count(tunnel)

    def sweep(self) -> None:
        """Close what nobody has needed for a while, and look for UDP again where it was blocked."""
        now = asyncio.get_running_loop().time()
        for tunnel in self:
            if self._is_needed(tunnel):
                tunnel.idle_since = now
                self._improve(tunnel, now)
            elif now - tunnel.idle_since > IDLE_SECONDS:
                self.close(tunnel)

    def _improve(self, tunnel: Tunnel, now: float) -> None:
        carrier = tunnel.carrier
        better = () if carrier is None else better_than(carrier)
        if better and now - tunnel.improved_at > SECOND_BEST_SECONDS:
            tunnel.improved_at = now
            tunnel.core.improve([(carrier, 0.0) for carrier in better])

    def network_changed(self) -> None:
        """Have every carrier looked at: it may be bound to an address that has gone."""
        self._memory.entered(self._network())
        for tunnel in self:
            tunnel.core.probe()

    async def end(self, part: Callable[[], None] = lambda: None) -> None:
        """Close all.

        Args:
            part: closes connections; called while there are tunnels to tell their peers through.
        """
        await self._let_out(part)
        tasks = self.abandon()
        if tasks:
            await asyncio.wait(tasks)

    async def _let_out(self, part: Callable[[], None]) -> None:
        """Have ``part`` send something through the tunnels in use, and wait until it is out."""
        sent = {tunnel: tunnel.sent for tunnel in self if tunnel.up and self._used(tunnel)}
        if not sent:
            return
        part()
        deadline = asyncio.get_running_loop().time() + PARTING_SECONDS
        while any(tunnel.sent == before for tunnel, before in sent.items()):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_PARTING_LOOK)
        await asyncio.sleep(_PARTING_LOOK)  # what was counted is on its way

    def abandon(self) -> list[asyncio.Task[None]]:
        """Close all without waiting; what is about to end."""
        self._closed = True
        tasks = [tunnel.task for tunnel in self if tunnel.task is not None]
        for tunnel in self:
            self.close(tunnel)
        for task in tasks:
            task.cancel()
        return tasks

    def _open(self, target: Target) -> Tunnel:
        if self._closed:
            raise TunnelFailed((("", str(target.host), "closed", "the node was closed", 0.0),))
        if len(self._tunnels) >= MAX_TUNNELS and not self._evict():
            detail = f"there are {MAX_TUNNELS} tunnels already"
            raise TunnelFailed((("", str(target.host), "limit", detail, 0.0),))
        proxy = self._proxies.for_host(target.host.host, target.host.port)
        addresses = [(to_core(a), a.port) for a in target.addresses if self._mode.allows(a.ip)]
        plan = carrier_plan(
            proxy=proxy is not None,
            direct_tcp=bool(addresses),
            udp=target.udp and bool(addresses),
            rtt=target.rtt,
            remembered=self._memory.winner(self._network(), asyncio.get_running_loop().time()),
        )
        if proxy is not None and self._allow_tls_inspection and target.peer_id is None:
            detail = "where TLS is inspected only a PeerId tells relays apart: give ID@HOST:PORT"
            raise TunnelFailed((("h2-proxy", str(target.host), "tls", detail, 0.0),))
        if not addresses and proxy is None:
            detail = "no address of it is known that this node could reach"
            raise TunnelFailed((("", str(target.host), "family", detail, 0.0),))
        for address in target.addresses:  # if not now, UDP is tried later
            self._contacts.add(address.ip)
        core = self._core.open_tunnel(
            peer_id=None if target.peer_id is None else bytes(target.peer_id),
            host=target.host.host,
            port=target.host.port,
            udp=addresses,
            tcp=addresses,
            plan=plan,
            proxy=None if proxy is None else proxy.url,
            ca_file=self._ca_file,
            allow_tls_inspection=self._allow_tls_inspection,
        )
        tunnel = Tunnel(core, target.peer_id, improved_at=asyncio.get_running_loop().time())
        key = target.peer_id if target.peer_id is not None else target.host
        self._tunnels[key] = tunnel
        tunnel.task = asyncio.create_task(
            self._watch(key, tunnel), name=f"anyreach-tunnel {target.host}"
        )
        return tunnel

    def _evict(self) -> bool:
        idle = [tunnel for tunnel in self if not self._is_needed(tunnel)]
        if idle:
            self.close(min(idle, key=lambda tunnel: tunnel.idle_since))
        return bool(idle)

    async def _watch(self, key: PeerId | HostPort, tunnel: Tunnel) -> None:
        seen, over = 0, False
        with suppress(asyncio.CancelledError):
            while not over:
                seen = await self._wait(tunnel.core.poll_change, seen)
                if tunnel.relay is None and tunnel.core.relay is not None:
                    tunnel.relay = PeerId(tunnel.core.relay)
                over = tunnel.ended
                if tunnel.up:
                    self._remember(tunnel)
                elif over:
                    self._forget(tunnel)
                tunnel.changed()
                self._told(tunnel)
        logger.debug("tunnel to %s ended", key)

    def _remember(self, tunnel: Tunnel) -> None:
        if tunnel.carrier is not None:
            now = asyncio.get_running_loop().time()
            self._memory.won(self._network(), tunnel.carrier, now)

    def _count(self, tunnel: Tunnel) -> None:
        counters = tunnel.core.counters()
        sent, received = counters["sent_bytes"], counters["received_bytes"]
        self._recorder.relayed("client", tunnel.core.number, sent, received)

    def _forget(self, tunnel: Tunnel) -> None:
        """It has ended: nobody can have it any more, and what it carried is counted."""
        keys = [key for key, entry in self._tunnels.items() if entry is tunnel]
        for key in keys:
            del self._tunnels[key]
        if keys:
            self._count(tunnel)
            self._recorder.tunnel_ended("client", tunnel.core.number)
        tunnel.changed()
