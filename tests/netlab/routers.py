"""Routers of sites and of carriers: hosts at a line that have hosts or lines of their own."""

from __future__ import annotations

import itertools
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .kernel_nat import ADMITTED, KernelNat, flush_flows
from .kinds import Attachment, Egress
from .topology import UPLINK, V4_LINK_LOCAL_V6, Host, HostKind, Ipv6, Router
from .userspace_nat import DEVICE, UserspaceNat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .kinds import SiteKind
    from .policies import NatPolicy

__all__ = ["CARRIER_NETWORK", "LAN", "PROXY_PORT", "Carrier", "Engine", "Gateway"]

CARRIER_NETWORK: Final = IPv4Network("100.64.0.0/10")
"""Shared address space of carriers (RFC 6598)."""

LAN: Final = "lan"
"""The bridge of a site's router that its hosts are plugged into."""

PROXY_PORT: Final = 3128

_LAN_GATEWAY_V6: Final = "fe80::1"


class Engine(Enum):
    """Who translates."""

    KERNEL = "kernel"
    USERSPACE = "userspace"

    def make(
        self, machine: Host, policy: NatPolicy, inside: IPv4Network
    ) -> KernelNat | UserspaceNat:
        """A NAT on a router, behind its line."""
        assert machine.v4 is not None
        make = KernelNat if self is Engine.KERNEL else UserspaceNat
        return make(machine, policy, machine.v4, inside=inside, outside=UPLINK)


class Carrier(Host):
    """A provider's router that gives its subscribers addresses of 100.64.0.0/10.

    Subscribers reach each other only as far as its NAT hairpins.
    """

    def __init__(
        self,
        name: str,
        router: Router,
        policy: NatPolicy,
        *,
        label: str,
        home: Path,
        mtu: int,
        engine: Engine = Engine.KERNEL,
    ) -> None:
        super().__init__(name, router, V4_LINK_LOCAL_V6, label=label, home=home, mtu=mtu)
        self.router = Router(self, [CARRIER_NETWORK])
        self.nat = engine.make(self, policy, CARRIER_NETWORK)
        out = UPLINK if engine is Engine.KERNEL else DEVICE
        rules = [
            f'iifname "{inward}" oifname "{outward}" accept'
            for inward in ("port*", "up*")
            for outward in (out, "up*")
        ]
        # What got to the downward end of an emulated line has been let in before it.
        rules.append('iifname "down*" accept')
        _firewall(self, engine, rules)


