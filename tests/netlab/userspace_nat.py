"""The NAT of ``middlebox/``, which follows a policy to the letter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import middlebox

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network

    from .policies import NatPolicy
    from .topology import Host

__all__ = ["DEVICE", "UserspaceNat"]

DEVICE: Final = "nat0"
"""The TUN interface of the program: packets of both sides go in and come out, translated."""

_TABLE: Final = 500

# Preferences of the routing rules: after those of emulated lines.
_TO_INSIDE: Final = 2900
_FROM_INSIDE: Final = 3000


class UserspaceNat:
    """A NAT in a program of its own, for the same places as ``KernelNat``.

    The router sends what comes from the inside to the program, and what comes to the external
    address, which for that purpose no interface of the router has.
    """

    def __init__(
        self,
        machine: Host,
        policy: NatPolicy,
        address: IPv4Address,
        *,
        inside: IPv4Network,
        outside: str,
    ) -> None:
        self._machine = machine
        self._outside = outside
        middlebox.add_tun(machine, DEVICE)
        self._process = middlebox.start(
            machine,
            "nat",
            tun=DEVICE,
            address=address,
            mapping=policy.mapping.value,
            filtering=policy.filtering.value,
            ports=policy.ports.value,
            hairpin=str(policy.hairpin).lower(),
            timeout_ms=policy.timeout * 1000,
        )
        # The router answers for an address it does not have, and at once.
        machine.sysctl(
            {f"ipv4/conf/{outside}/proxy_arp": 1, f"ipv4/neigh/{outside}/proxy_delay": 0}
        )
        machine.ip(
            f"route replace default dev {DEVICE} table {_TABLE}",
            f"rule add to {inside} lookup main pref {_TO_INSIDE}",
            f"rule add from {inside} lookup {_TABLE} pref {_FROM_INSIDE}",
            version=4,
        )
        self._take(address)

    def readdress(self, address: IPv4Address) -> None:
        """Begin anew with this external address."""
        self._take(address)
        middlebox.command(self._process, f"address={address}")

    def reboot(self) -> None:
        """Forget all mappings."""
        middlebox.command(self._process, "flush")

    def _take(self, address: IPv4Address) -> None:
        # Without its last address an interface loses its routes as well.
        gateway = self._machine.line.router.gateway
        self._machine.ip(
            f"address delete {address}/32 dev {self._outside}",
            f"route replace default via {gateway} dev {self._outside} onlink",
            f"route replace {address}/32 dev {DEVICE}",
        )
