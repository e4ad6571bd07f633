"""What a lab consists of: kinds of hosts, the internet router, and the lines between them.

Addresses come from the documentation ranges (RFC 5737, RFC 3849). Hosts are attached to the
router by one cable each, with a /32 and a /64 of their own, so any two hosts are in distinct
prefixes and all traffic between them is routed, never bridged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Final

from .emulation import Emulation
from .machine import Machine
from .namespaces import Filter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .emulation import Quality

__all__ = [
    "DUAL_STACK",
    "NO_AF_INET6",
    "NO_V4",
    "UPLINK",
    "V4_LINK_LOCAL_V6",
    "V4_ONLY",
    "V6_ONLY",
    "Host",
    "HostKind",
    "Internet",
    "Ipv6",
    "Line",
    "Router",
]

V4_NETWORKS: Final = (IPv4Network("203.0.113.0/24"), IPv4Network("198.51.100.0/24"))
V6_NETWORK: Final = IPv6Network("2001:db8::/32")
_FIRST_HOST: Final = 10  # below it: the router's own addresses
_GATEWAY_V6: Final = "fe80::1"

UPLINK: Final = "eth0"
"""The interface of a host that its line is plugged into."""


class Ipv6(Enum):
    """What a host knows of IPv6."""

    GLOBAL = "global"
    """A global address and a default route."""
    LINK_LOCAL = "link-local"
    """Switched on, but nobody gave it an address: the usual state of an IPv4-only line."""
    DISABLED = "disabled"
    """Switched off by ``net.ipv6.conf.all.disable_ipv6``; the address family still exists."""
    REFUSED = "refused"
    """``socket(AF_INET6)`` fails with EAFNOSUPPORT, as in a kernel without IPv6."""


@dataclass(frozen=True, slots=True)
class HostKind:
    """A kind of attachment to the internet."""

    name: str
    v4: bool
    v6: Ipv6
    loopback_v4: bool = True

    @property
    def v6_sysctl(self) -> dict[str, int]:
        """Settings of the kernel that make it so."""
        disabled = int(self.v6 in (Ipv6.DISABLED, Ipv6.REFUSED))
        return {
            "ipv6/conf/all/disable_ipv6": disabled,
            "ipv6/conf/default/disable_ipv6": disabled,
            "ipv6/conf/default/accept_dad": 0,
            "ipv6/conf/default/accept_ra": 0,
        }


DUAL_STACK: Final = HostKind("dual-stack", v4=True, v6=Ipv6.GLOBAL)
V4_ONLY: Final = HostKind("v4-only", v4=True, v6=Ipv6.DISABLED)
V4_LINK_LOCAL_V6: Final = HostKind("v4-link-local-v6", v4=True, v6=Ipv6.LINK_LOCAL)
NO_AF_INET6: Final = HostKind("no-af-inet6", v4=True, v6=Ipv6.REFUSED)
V6_ONLY: Final = HostKind("v6-only", v4=False, v6=Ipv6.GLOBAL)
"""No IPv4 address but 127.0.0.1, which Linux gives every host by itself."""
NO_V4: Final = HostKind("no-v4", v4=False, v6=Ipv6.GLOBAL, loopback_v4=False)
"""No IPv4 address at all."""


class Router:
    """What makes a machine a router that lines lead to. Routes everything, translates nothing.

    Attributes:
        machine: the router.
        gateway: its IPv4 address as the machines at its lines see it.
        filter: what it drops.
    """

    def __init__(
        self, machine: Machine, v4: Sequence[IPv4Network], v6: IPv6Network | None = None
    ) -> None:
        self.machine = machine
        self.gateway = v4[0][1]
        self._v4 = v4
        self._v6 = v6
        self._allotted = 0
        self._ports = 0
        machine.sysctl(
            {
                "ipv4/ip_forward": 1,
                "ipv4/conf/all/rp_filter": 0,
                "ipv4/conf/default/rp_filter": 0,
                "ipv6/conf/all/disable_ipv6": 0,
                "ipv6/conf/default/disable_ipv6": 0,
                "ipv6/conf/all/forwarding": 1,
                "ipv6/conf/default/accept_dad": 0,
                # Errors must not be lost to a limit that is per namespace here, not per router.
                "ipv4/icmp_ratelimit": 0,
                "ipv6/icmp/ratelimit": 0,
            }
        )
        addresses = [f"address add {network[1]}/32 dev lo" for network in v4]
        if v6 is not None:
            addresses.append(f"address add {v6[1]}/128 dev lo nodad")
        machine.ip("link set lo up", *addresses)
        self.filter = Filter(machine)

    def allot(self) -> tuple[IPv4Address, IPv6Network | None]:
        """A fresh IPv4 address, and a fresh /48 where the router has IPv6.

        Neighbours in time are in different IPv4 networks, where the router has several.
        """
        index = self._allotted
        self._allotted += 1
        v4 = self._v4[index % len(self._v4)][_FIRST_HOST + index // len(self._v4)]
        if self._v6 is None:
            return v4, None
        return v4, IPv6Network((int(self._v6[0]) + ((index + 1) << 80), 48))

    def next_port(self) -> int:
        """The number of a port that nothing was plugged into yet."""
        self._ports += 1
        return self._ports - 1

    def black_hole(
        self, *destinations: IPv4Address | IPv6Address | IPv4Network | IPv6Network
    ) -> list[str]:
        """Drop everything to these addresses without a word; returns the rules for removal."""
        rules = [
            f"{'ip' if address.version == 4 else 'ip6'} daddr {address} drop"
            for address in destinations
        ]
        self.filter.add(rules)
        return rules


class Internet(Machine, Router):
    """The router in the middle."""

    def __init__(self, name: str, home: Path) -> None:
        Machine.__init__(self, name, label="internet", home=home)
        Router.__init__(self, self, V4_NETWORKS, V6_NETWORK)


class Line:
    """The cable between a host and its router."""

    def __init__(self, host: Host, router: Router, *, mtu: int) -> None:
        self._host = host
        self.router = router
        self.number = router.next_port()
        self.port = f"port{self.number}"
        """The router's interface."""
        self._limit: list[str] = []
        self._emulation: Emulation | None = None
        host.veth(UPLINK, router.machine, self.port, mtu=mtu)
        # Packets on a real line are never larger than its MTU. Without this a burst that the
        # sender left to segmentation offload would cross the router as one huge packet, and
        # rules on packet sizes would see the burst.
        host.ip(f"link set {UPLINK} gso_max_segs 1")
        router.machine.ip(f"link set {self.port} gso_max_segs 1")
        self.plug()

    def plug(self) -> None:
        """Put the cable (back) in."""
        # A downed interface forgets its IPv6 addresses and all its routes.
        host = self._host
        lines = [
            f"link set {self.port} up",
            f"address replace {_GATEWAY_V6}/64 dev {self.port} nodad",
        ]
        if host.v4 is not None:
            lines.append(f"route replace {host.v4}/32 dev {self.port}")
            lines += [
                f"route replace {network} via {host.v4} dev {self.port} onlink"
                for network in host.routed
                if network.version == 4
            ]
        if host.v6 is not None:
            lines += [
                f"route replace {network} via {host.link_local} dev {self.port}"
                for network in (host.v6_prefix, *host.routed)
                if network is not None and network.version == 6
            ]
        self.router.machine.ip(*lines)

    def unplug(self) -> None:
        """Pull the cable at the far end: the host loses its carrier, sends vanish silently."""
        self.router.machine.ip(f"link set {self.port} down")

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU at both ends; the router tells senders (ICMP) as routers should."""
        self._host.ip(f"link set {UPLINK} mtu {mtu}")
        self.router.machine.ip(f"link set {self.port} mtu {mtu}")

    def drop_larger_than(self, size: int | None) -> None:
        """Drop IP packets above ``size`` bytes in both directions, silently; ``None`` ends it."""
        self.router.filter.remove(self._limit)
        self._limit = []
        if size is not None:
            self._limit = self.rules(f"meta length > {size} drop")
            self.router.filter.add(self._limit)

    def rules(self, rest: str) -> list[str]:
        """An nftables rule for the router's filter, once per direction on this line."""
        return [f'{direction} "{self.port}" {rest}' for direction in ("iifname", "oifname")]

    def emulate(self, quality: Quality) -> None:
        """Give the line delay, jitter, loss or a rate from now on, the same in both directions.

        Packets under way are not lost when the quality of a line that has one is changed.
        """
        if self._emulation is None:
            self._emulation = Emulation(self.router.machine, self.number, self.port)
            self._emulation.route(self._host.networks)
        self._emulation.set(quality)

    def readdressed(self) -> None:
        """Follow a change of the host's addresses."""
        self.plug()
        if self._emulation is not None:
            self._emulation.route(self._host.networks)