class Gateway(Host):
    """The router of a site, with a bridged network behind it.

    Attributes:
        lan: the IPv4 network of the hosts: private ones, or public ones, or ``None``.
        lan_v6: their IPv6 network.
        nat: what translates, if anything does.
    """

    def __init__(
        self,
        name: str,
        router: Router,
        kind: SiteKind,
        lan: IPv4Network | None,
        *,
        label: str,
        home: Path,
        mtu: int,
        engine: Engine = Engine.KERNEL,
    ) -> None:
        has_v6 = kind.v6 is not Attachment.NONE
        line = HostKind(
            f"line of {kind.name}",
            v4=kind.v4 is not Attachment.NONE,
            v6=Ipv6.GLOBAL if has_v6 else Ipv6.LINK_LOCAL,
        )
        super().__init__(name, router, line, label=label, home=home, mtu=mtu)
        self.lan = lan
        self.lan_v6: IPv6Network | None = None
        self._numbers = itertools.count()
        self.sysctl(
            {
                "ipv4/ip_forward": 1,
                "ipv4/conf/all/rp_filter": 0,
                "ipv4/conf/default/rp_filter": 0,
                "ipv6/conf/all/forwarding": 1,
                "ipv4/icmp_ratelimit": 0,
                "ipv6/icmp/ratelimit": 0,
            }
        )
        lines = [f"link add {LAN} type bridge", f"link set {LAN} up"]
        if lan is not None:
            lines.append(f"address add {lan[1]}/{lan.prefixlen} dev {LAN}")
            if kind.v4 is not Attachment.TRANSLATED:
                self.routed.append(lan)
        if has_v6:
            assert self.v6_site is not None
            self.lan_v6 = IPv6Network((self.v6_site[1 << 64], 64))
            self.routed.append(self.lan_v6)
            lines.append(f"address add {_LAN_GATEWAY_V6}/64 dev {LAN} nodad")
            lines.append(f"route add {self.lan_v6} dev {LAN}")
        self.ip(*lines)
        self.line.readdressed()
        if kind.nat is None or kind.has_proxy:
            engine = Engine.KERNEL  # with the other one the router itself has no address
        self.nat: KernelNat | UserspaceNat | None = None
        if kind.nat is not None:
            assert lan is not None
            self.nat = engine.make(self, kind.nat, lan)
        rules = [f'iifname "{LAN}" {rest} accept' for rest in _EGRESS[kind.egress]]
        for family, attachment in (("ipv4", kind.v4), ("ipv6", kind.v6)):
            if attachment is Attachment.OPEN:
                rules.append(f'iifname "{UPLINK}" meta nfproto {family} accept')
        local = [f'iifname "{LAN}" tcp dport {PROXY_PORT} accept'] if kind.has_proxy else []
        _firewall(self, engine, rules, local)

    def next_lan_port(self) -> int:
        """The number of a port of the bridge that nothing was plugged into yet."""
        return next(self._numbers)

    def isolate(self) -> None:
        """Let the hosts reach nothing in their network but the router, like guests in Wi-Fi."""
        # Where the NAT sees frames it bridges what comes back from it.
        if Path("/proc/sys/net/bridge").exists():
            self.sysctl({"bridge/bridge-nf-call-iptables": 0})
        self.nft(
            "table bridge isolation {\nchain forward {\n"
            "type filter hook forward priority filter; policy drop;\n}\n}\n"
        )

    def answer(self) -> None:
        """Answer packets to the router itself from now on, as many a Linux router does.

        What comes to a port that no mapping has is refused by ICMP, and connection tracking keeps
        a flow for it that gets into the way of the hosts' own.
        """
        self.nft("insert rule inet firewall input accept")

    def reboot(self) -> None:
        """Forget every flow and mapping, as a router does that loses power for a moment."""
        if self.nat is not None:
            self.nat.reboot()
        flush_flows(self)


_EGRESS: Final = {
    Egress.ANY: [""],
    Egress.NO_UDP: ["meta l4proto { tcp, icmp, icmpv6 }"],
    Egress.TCP_443: ["tcp dport 443"],
    Egress.PROXY: [],
    Egress.PROXY_AUTH: [],
}
"""What may come from the hosts, as nftables matches."""


def _firewall(
    machine: Host, engine: Engine, rules: Sequence[str], local: Sequence[str] = ()
) -> None:
    """Drop everything but answers, what the NAT admits, and what the rules accept.

    Args:
        machine: the router.
        engine: what translates on it.
        rules: for packets passing through.
        local: for packets to the router itself.

    Drops are silent, and the router itself answers nothing but pings: an answer would leave a
    flow in connection tracking that gets into the way of the hosts' own.
    """
    forward = ["ct state established,related accept", f"meta mark {ADMITTED} accept", *rules]
    if engine is Engine.USERSPACE:
        forward += [f'iifname "{DEVICE}" accept', f'oifname "{DEVICE}" iifname "{UPLINK}" accept']
    incoming = [
        'iifname "lo" accept',
        "ct state established,related accept",
        "meta l4proto { icmp, icmpv6 } accept",
        *local,
    ]

    def chain(hook: str, body: list[str]) -> str:
        lines = "\n".join(body)
        return (
            f"chain {hook} {{\ntype filter hook {hook} priority filter; policy drop;\n{lines}\n}}\n"
        )

    machine.nft(
        f"table inet firewall {{\n{chain('forward', forward)}{chain('input', incoming)}}}\n"
    )
