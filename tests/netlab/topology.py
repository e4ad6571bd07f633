"""What a lab consists of: kinds of hosts, the internet router, and the lines between them.

Addresses come from the documentation ranges (RFC 5737, RFC 3849). Hosts are attached to the
router by one cable each, with a /32 and a /64 of their own, so any two hosts are in distinct
prefixes and all traffic between them is routed, never bridged.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Final

from . import no_af_inet6
from .namespaces import Filter, Namespace
from .process import DEFAULT_TIMEOUT, Process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "DUAL_STACK",
    "NO_AF_INET6",
    "NO_V4",
    "V4_LINK_LOCAL_V6",
    "V4_ONLY",
    "V6_ONLY",
    "Host",
    "HostKind",
    "Internet",
    "Ipv6",
    "Line",
]

V4_NETWORKS: Final = (IPv4Network("203.0.113.0/24"), IPv4Network("198.51.100.0/24"))
V6_NETWORK: Final = IPv6Network("2001:db8::/32")
_FIRST_HOST: Final = 10  # below it: the router's own addresses
_GATEWAY_V6: Final = "fe80::1"
_INTERFACE: Final = "eth0"

_INHERITED_VARIABLES: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "SSLKEYLOGFILE",
)


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


DUAL_STACK: Final = HostKind("dual-stack", v4=True, v6=Ipv6.GLOBAL)
V4_ONLY: Final = HostKind("v4-only", v4=True, v6=Ipv6.DISABLED)
V4_LINK_LOCAL_V6: Final = HostKind("v4-link-local-v6", v4=True, v6=Ipv6.LINK_LOCAL)
NO_AF_INET6: Final = HostKind("no-af-inet6", v4=True, v6=Ipv6.REFUSED)
V6_ONLY: Final = HostKind("v6-only", v4=False, v6=Ipv6.GLOBAL)
"""No IPv4 address but 127.0.0.1, which Linux gives every host by itself."""
NO_V4: Final = HostKind("no-v4", v4=False, v6=Ipv6.GLOBAL, loopback_v4=False)
"""No IPv4 address at all."""


class Internet(Namespace):
    """The router in the middle. Routes everything, translates nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.sysctl(
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
        self.v4 = V4_NETWORKS[0][1]
        self.v6 = V6_NETWORK[1]
        self.ip(
            "link set lo up",
            *(f"address add {network[1]}/32 dev lo" for network in V4_NETWORKS),
            f"address add {self.v6}/128 dev lo nodad",
        )
        self.filter = Filter(self)

    def black_hole(self, *destinations: IPv4Address | IPv6Address) -> list[str]:
        """Drop everything to these addresses without a word; returns the rules for removal."""
        rules = [
            f"{'ip' if address.version == 4 else 'ip6'} daddr {address} drop"
            for address in destinations
        ]
        self.filter.add(rules)
        return rules


class Line:
    """The cable between a host and the internet."""

    def __init__(self, host: Host, internet: Internet, port: str, *, mtu: int) -> None:
        self._host = host
        self._internet = internet
        self._port = port
        self._limit: list[str] = []
        host.veth(_INTERFACE, internet, port, mtu=mtu)
        # Packets on a real line are never larger than its MTU. Without this a burst that the
        # sender left to segmentation offload would cross the router as one huge packet, and
        # rules on packet sizes would see the burst.
        host.ip(f"link set {_INTERFACE} gso_max_segs 1")
        internet.ip(f"link set {port} gso_max_segs 1")
        self.plug()

    def plug(self) -> None:
        """Put the cable (back) in."""
        # A downed interface forgets its IPv6 addresses and all its routes.
        lines = [
            f"link set {self._port} up",
            f"address replace {_GATEWAY_V6}/64 dev {self._port} nodad",
        ]
        if self._host.v4 is not None:
            lines.append(f"route replace {self._host.v4}/32 dev {self._port}")
        if self._host.v6 is not None:
            lines.append(
                f"route replace {self._host.v6_prefix} via {self._host.link_local} dev {self._port}"
            )
        self._internet.ip(*lines)

    def unplug(self) -> None:
        """Pull the cable at the far end: the host loses its carrier, sends vanish silently."""
        self._internet.ip(f"link set {self._port} down")

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU at both ends; the router tells senders (ICMP) as routers should."""
        self._host.ip(f"link set {_INTERFACE} mtu {mtu}")
        self._internet.ip(f"link set {self._port} mtu {mtu}")

    def drop_larger_than(self, size: int | None) -> None:
        """Drop IP packets above ``size`` bytes in both directions, silently; ``None`` ends it."""
        self._internet.filter.remove(self._limit)
        self._limit = []
        if size is not None:
            self._limit = [
                f'{direction} "{self._port}" meta length > {size} drop'
                for direction in ("iifname", "oifname")
            ]
            self._internet.filter.add(self._limit)


class Host(Namespace):
    """A machine attached to the internet.

    Attributes:
        v4, v6: its public addresses, ``None`` for a family it does not have.
        home: its private home directory.
        line: its cable.
    """

    def __init__(
        self,
        name: str,
        internet: Internet,
        kind: HostKind,
        *,
        label: str,
        index: int,
        home: Path,
        mtu: int,
    ) -> None:
        super().__init__(name)
        self.kind = kind
        self.label = label
        self.home = home
        self.processes: list[Process] = []
        number = _FIRST_HOST + index // len(V4_NETWORKS)
        self.v4 = V4_NETWORKS[index % len(V4_NETWORKS)][number] if kind.v4 else None
        self.v6_prefix = IPv6Network((int(V6_NETWORK[0]) + ((index + 1) << 80), 64))
        self.v6 = self.v6_prefix[1] if kind.v6 is Ipv6.GLOBAL else None
        self.link_local = f"fe80::{index + 0x100:x}"
        home.mkdir()
        self.etc_files({"hosts": _hosts_file({}), "nsswitch.conf": "hosts: files\n"})
        disabled = int(kind.v6 in (Ipv6.DISABLED, Ipv6.REFUSED))
        self.sysctl(
            {
                "ipv6/conf/all/disable_ipv6": disabled,
                "ipv6/conf/default/disable_ipv6": disabled,
                "ipv6/conf/default/accept_dad": 0,
                "ipv6/conf/default/accept_ra": 0,
            }
        )
        self.ip("link set lo up")
        if not kind.loopback_v4:
            self.ip("address delete 127.0.0.1/8 dev lo")
        self.line = Line(self, internet, f"port{index}", mtu=mtu)
        self.interface_up()

    def address(self, version: int) -> IPv4Address | IPv6Address:
        """Its public address of IP version 4 or 6.

        Raises:
            ValueError: it has none.
        """
        found = {4: self.v4, 6: self.v6}[version]
        if found is None:
            raise ValueError(f"{self.label} ({self.kind.name}) has no IPv{version} address")
        return found

    def interface_up(self) -> None:
        """Switch the interface on (again) with its addresses and routes."""
        lines = [f"link set {_INTERFACE} up"]
        if self.v4 is not None:
            lines += [
                f"address replace {self.v4}/32 dev {_INTERFACE}",
                f"route replace default via {V4_NETWORKS[0][1]} dev {_INTERFACE} onlink",
            ]
        if self.v6 is not None:
            lines += [
                f"address replace {self.link_local}/64 dev {_INTERFACE} nodad",
                f"address replace {self.v6}/64 dev {_INTERFACE} nodad",
                f"route replace default via {_GATEWAY_V6} dev {_INTERFACE}",
            ]
        self.ip(*lines)

    def interface_down(self) -> None:
        """Switch the host's own interface off: sends now fail with ENETUNREACH."""
        self.ip(f"link set {_INTERFACE} down")

    def unreachable(self, *destinations: IPv4Address | IPv6Address) -> None:
        """Make sends to these addresses fail at once with EHOSTUNREACH."""
        self.ip(*(f"route add unreachable {address}" for address in destinations))

    def resolve(self, names: Mapping[str, Sequence[IPv4Address | IPv6Address]]) -> None:
        """Let programs started from now on resolve these names, and no others."""
        self.etc_files({"hosts": _hosts_file(names)})

    def run(
        self, argv: Sequence[str], *, timeout: float = DEFAULT_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the exit status is the caller's to judge.

        Raises:
            subprocess.TimeoutExpired: it took more than ``timeout`` seconds.
        """
        return subprocess.run(
            self._launch(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment(),
            cwd=self.home,
            timeout=timeout,
            check=False,
        )

    def spawn(self, argv: Sequence[str]) -> Process:
        """Start a command; it is killed with the lab if it still runs then."""
        process = Process(
            self.label, self._launch(argv), env=self._environment(), cwd=str(self.home)
        )
        self.processes.append(process)
        return process

    def python(
        self, *argv: str, timeout: float = DEFAULT_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run the Python of the tests with these arguments (``"-c", source`` or a file)."""
        return self.run([sys.executable, *argv], timeout=timeout)

    def spawn_python(self, *argv: str) -> Process:
        """Start the Python of the tests with these arguments."""
        return self.spawn([sys.executable, *argv])

    def _launch(self, argv: Sequence[str]) -> list[str]:
        if self.kind.v6 is Ipv6.REFUSED:
            argv = [sys.executable, "-I", "-S", no_af_inet6.__file__, *argv]
        return self.enter(argv)

    def _environment(self) -> dict[str, str]:
        # Nothing of the tester's own (configuration folder, proxies) may leak into a host.
        inherited = {key: os.environ[key] for key in _INHERITED_VARIABLES if key in os.environ}
        return {**inherited, "HOME": str(self.home), "PYTHONUNBUFFERED": "1"}


def _hosts_file(names: Mapping[str, Sequence[IPv4Address | IPv6Address]]) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    lines += [f"{address} {name}" for name, addresses in names.items() for address in addresses]
    return "\n".join(lines) + "\n"
