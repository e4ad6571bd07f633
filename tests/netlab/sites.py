"""Sites: hosts and what is between them and the internet, of a certain kind."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .kinds import Attachment, Egress
from .machine import Machine
from .routers import LAN, PROXY_PORT, Carrier, Gateway
from .topology import (
    DUAL_STACK,
    UPLINK,
    V4_LINK_LOCAL_V6,
    V4_ONLY,
    V6_ONLY,
    Host,
    HostKind,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from .kinds import SiteKind
    from .process import Process
    from .topology import Line

__all__ = ["PROXY_PASSWORD", "PROXY_USER", "LanHost", "Proxy", "Site", "host_kind"]

_PROXY_SCRIPT: Final = str(Path(__file__).with_name("connect_proxy.py"))
_FIRST_PRIVATE: Final = 10

PROXY_USER: Final = "user"
PROXY_PASSWORD: Final = "correct horse"
"""With a space, which a URL must escape."""


def host_kind(kind: SiteKind) -> HostKind:
    """What the hosts of a site have of each family."""
    if kind.v4 is Attachment.NONE:
        return V6_ONLY
    if kind.v6 is not Attachment.NONE:
        return DUAL_STACK
    # Behind a router without IPv6 a host has a link-local address and nobody to talk to.
    return V4_LINK_LOCAL_V6 if kind.has_router else V4_ONLY


class LanHost(Machine):
    """A host in the network behind a site's router.

    Attributes:
        kind: what it has of each family.
        gateway: the router it is plugged into now.
    """

    def __init__(
        self, name: str, gateway: Gateway, kind: HostKind, *, label: str, home: Path
    ) -> None:
        super().__init__(name, label=label, home=home)
        self.kind = kind
        self.gateway = gateway
        self.sysctl(kind.v6_sysctl)
        self.ip("link set lo up")
        self._attach(gateway)

    def move(self, gateway: Gateway) -> None:
        """Unplug it and plug it in at another site: all its addresses change."""
        self.ip(f"link delete {UPLINK}")
        self._attach(gateway)

    def unplug(self) -> None:
        """Pull its cable at the router: it loses its carrier."""
        self.gateway.ip(f"link set {self._port} down")

    def plug(self) -> None:
        """Put the cable back in."""
        self.gateway.ip(f"link set {self._port} up")

    def interface_down(self) -> None:
        """Switch its interface off: sends now fail with ENETUNREACH."""
        self.ip(f"link set {UPLINK} down")

    def interface_up(self) -> None:
        """Switch its interface on (again) with its addresses and routes."""
        lines = [f"link set {UPLINK} up"]
        lan, lan_v6 = self.gateway.lan, self.gateway.lan_v6
        if self.v4 is not None and lan is not None:
            lines += [
                f"address replace {self.v4}/{lan.prefixlen} dev {UPLINK}",
                f"route replace default via {lan[1]} dev {UPLINK}",
            ]
        if self.v6 is not None and lan_v6 is not None:
            lines += [
                f"address replace {self.v6}/64 dev {UPLINK} nodad",
                f"route replace default via fe80::1 dev {UPLINK}",
            ]
        self.ip(*lines)

    def _attach(self, gateway: Gateway) -> None:
        number = gateway.next_lan_port()
        self.gateway = gateway
        self._port = f"lan{number}"
        self.veth(UPLINK, gateway, self._port, mtu=1500)
        # As on lines: what is a packet to the sender is a packet everywhere.
        self.ip(f"link set {UPLINK} gso_max_segs 1")
        gateway.ip(f"link set {self._port} gso_max_segs 1 master {LAN} up")
        lan, lan_v6 = gateway.lan, gateway.lan_v6
        first = _FIRST_PRIVATE if lan is not None and lan.prefixlen <= 24 else 2
        self.v4 = lan[first + number] if lan is not None and self.kind.v4 else None
        self.v6 = lan_v6[_FIRST_PRIVATE + number] if lan_v6 is not None else None
        self.interface_up()


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running HTTP CONNECT proxy.

    Attributes:
        process: its program, which reports every request as an event ``request``.
        url: for clients, with name and password if it wants them.
    """

    process: Process
    url: str

    @property
    def tunnels(self) -> int:
        """How many connections it has made for clients so far."""
        return sum(event["status"] == 200 for event in self.process.named("request"))


