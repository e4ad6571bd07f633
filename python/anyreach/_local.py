"""What a node knows about its own addresses: bound, of the host, and as its peers see it."""

from __future__ import annotations

import socket
import time
from collections import deque
from contextlib import suppress
from operator import is_
from typing import TYPE_CHECKING, Final

from anyreach import _core
from anyreach.addresses import Scope, SocketAddress, scope_of
from anyreach.candidates import CandidateKind, InterfaceAddress, LocalNetwork
from anyreach.nat import NatEvidence, NatReport, assess
from anyreach.observed import ObservedAddresses
from anyreach.reachability import Evidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach.addresses import IpAddress, IpMode
    from anyreach.candidates import Candidate, CandidatePolicy

__all__ = ["LocalView", "from_core", "to_core"]


_FRESH_SECONDS: Final = 1.0
"""Interfaces are read again when they were last read longer ago than this. Reading them takes a
system call for each, which is felt when a node makes hundreds of connections a second; a second is
less than any change of network takes to settle."""


_VIEWS: Final = 4
"""Sets of candidates remembered: with and without what peers see, of all and for one family. They
are asked for several times for each new connection, and change with the network only."""


class LocalView:
    """The node's own addresses, read afresh when somebody asks, at most once a second.

    Args:
        bound: addresses of the socket.
        ip_mode: families the socket serves.
        policy: gathers candidates and chooses those to offer.
        network_changed: called when the interfaces have other addresses than at the last look.

    Attributes:
        observed: what peers say.
        experiments: packets of the node to itself.
        evidence: who and what came in from outside.
        mapped: addresses of routers that lead here, by now.
        bound: addresses of the socket.
    """

    def __init__(
        self,
        bound: tuple[SocketAddress, ...],
        ip_mode: IpMode,
        policy: CandidatePolicy,
        network_changed: Callable[[], None],
    ) -> None:
        self.observed = ObservedAddresses()
        self.experiments = NatEvidence()
        self.evidence = Evidence()
        self.mapped: Callable[[], tuple[SocketAddress, ...]] = tuple
        self.bound = bound
        self._ip_mode = ip_mode
        self._policy = policy
        self._network_changed = network_changed
        self._interfaces: tuple[InterfaceAddress, ...] | None = None
        self._raw: list[tuple[str, str, int]] = []
        self._read_at = -_FRESH_SECONDS
        self._hosts: frozenset[tuple[str, int]] | None = None
        self._nat = NatReport()
        self._assessed: tuple[object, ...] = ()
        self._gathered: deque[tuple[LocalNetwork, tuple[Candidate, ...]]] = deque(maxlen=_VIEWS)

    def candidates(
        self,
        observed: tuple[SocketAddress, ...] = (),
        mapped: tuple[SocketAddress, ...] = (),
        predicted: tuple[SocketAddress, ...] = (),
    ) -> tuple[Candidate, ...]:
        """Own candidates, best first: those of the host, and what is given."""
        network = LocalNetwork(
            self.bound, self._ip_mode, self._read_interfaces(), observed, mapped, predicted
        )
        for known, gathered in self._gathered:
            if known == network:
                return gathered
        gathered = self._policy.gather(network)
        self._gathered.append((network, gathered))
        return gathered

    def addresses(self) -> tuple[str, ...]:
        """Bound addresses, addresses of the host, and those enough peers agree on."""
        gathered = (c.address for c in self.candidates(self.observed.believed()))
        return tuple(dict.fromkeys(map(str, (*self.bound, *gathered))))

    def offer(self) -> tuple[SocketAddress, ...]:
        """Addresses worth telling others; one peer's word is enough to try an address."""
        own = self.candidates(self.observed.candidates(), self.mapped())
        candidates = self._policy.offer(own)
        # What peers see is what others can use; behind a NAT, host addresses rarely are.
        outside = [c.address for c in candidates if c.address.scope is Scope.GLOBAL]
        return tuple(dict.fromkeys((*outside, *(c.address for c in candidates))))

    def nat(self) -> NatReport:
        """What peers and experiments say about a NAT in front of the node.

        What was known before, where they say nothing new; see :class:`NatReport`.
        """
        host = self._host_addresses()  # first: a change of network makes the last report void
        by = (self.observed.version, self.experiments, self.evidence, host)
        if len(by) == len(self._assessed) and all(map(is_, by, self._assessed)):
            return self._nat
        self._assessed = by
        reports = self.observed.observations()
        seen = [(_plain(report.observer_address), _plain(report.address)) for report in reports]
        vouched = any(
            report.address.scope is Scope.GLOBAL and report.counts and own in host
            for report, (_, own) in zip(reports, seen, strict=True)
        )
        external = self.observed.candidates()
        self._nat = assess(
            seen,
            host,
            before=self._nat,
            experiments=self.experiments,
            evidence=self.evidence,
            vouched=vouched,
            external=[(str(address), self.observed.observers(address)) for address in external],
            on_link=self._read_interfaces(),
        )
        return self._nat

    def forget(self) -> None:
        """The node is somewhere else: what was found out about the NAT says nothing any more."""
        self._nat = NatReport()
        self._assessed = ()
        self.experiments = NatEvidence()
        self.evidence = Evidence()

    @property
    def interfaces(self) -> tuple[InterfaceAddress, ...]:
        """The addresses of the interfaces."""
        return self._read_interfaces()

    @property
    def external(self) -> frozenset[IpAddress]:
        """IP addresses peers see the node under."""
        return frozenset(address.ip for address in self.observed.candidates())

    @property
    def usable(self) -> frozenset[int]:
        """Families the node can send to beyond its own machine."""
        return frozenset(
            own.ip.version
            for own in self._read_interfaces()
            if scope_of(own.ip) not in (Scope.LOOPBACK, Scope.LINK_LOCAL)
        )

    def host_addresses(self) -> tuple[SocketAddress, ...]:
        """Addresses of this machine the node is bound to."""
        return tuple(
            candidate.address
            for candidate in self.candidates()
            if candidate.kind is CandidateKind.HOST
        )

    def _host_addresses(self) -> frozenset[tuple[str, int]]:
        self._read_interfaces()
        if self._hosts is None:
            self._hosts = frozenset(map(_plain, self.host_addresses()))
        return self._hosts

    def look(self, *, moved: bool) -> None:
        """Look at the interfaces at once; ``moved``: an address in use has gone, even if it is back
        by now."""
        self._read_at = -_FRESH_SECONDS
        before = self._raw
        self._read_interfaces()
        if moved and self._raw == before:
            self.forget()
            self._network_changed()

    def _read_interfaces(self) -> tuple[InterfaceAddress, ...]:
        now = time.monotonic()
        if self._interfaces is not None and now - self._read_at < _FRESH_SECONDS:
            return self._interfaces
        raw = _core.interface_addresses()
        self._read_at = now
        if self._interfaces is None or raw != self._raw:
            found = (InterfaceAddress.of(*entry) for entry in raw)
            interfaces = tuple(entry for entry in found if entry is not None)
            changed = self._interfaces is not None and set(interfaces) != set(self._interfaces)
            self._raw, self._interfaces, self._hosts = raw, interfaces, None
            if changed:
                self.forget()
                self._network_changed()
        return self._interfaces


def from_core(host: str, port: int) -> SocketAddress:
    """An address of the core, with the number of its zone turned into the interface's name."""
    ip, _, zone = host.partition("%")
    if zone.isdecimal():
        with suppress(OSError):  # the interface is gone
            return SocketAddress.of(f"{ip}%{socket.if_indextoname(int(zone))}", port)
    return SocketAddress.of(host, port)


def to_core(address: SocketAddress) -> str:
    """The IP address for the core, with the zone as a number (RFC 4007 11.2).

    Raises:
        OSError: there is no such interface.
    """
    ip, _, zone = address.host.partition("%")
    if not zone:
        return ip
    return f"{ip}%{zone if zone.isdecimal() else socket.if_nametoindex(zone)}"


def _plain(address: SocketAddress) -> tuple[str, int]:
    # Without the zone: the same address may be reported with and without it.
    return address.host.partition("%")[0], address.port
