"""IP addresses as the rest of the package sees them: canonical, with a scope.

Pure: no name is resolved and no socket opened here. An IPv4-mapped IPv6 address
(``::ffff:192.0.2.1``, RFC 4291 2.5.5.2) exists only inside the socket call of the Rust core;
everything built here is canonical IPv4 instead, so comparing two addresses is enough.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

from anyreach.errors import ConfigError

__all__ = [
    "HostPort",
    "IpAddress",
    "IpMode",
    "Scope",
    "SocketAddress",
    "canonical_ip",
    "parse_ip",
    "scope_of",
]

IpAddress: TypeAlias = IPv4Address | IPv6Address


class IpMode(Enum):
    """The address families a node uses."""

    DUAL_STACK = "dual"
    """IPv6 and IPv4 on one socket; falls back to the family the system has."""

    IPV4_ONLY = "v4"
    """IPv4 alone."""

    IPV6_ONLY = "v6"
    """IPv6 alone."""

    @property
    def ipv4(self) -> bool:
        """Whether IPv4 peers can be reached."""
        return self is not IpMode.IPV6_ONLY

    @property
    def ipv6(self) -> bool:
        """Whether IPv6 peers can be reached."""
        return self is not IpMode.IPV4_ONLY

    def allows(self, ip: IpAddress) -> bool:
        """Whether addresses of the family of ``ip`` are used in this mode."""
        return self.ipv4 if ip.version == 4 else self.ipv6


class Scope(Enum):
    """How far an address reaches."""

    LOOPBACK = "loopback"
    """This host (127.0.0.0/8, ::1)."""
    LINK_LOCAL = "link-local"
    """One link (169.254.0.0/16, fe80::/10)."""
    PRIVATE = "private"
    """One site (RFC 1918; 198.18.0.0/15 of RFC 2544, used by test beds and some VPNs)."""
    UNIQUE_LOCAL = "unique-local"
    """One IPv6 site (fc00::/7, the old fec0::/10, the local NAT64 prefix 64:ff9b:1::/48)."""
    CGN = "cgn"
    """Behind a carrier's NAT (100.64.0.0/10, RFC 6598)."""
    GLOBAL = "global"
    """The Internet. The documentation ranges count as global: test labs use them as such."""
    MULTICAST = "multicast"
    """A group (224.0.0.0/4, ff00::/8)."""
    UNSPECIFIED = "unspecified"
    """No address (0.0.0.0, ::): fit for binding, not for dialing."""
    RESERVED = "reserved"
    """Not assigned to hosts: 0.0.0.0/8, 192.0.0.0/24, 240.0.0.0/4, IPv6 outside 2000::/3."""

    @property
    def dialable(self) -> bool:
        """Whether a packet to such an address can reach one host."""
        return self not in _NOT_DIALABLE


_NOT_DIALABLE: Final = frozenset({Scope.MULTICAST, Scope.UNSPECIFIED, Scope.RESERVED})

_V4_SCOPES: Final = (
    (IPv4Network("0.0.0.0/32"), Scope.UNSPECIFIED),
    (IPv4Network("0.0.0.0/8"), Scope.RESERVED),
    (IPv4Network("10.0.0.0/8"), Scope.PRIVATE),
    (IPv4Network("100.64.0.0/10"), Scope.CGN),
    (IPv4Network("127.0.0.0/8"), Scope.LOOPBACK),
    (IPv4Network("169.254.0.0/16"), Scope.LINK_LOCAL),
    (IPv4Network("172.16.0.0/12"), Scope.PRIVATE),
    (IPv4Network("192.0.0.0/24"), Scope.RESERVED),
    (IPv4Network("192.168.0.0/16"), Scope.PRIVATE),
    (IPv4Network("198.18.0.0/15"), Scope.PRIVATE),
    (IPv4Network("224.0.0.0/4"), Scope.MULTICAST),
    (IPv4Network("240.0.0.0/4"), Scope.RESERVED),
)
_V6_SCOPES: Final = (
    (IPv6Network("::/128"), Scope.UNSPECIFIED),
    (IPv6Network("::1/128"), Scope.LOOPBACK),
    (IPv6Network("fe80::/10"), Scope.LINK_LOCAL),
    (IPv6Network("fc00::/7"), Scope.UNIQUE_LOCAL),
    (IPv6Network("fec0::/10"), Scope.UNIQUE_LOCAL),
    (IPv6Network("64:ff9b:1::/48"), Scope.UNIQUE_LOCAL),
    (IPv6Network("ff00::/8"), Scope.MULTICAST),
    (IPv6Network("2000::/3"), Scope.GLOBAL),
)
_NAT64: Final = IPv6Network("64:ff9b::/96")