@dataclass(slots=True)
class Site:
    """Hosts and what is between them and the internet.

    Attributes:
        label: its name in the lab.
        kind: what it is like.
        hosts: its hosts, of which it has one from the start.
        gateway: its router, if it has one.
        carrier: its provider's NAT, if there is one.
        proxy: the only way out, if that is so.
    """

    label: str
    kind: SiteKind
    hosts: list[Host | LanHost]
    gateway: Gateway | None = None
    carrier: Carrier | None = None
    proxy: Proxy | None = None
    _udp_rules: list[str] = field(default_factory=list)

    @property
    def host(self) -> Host | LanHost:
        """The first of its hosts."""
        return self.hosts[0]

    @property
    def edge(self) -> Host:
        """The machine at the site's end of its line: the router, or else the host."""
        if self.gateway is not None:
            return self.gateway
        assert isinstance(self.host, Host)
        return self.host

    @property
    def line(self) -> Line:
        """The site's line to its provider."""
        return self.edge.line

    @property
    def networks(self) -> list[IPv4Network | IPv6Network]:
        """Every address the internet sees its packets come from."""
        return (self.carrier or self.edge).networks

    def external(self, version: int) -> IPv4Address | IPv6Address:
        """The address of its first host as the internet sees it.

        Raises:
            ValueError: it has none of that IP version.
        """
        if version == 4 and self.kind.v4 is Attachment.TRANSLATED:
            return (self.carrier or self.edge).address(4)
        return self.host.address(version)

    def start_proxy(self, *, ports: Sequence[int] = ()) -> Proxy:
        """Run an HTTP proxy on the router; the site's hosts get it into their environment.

        Args:
            ports: the only ports it connects to; none for any.
        """
        assert self.gateway is not None
        assert self.gateway.lan is not None
        address = self.gateway.lan[1]
        argv = [f"{address}:{PROXY_PORT}", *(f"--port={port}" for port in ports)]
        user = ""
        if self.kind.egress is Egress.PROXY_AUTH:
            argv.append(f"--credentials={PROXY_USER}:{PROXY_PASSWORD}")
            user = f"{PROXY_USER}:{PROXY_PASSWORD.replace(' ', '%20')}@"
        process = self.gateway.spawn_python(_PROXY_SCRIPT, *argv)
        process.wait_event("listening")
        self.proxy = Proxy(process, f"http://{user}{address}:{PROXY_PORT}")
        for host in self.hosts:
            host.environment["HTTPS_PROXY"] = self.proxy.url
        return self.proxy

    def resolve(self, names: Mapping[str, Sequence[IPv4Address | IPv6Address]]) -> None:
        """Let the site resolve these names: its hosts, or only the proxy where there is one."""
        machines: Sequence[Machine] = self.hosts
        if self.kind.has_proxy and self.gateway is not None:
            machines = [self.gateway]
        for machine in machines:
            machine.resolve(names)

    def reboot_router(self) -> None:
        """Flush all flows and mappings of its router, and of its carrier's."""
        if self.gateway is not None:
            self.gateway.reboot()
        if self.carrier is not None:
            self.carrier.nat.reboot()

    def readdress(self) -> None:
        """Give it a new public IPv4 address; mappings and flows go with the old one."""
        public = self.carrier or self.edge
        public.readdress()
        nat = public.nat if isinstance(public, Carrier | Gateway) else None
        if nat is not None and public.v4 is not None:
            nat.readdress(public.v4)

    def block_udp(self) -> None:
        """Drop all UDP on its line from now on, in both directions and without a word."""
        if not self._udp_rules:
            self._udp_rules = self.line.rules("meta l4proto udp drop")
            self.line.router.filter.add(self._udp_rules)

    def allow_udp(self) -> None:
        """End :meth:`block_udp`."""
        self.line.router.filter.remove(self._udp_rules)
        self._udp_rules = []

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Its line is down within the block."""
        self.line.unplug()
        try:
            yield
        finally:
            self.line.plug()
