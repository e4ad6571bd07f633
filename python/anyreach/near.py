"""Whether two nodes may be on one network, where private addresses mean the same to both.

Pure. A private address of a stranger may be anything in our own network (RFC 9000 21.5.6): it is
only worth a packet when there is a sign that it is the stranger's.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from anyreach.addresses import Scope, SocketAddress, scope_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach.addresses import IpAddress
    from anyreach.candidates import InterfaceAddress

__all__ = ["NARROW", "SITE_PREFIXES", "is_on_link", "may_share", "near_prefixes", "shared_prefixes"]

NARROW: Final = frozenset({Scope.PRIVATE, Scope.UNIQUE_LOCAL, Scope.CGN})
"""Scopes whose addresses mean something else in every network."""

SITE_PREFIXES: Final = (
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "100.64.0.0/10",
    "fc00::/7",
)
"""The networks of these scopes."""

_SITE_V6: Final = 48
"""Length of the prefix a site gets (RFC 6177: a /48 to a /56): IPv6 knows no shared external
address."""

_WIDEST: Final = {4: 8, 6: 48}
"""Shortest prefix of an interface that is believed to be one network; a VPN that routes everything
is none."""


def near_prefixes(interfaces: Iterable[InterfaceAddress]) -> tuple[str, ...]:
    """The networks this host is on, as ``"192.168.1.0/24"``: addresses in them may be neighbours.

    Without loopback, link-local and point-to-point ones.
    """
    found: dict[str, None] = {}
    for own in interfaces:
        if scope_of(own.ip) in (Scope.LOOPBACK, Scope.LINK_LOCAL):
            continue
        if _WIDEST[own.ip.version] <= own.prefix_length < own.ip.max_prefixlen:
            found[str(ip_network((own.ip.packed, own.prefix_length), strict=False))] = None
    return tuple(found)


def is_on_link(ip: IpAddress, interfaces: Iterable[InterfaceAddress]) -> bool:
    """Whether ``ip`` is in a network of one of the interfaces."""
    for own in interfaces:
        if own.ip.version != ip.version or own.prefix_length == 0:
            continue
        host_bits = max(0, own.ip.max_prefixlen - own.prefix_length)
        if int(own.ip) >> host_bits == int(ip) >> host_bits:
            return True
    return False


def may_share(
    interfaces: Iterable[InterfaceAddress],
    external: Iterable[IpAddress],
    peer: Iterable[SocketAddress],
) -> bool:
    """Whether a peer may be on a network with this node, so that it may be told private addresses.

    So it is if both are behind one external address (a home, an office, a carrier's NAT), if both
    have global IPv6 addresses of one site, or if an address of the peer is in a network of ours.

    Args:
        interfaces: addresses of this host.
        external: IP addresses peers see this node under.
        peer: addresses the peer is known by; it may have made them up.
    """
    near, known = tuple(interfaces), tuple(peer)
    return _has_one_outside(near, external, known) or _is_neighbour(near, known)


def shared_prefixes(
    interfaces: Iterable[InterfaceAddress],
    external: Iterable[IpAddress],
    peer: Iterable[SocketAddress],
) -> tuple[str, ...]:
    """Networks in which candidates of this peer are not to be refused.

    All private ones if both are behind one external address, because a site has more networks than
    the one a host is on; none otherwise, besides :func:`near_prefixes`, which hold for everybody.

    Args:
        interfaces, external: as for :func:`may_share`.
        peer: where others see the peer. What it says about itself must not open our network to
            its probes (RFC 9000 21.5.6).
    """
    return SITE_PREFIXES if _has_one_outside(tuple(interfaces), external, peer) else ()


def _has_one_outside(
    interfaces: Iterable[InterfaceAddress],
    external: Iterable[IpAddress],
    peer: Iterable[SocketAddress],
) -> bool:
    ours = {_outside(ip) for ip in (*external, *(own.ip for own in interfaces))} - {None}
    return any(_outside(address.ip) in ours for address in peer)


def _is_neighbour(interfaces: Iterable[InterfaceAddress], peer: Iterable[SocketAddress]) -> bool:
    # Every host has a loopback and a link-local network; they are not the same ones.
    local = (Scope.LOOPBACK, Scope.LINK_LOCAL)
    near = [own for own in interfaces if scope_of(own.ip) not in local]
    return any(is_on_link(address.ip, near) for address in peer)


def _outside(ip: IpAddress) -> str | None:
    """What two hosts of one site have in common outside of it."""
    if scope_of(ip) is not Scope.GLOBAL:
        return None
    if ip.version == 4:
        return str(ip)
    return str(ip_network((ip.packed, _SITE_V6), strict=False))
