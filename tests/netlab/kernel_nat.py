"""NATs of the Linux kernel: nftables rules for any policy of RFC 4787.

``masquerade`` and ``snat`` alone make a mapping per remote endpoint. Here the translated packet is
looked at *after* the kernel chose a port, and the choice is kept in dynamic maps: ``out`` (from the
inside endpoint to the outside one) is asked first for the next flow, ``inward`` (from the outside
port to the inside endpoint) lets in what belongs to no flow. ``permitted`` holds whom an inside
endpoint has sent to. What differs from the userspace NAT: connection tracking counts inbound
packets as a sign of life, too, filters do not apply to hairpinned packets, and no host reaches
itself by hairpinning.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from .policies import Dependence, NatPolicy, Ports

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network

    from .machine import Machine

__all__ = ["ADMITTED", "KernelNat", "flush_flows"]

ADMITTED: Final = 0x1
"""Mark of packets that belong to no flow but may come in. The router's firewall accepts them."""

_FIRST_PORT: Final = 20_000

# Ports counted through before the first comes again, and how many such sequences there are: after
# a reboot the count does not begin where it did before.
_SEQUENCE: Final = 1_000
_SEQUENCES: Final = 40

_KEY: Final = {
    Dependence.ENDPOINT_INDEPENDENT: (
        "ipv4_addr . inet_service",
        "ip saddr . udp sport",
        "ct {0} ip saddr . ct {0} proto-src",
    ),
    Dependence.ADDRESS: (
        "ipv4_addr . inet_service . ipv4_addr",
        "ip saddr . udp sport . ip daddr",
        "ct {0} ip saddr . ct {0} proto-src . ct {0} ip daddr",
    ),
    Dependence.ADDRESS_AND_PORT: (
        "ipv4_addr . inet_service . ipv4_addr . inet_service",
        "ip saddr . udp sport . ip daddr . udp dport",
        "ct {0} ip saddr . ct {0} proto-src . ct {0} ip daddr . ct {0} proto-dst",
    ),
}
"""What a mapping is found by: its type, in a packet from the inside, in connection tracking."""


