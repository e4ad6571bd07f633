"""What a node knows about its addresses, as a test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from anyreach.addresses import SocketAddress
from anyreach.candidates import InterfaceAddress
from anyreach.nat import NatEvidence, NatReport
from anyreach.reachability import Evidence

if TYPE_CHECKING:
    from anyreach._local import LocalView


def address(text: str) -> SocketAddress:
    """``"IP PORT"``, or an IP with the port of the node."""
    ip, _, port = text.partition(" ")
    return SocketAddress.of(ip, int(port or 9000))


@dataclass
class FakeObserved:
    """Shaped like :class:`anyreach.observed.ObservedAddresses`."""

    addresses: tuple[SocketAddress, ...] = ()

    def candidates(self) -> tuple[SocketAddress, ...]:
        return self.addresses


@dataclass
class FakeLocal:
    """Shaped like :class:`anyreach._local.LocalView`."""

    own: tuple[SocketAddress, ...] = ()
    report: NatReport = field(default_factory=NatReport)
    observed: FakeObserved = field(default_factory=FakeObserved)
    interfaces: tuple[InterfaceAddress, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)
    experiments: NatEvidence = field(default_factory=NatEvidence)

    @classmethod
    def at(cls, *hosts: str, seen: tuple[str, ...] = ()) -> FakeLocal:
        """A node with these addresses, seen at those."""
        entries = (InterfaceAddress.of("eth0", ip, 64 if ":" in ip else 24) for ip in hosts)
        return cls(
            own=tuple(map(address, hosts)),
            observed=FakeObserved(tuple(map(address, seen))),
            interfaces=tuple(entry for entry in entries if entry is not None),
        )

    def host_addresses(self) -> tuple[SocketAddress, ...]:
        return self.own

    def nat(self) -> NatReport:
        return self.report

    def offer(self) -> tuple[SocketAddress, ...]:
        return tuple(dict.fromkeys((*self.observed.addresses, *self.own)))

    def view(self) -> LocalView:
        return cast("LocalView", self)