def canonical_ip(ip: IpAddress) -> IpAddress:
    """``ip``, with an IPv4-mapped IPv6 address turned into the IPv4 address it stands for."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def parse_ip(text: str) -> IpAddress | None:
    """The canonical address ``text`` is a literal of, or ``None``.

    IPv6 literals may carry a zone (``fe80::1%eth0``, RFC 4007 11) if they are link-local.
    """
    try:
        if ":" not in text:
            return IPv4Address(text)
        ip = IPv6Address(text)
    except AddressValueError:
        return None
    if ip.scope_id is not None and not (ip.is_link_local and _ZONE.fullmatch(ip.scope_id)):
        return None
    return canonical_ip(ip)


# Asked for the same few addresses with every connection; networks are compared one by one.
@lru_cache(maxsize=4096)
def scope_of(ip: IpAddress) -> Scope:
    """The scope of ``ip``.

    Addresses that carry an IPv4 address (mapped; 6to4, RFC 3056; NAT64, RFC 6052) have the
    scope of that address: ``2002:7f00:1::`` reaches no further than ``127.0.0.1``.
    """
    ip = canonical_ip(ip)
    if isinstance(ip, IPv4Address):
        return next((scope for network, scope in _V4_SCOPES if ip in network), Scope.GLOBAL)
    if ip in _NAT64:
        return scope_of(IPv4Address(int(ip) & 0xFFFF_FFFF))
    if ip.sixtofour is not None:
        return scope_of(ip.sixtofour)
    return next((scope for network, scope in _V6_SCOPES if ip in network), Scope.RESERVED)


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """An IP address and a UDP port, canonical by construction.

    Attributes:
        ip: IPv4 or IPv6 address; IPv4-mapped addresses are turned into IPv4.
        port: 0 to 65535; 0 only where the system is to choose.

    Raises:
        ConfigError: the port is out of range.
    """

    ip: IpAddress
    port: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "ip", canonical_ip(self.ip))
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", self.port, "use a number from 0 to 65535")

    @classmethod
    def of(cls, host: str, port: int) -> SocketAddress:
        """From an IP literal and a port, as the Rust core and :mod:`socket` give them.

        Raises:
            ConfigError: ``host`` is not an IP literal, or ``port`` is out of range.
        """
        ip = parse_ip(host)
        if ip is None:
            raise ConfigError("address", host, "use an IPv4 or IPv6 address")
        return cls(ip, port)

    @property
    def version(self) -> int:
        """The address family: 4 or 6."""
        return self.ip.version

    @property
    def scope(self) -> Scope:
        """How far the address reaches."""
        return scope_of(self.ip)

    @property
    def host(self) -> str:
        """The IP address as text, without brackets."""
        return str(self.ip)

    @property
    def sort_key(self) -> tuple[int, bytes, str, int]:
        """A total order over addresses of both families, which :mod:`ipaddress` has not."""
        zone = self.ip.scope_id or "" if isinstance(self.ip, IPv6Address) else ""
        return (self.version, self.ip.packed, zone, self.port)

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.version == 6 else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class HostPort:
    """``HOST:PORT`` as people write it; the host may be a name still to be resolved.

    Attributes:
        host: canonical IP literal without brackets, or a lower-case DNS name.
        port: 0 to 65535.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, field: str = "address", port_zero: bool = False) -> HostPort:
        """From ``host:port``, ``a.b.c.d:port``, ``[v6]:port`` or ``[fe80::1%zone]:port``.

        Args:
            text: what the user wrote.
            field: the name an error blames.
            port_zero: accept port 0 ("any free port"), which only binding can use.

        Raises:
            ConfigError: the text is none of these; ``remedy`` says what is wrong.
        """
        host, port_text = _split(text, field)
        if not _PORT.fullmatch(port_text) or int(port_text) > 65535:
            raise ConfigError(field, text, f"the port is {port_text!r}; use a number up to 65535")
        port = int(port_text)
        if port == 0 and not port_zero:
            raise ConfigError(field, text, "port 0 cannot be dialed; use 1 to 65535")
        ip = parse_ip(host)
        if ip is not None:
            return cls(str(ip), port)
        return cls(_parse_name(host, text, field), port)

    @classmethod
    def parse_peer(cls, text: str, *, field: str = "peer") -> HostPort:
        """As :meth:`parse`, for an address that is to be dialed.

        Raises:
            ConfigError: also for addresses that no packet can be sent to: the wildcard,
                multicast and reserved ones.
        """
        parsed = cls.parse(text, field=field)
        address = parsed.address
        if address is not None and not address.scope.dialable:
            raise ConfigError(
                field,
                text,
                f"no host has {address.ip} ({address.scope.value}); use an address of the peer",
            )
        return parsed

    @property
    def address(self) -> SocketAddress | None:
        """The address, or ``None`` if the host is a name."""
        ip = parse_ip(self.host)
        return None if ip is None else SocketAddress(ip, self.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_PORT: Final = re.compile(r"[0-9]{1,5}")
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ZONE: Final = re.compile(r"[A-Za-z0-9._:~-]{1,64}")
# RFC 1035 2.3.4 allows 255 octets on the wire, which is 253 characters of text.
_MAX_NAME: Final = 253


def _split(text: str, field: str) -> tuple[str, str]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        ip = parse_ip(host) if ":" in host else None
        if not closed or ip is None:
            raise ConfigError(field, text, "in brackets goes an IPv6 address, like [2001:db8::1]")
        if not rest.startswith(":"):
            raise ConfigError(field, text, f"add the port after the bracket, like [{host}]:9000")
        return host, rest[1:]
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ConfigError(field, text, f"add the port, like {text or 'example.org'}:9000")
    if ":" in host:
        raise ConfigError(field, text, "write IPv6 addresses in brackets, like [2001:db8::1]:9000")
    return host, port


def _parse_name(host: str, text: str, field: str) -> str:
    if not host:
        raise ConfigError(field, text, "the host is missing; write HOST:PORT")
    if not host.isascii():
        raise ConfigError(field, text, "write international names in ASCII form, like xn--...")
    name = host.lower()
    labels = name.removesuffix(".").split(".")
    # Resolvers read "127.1" and "0x7f.0.0.1" as addresses; nobody means that today.
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        raise ConfigError(field, text, f"{host!r} is neither an IPv4 address nor a name")
    if len(name) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ConfigError(field, text, f"{host!r} is not a host name or IP address")
    return name