class Host(Machine):
    """A machine attached to a router by a line.

    Attributes:
        kind: what kind of line it has.
        v4, v6: its addresses on the line: public ones at the internet router.
        v6_prefix: the /64 they say is on its line.
        routed: further networks that the router sends here, for a host that is a router too.
        line: its cable.
    """

    def __init__(
        self,
        name: str,
        router: Router,
        kind: HostKind,
        *,
        label: str,
        home: Path,
        mtu: int,
    ) -> None:
        super().__init__(name, label=label, home=home, refuse_inet6=kind.v6 is Ipv6.REFUSED)
        self.kind = kind
        self.routed: list[IPv4Network | IPv6Network] = []
        v4, v6 = router.allot()
        self.v4 = v4 if kind.v4 else None
        self.v6_site = v6
        """The /48 it may use: the first /64 is on its line."""
        self.v6_prefix = None if v6 is None else IPv6Network((v6[0], 64))
        has_v6 = kind.v6 is Ipv6.GLOBAL and self.v6_prefix is not None
        self.v6 = self.v6_prefix[1] if has_v6 and self.v6_prefix is not None else None
        self.link_local = "fe80::100"
        self.sysctl(kind.v6_sysctl)
        self.ip("link set lo up")
        if not kind.loopback_v4:
            self.ip("address delete 127.0.0.1/8 dev lo")
        self.line = Line(self, router, mtu=mtu)
        self.interface_up()

    @property
    def networks(self) -> list[IPv4Network | IPv6Network]:
        """Everything the router sends here."""
        own: list[IPv4Network | IPv6Network] = list(self.routed)
        if self.v4 is not None:
            own.append(IPv4Network(self.v4))
        if self.v6 is not None and self.v6_prefix is not None:
            own.append(self.v6_prefix)
        return own

    def interface_up(self) -> None:
        """Switch the interface on (again) with its addresses and routes."""
        lines = [f"link set {UPLINK} up"]
        if self.v4 is not None:
            lines += [
                f"address replace {self.v4}/32 dev {UPLINK}",
                f"route replace default via {self.line.router.gateway} dev {UPLINK} onlink",
            ]
        if self.v6 is not None:
            lines += [
                f"address replace {self.link_local}/64 dev {UPLINK} nodad",
                f"address replace {self.v6}/64 dev {UPLINK} nodad",
                f"route replace default via {_GATEWAY_V6} dev {UPLINK}",
            ]
        self.ip(*lines)

    def interface_down(self) -> None:
        """Switch the host's own interface off: sends now fail with ENETUNREACH."""
        self.ip(f"link set {UPLINK} down")

    def readdress(self) -> None:
        """Get a new IPv4 address from the router, as after a new dial-in. Does not flush NATs."""
        old = self.v4
        if old is None:
            raise ValueError(f"{self.label} has no IPv4 address to change")
        self.v4, _ = self.line.router.allot()
        self.ip(f"address flush dev {UPLINK}", version=4)
        self.interface_up()
        self.line.router.machine.ip(f"route delete {old}/32")
        self.line.readdressed()