class KernelNat:
    """The NAT of a router between a network inside and an interface outside."""

    def __init__(
        self,
        machine: Machine,
        policy: NatPolicy,
        address: IPv4Address,
        *,
        inside: IPv4Network,
        outside: str,
    ) -> None:
        self._machine = machine
        self._policy = policy
        self._address = address
        self._inside = inside
        self._outside = outside
        self._boots = itertools.count()
        machine.sysctl(
            {
                "netfilter/nf_conntrack_udp_timeout": policy.timeout,
                "netfilter/nf_conntrack_udp_timeout_stream": policy.timeout,
            }
        )
        self.reboot()

    def readdress(self, address: IPv4Address) -> None:
        """Begin anew with this external address."""
        self._address = address
        self.reboot()

    def reboot(self) -> None:
        """Forget all mappings and flows."""
        self._machine.nft(self._script(next(self._boots)))
        flush_flows(self._machine)

    def _script(self, boot: int) -> str:
        policy = self._policy
        kind, packet, flow = _KEY[policy.mapping]
        inside, outside = f"ip saddr {self._inside}", f'oifname "{self._outside}"'
        arriving = f'iifname "{self._outside}" ip daddr {self._address}'
        leaving = [f"{inside} {outside}"]
        mapped = f"ip saddr {self._address} meta l4proto udp"
        # What comes in is known by its port, what goes out by the mapping it has.
        prerouting, admit = [], []
        if policy.filtering is not Dependence.ADDRESS_AND_PORT:
            prerouting.append(f"{arriving} dnat ip to udp dport map @inward")
        if policy.filtering is Dependence.ENDPOINT_INDEPENDENT:
            admit.append(f'iifname "{self._outside}" ct status dnat')
        if policy.filtering is Dependence.ADDRESS:
            admit.append(
                f'iifname "{self._outside}" ct status dnat'
                " ip daddr . udp dport . ip saddr @permitted"
            )
        if policy.hairpin:
            hairpin = f"{inside} ip daddr {self._inside} ct status dnat"
            prerouting.append(f"{inside} ip daddr {self._address} dnat ip to udp dport map @inward")
            leaving.append(hairpin)
            admit.append(hairpin)
        postrouting = [
            rule
            for which in leaving
            for rule in (
                f"{which} meta l4proto udp snat ip to {packet} map @out",
                *(f"{which} {rest}" for rest in self._ports(boot)),
                f"{which} snat ip to {self._address}",
            )
        ]
        inner = _KEY[Dependence.ENDPOINT_INDEPENDENT][2]
        learn = [
            f"{mapped} ct direction {direction} {rule}"
            for direction in ("original", "reply")
            for rule in (
                f"update @out {{ {flow.format(direction)} : ip saddr . udp sport }}",
                f"update @inward {{ udp sport : {inner.format(direction)} }}",
            )
        ]
        learn.append(f"{mapped} update @taken {{ udp sport }}")
        forward = [
            f"{inside} meta l4proto udp update @permitted {{ ip saddr . udp sport . ip daddr }}",
            *(f"{which} meta mark set {ADMITTED}" for which in admit),
        ]

        def collection(what: str, of: str) -> str:
            lasts = f"flags dynamic,timeout\ntimeout {policy.timeout}s\nsize 65535"
            return f"{what} {{\ntype {of}\n{lasts}\n}}"

        def chain(name: str, hook: str, rules: list[str]) -> str:
            body = "\n".join(rules)
            return f"chain {name} {{\ntype {hook}; policy accept;\n{body}\n}}"

        parts = [
            collection("map out", f"{kind} : ipv4_addr . inet_service"),
            collection("map inward", "inet_service : ipv4_addr . inet_service"),
            collection("set taken", "inet_service"),
            collection("set permitted", "ipv4_addr . inet_service . ipv4_addr"),
            # Needed even when empty: replies are translated back in it.
            chain("prerouting", "nat hook prerouting priority dstnat", prerouting),
            chain("postrouting", "nat hook postrouting priority srcnat", postrouting),
            chain("learn", "filter hook postrouting priority 110", learn),
            # Before the firewall, which drops what has no mark.
            chain("admit", "filter hook forward priority -10", forward),
        ]
        body = "\n".join(parts)
        return f"table ip nat {{}}\ndelete table ip nat\ntable ip nat {{\n{body}\n}}\n"

    def _ports(self, boot: int) -> list[str]:
        """How a new mapping gets its port."""
        anything = f"snat ip to {self._address}:{_FIRST_PORT}-65535 random,fully-random"
        match self._policy.ports:
            case Ports.PRESERVE:
                return [f"udp sport @taken {anything}"]
            case Ports.RANDOM:
                return [f"meta l4proto udp {anything}"]
            case Ports.SEQUENTIAL:
                # A map, because numgen alone counts in the byte order of the machine.
                first = _FIRST_PORT + boot % _SEQUENCES * _SEQUENCE
                ports = ", ".join(f"{n} : {first + n}" for n in range(_SEQUENCE))
                numbers = f"numgen inc mod {_SEQUENCE} map {{ {ports} }}"
                return [f"meta l4proto udp snat ip to {self._address} : {numbers}"]


_FLUSH: Final = """
import socket, struct
NETLINK_NETFILTER, NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE = 12, 1, 2
NLM_F_REQUEST, NLM_F_ACK = 1, 4
kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
request = struct.pack("=IHHIIBBH", 20, kind, NLM_F_REQUEST | NLM_F_ACK, 1, 0, 0, 0, 0)
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
    netlink.send(request)
    error = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
if error:
    raise OSError(-error, "cannot flush connection tracking")
"""


def flush_flows(machine: Machine) -> None:
    """Make connection tracking forget all flows: a delete request that names none of them."""
    done = machine.python("-I", "-S", "-c", _FLUSH)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
