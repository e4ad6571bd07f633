"""Which of the addresses a peer names for a third node are worth a packet.

Pure. A peer could name our own router, a printer or a victim elsewhere. So addresses that mean
something only inside a site are taken only with a sign that the third node is in ours
(RFC 9000 21.5.6).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from anyreach.addresses import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach.addresses import IpAddress, SocketAddress
    from anyreach.candidates import InterfaceAddress

__all__ = ["DENIED_PORTS", "MAX_PER_HOST", "Neighbourhood", "acceptable", "may_be_relay"]

DENIED_PORTS: Final = frozenset(
    {0, 19, 53, 69, 111, 123, 137, 138, 161, 389, 520, 1900, 5353, 11211}
)
"""Ports of services that answer a small packet with a large one, or that act on any packet:
chargen, DNS, TFTP, portmap, NTP, NetBIOS, SNMP, CLDAP, RIP, SSDP, mDNS, memcached. No node is
reached there, and a handshake sent there helps an attack."""

MAX_PER_HOST: Final = 4
"""Addresses taken that differ in the port only: one that is open and one that is observed, twice.
More would be many handshakes for one host, which may be somebody's victim."""

_SITE: Final = frozenset({Scope.PRIVATE, Scope.UNIQUE_LOCAL, Scope.CGN})


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What this node knows about itself and the peer that answered.

    Attributes:
        answerer: where this node reaches the peer that names the addresses; ``None`` if only
            through a relay.
        external: IP addresses other peers see this node under.
        interfaces: its own, with their prefixes.
    """

    answerer: SocketAddress | None
    external: frozenset[IpAddress]
    interfaces: tuple[InterfaceAddress, ...]


def acceptable(
    offered: Iterable[SocketAddress], seen: SocketAddress | None, around: Neighbourhood
) -> tuple[SocketAddress, ...]:
    """Those of ``offered`` that may be dialed, and ``seen`` itself, without duplicates.

    Args:
        offered: what the wanted node says of itself.
        seen: where the peer that answered sees it; first, because it is the one that is known
            to work from outside.
        around: this node.
    """
    candidates = dict.fromkeys((*((seen,) if seen is not None else ()), *offered))
    accepted: list[SocketAddress] = []
    of_host: Counter[IpAddress] = Counter()
    for address in candidates:
        if of_host[address.ip] < MAX_PER_HOST and _accept(address, seen, around):
            of_host[address.ip] += 1
            accepted.append(address)
    return tuple(accepted)


def may_be_relay(address: SocketAddress, around: Neighbourhood) -> bool:
    """Whether ``address``, where a relay is said to carry packets for a third node, may be dialed.

    A relay that is no public one is known to those in its site, so the peer that names it must be
    in ours. For packets of this node's own socket; through a tunnel the relay at its end judges.
    """
    if address.port in DENIED_PORTS:
        return False
    match address.scope:
        case Scope.GLOBAL:
            return True
        case Scope.LOOPBACK:
            return _scope(around.answerer) is Scope.LOOPBACK
        case Scope.PRIVATE | Scope.UNIQUE_LOCAL | Scope.CGN:
            return _scope(around.answerer) in (*_SITE, Scope.LOOPBACK)
        case _:
            return False


def _accept(address: SocketAddress, seen: SocketAddress | None, around: Neighbourhood) -> bool:
    if address.port in DENIED_PORTS:
        return False
    scope = address.scope
    if scope is Scope.GLOBAL:
        return True
    if scope is Scope.LOOPBACK:
        # The one that answered runs on this host, and sees the other one on it as well.
        return _scope(around.answerer) is Scope.LOOPBACK and _scope(seen) is Scope.LOOPBACK
    if scope not in _SITE:
        return False
    if any(_on_link(address, own) for own in around.interfaces):
        return True
    if seen is not None and seen.scope is Scope.GLOBAL:
        return seen.ip in around.external  # behind the same NAT
    # All three are in one site: the one that answered sees the other one from inside.
    return _scope(around.answerer) in _SITE and _scope(seen) in _SITE


def _scope(address: SocketAddress | None) -> Scope | None:
    return None if address is None else address.scope


def _on_link(address: SocketAddress, own: InterfaceAddress) -> bool:
    if own.ip.version != address.version or own.prefix_length == 0:
        return False
    host_bits = max(0, own.ip.max_prefixlen - own.prefix_length)
    return int(own.ip) >> host_bits == int(address.ip) >> host_bits
