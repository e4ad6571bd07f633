"""The kinds of sites there are, as data: how each family is attached, and what gets out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from .policies import Dependence, NatPolicy, Ports

__all__ = [
    "ADDRESS_RESTRICTED",
    "ALL",
    "CGNAT_PORT_RESTRICTED",
    "CGNAT_SYMMETRIC",
    "DUAL_STACK",
    "FIREWALLED",
    "FULL_CONE",
    "HOME",
    "HOME_SYMMETRIC",
    "NAT_OPEN_V6",
    "PORT_RESTRICTED",
    "PROXY_AUTH",
    "PROXY_ONLY",
    "PUBLIC",
    "SYMMETRIC_RANDOM",
    "SYMMETRIC_SEQUENTIAL",
    "TCP_443_ONLY",
    "UDP_BLOCKED",
    "V4_ONLY",
    "V6_FIREWALLED",
    "V6_ONLY",
    "Attachment",
    "Egress",
    "SiteKind",
]


class Attachment(Enum):
    """How the hosts of a site have an address family."""

    NONE = "none"
    OPEN = "open"
    """Public addresses that anybody reaches."""
    FIREWALLED = "firewalled"
    """Public addresses behind a stateful firewall: only answers come in."""
    TRANSLATED = "translated"
    """Private addresses behind a NAT."""


class Egress(Enum):
    """What the hosts of a site may send out."""

    ANY = "any"
    NO_UDP = "no-udp"
    TCP_443 = "tcp-443"
    """Only TCP to port 443."""
    PROXY = "proxy"
    """Nothing: there is an HTTP proxy that knows CONNECT, and no name resolution."""
    PROXY_AUTH = "proxy-auth"
    """As ``PROXY``, and the proxy wants a name and a password."""


@dataclass(frozen=True, slots=True)
class SiteKind:
    """A kind of site.

    Attributes:
        name: how people call it, lower case with hyphens.
        v4, v6: how its hosts have each family.
        nat: what its router does, if ``v4`` is translated.
        carrier: what its provider's router does besides, if the provider has no addresses either.
        egress: what it may send out.
    """

    name: str
    v4: Attachment = Attachment.TRANSLATED
    v6: Attachment = Attachment.NONE
    nat: NatPolicy | None = None
    carrier: NatPolicy | None = None
    egress: Egress = Egress.ANY

    def __post_init__(self) -> None:
        if (self.v4 is Attachment.TRANSLATED) is not (self.nat is not None):
            raise ValueError(f"{self.name}: a NAT policy goes with translated IPv4")
        if self.v6 is Attachment.TRANSLATED:
            raise ValueError(f"{self.name}: IPv6 is not translated")
        if self.carrier is not None and (self.nat is None or self.v6 is not Attachment.NONE):
            raise ValueError(f"{self.name}: a carrier's NAT is for translated IPv4 alone")

    @property
    def has_router(self) -> bool:
        """Whether the hosts are behind a router of their own rather than at the internet's."""
        bare = {Attachment.NONE, Attachment.OPEN}
        return not {self.v4, self.v6} <= bare or self.egress is not Egress.ANY

    @property
    def has_proxy(self) -> bool:
        """Whether an HTTP proxy is the only way out."""
        return self.egress in (Egress.PROXY, Egress.PROXY_AUTH)

    def __str__(self) -> str:
        return self.name


_EI, _AD, _APD = (
    Dependence.ENDPOINT_INDEPENDENT,
    Dependence.ADDRESS,
    Dependence.ADDRESS_AND_PORT,
)
_PORT_RESTRICTED: Final = NatPolicy(_EI, _APD, Ports.PRESERVE)
_SYMMETRIC: Final = NatPolicy(_APD, _APD, Ports.RANDOM)

PUBLIC: Final = SiteKind("public", Attachment.OPEN, Attachment.OPEN)
FIREWALLED: Final = SiteKind("firewalled", Attachment.FIREWALLED)
FULL_CONE: Final = SiteKind("full-cone", nat=NatPolicy(_EI, _EI, Ports.PRESERVE))
ADDRESS_RESTRICTED: Final = SiteKind("address-restricted", nat=NatPolicy(_EI, _AD, Ports.PRESERVE))
PORT_RESTRICTED: Final = SiteKind("port-restricted", nat=_PORT_RESTRICTED)
SYMMETRIC_SEQUENTIAL: Final = SiteKind(
    "symmetric-sequential", nat=NatPolicy(_APD, _APD, Ports.SEQUENTIAL)
)
SYMMETRIC_RANDOM: Final = SiteKind("symmetric-random", nat=_SYMMETRIC)
CGNAT_PORT_RESTRICTED: Final = SiteKind(
    "cgnat-port-restricted",
    nat=_PORT_RESTRICTED,
    # A carrier's ports are shared by many, so nobody's are preserved.
    carrier=NatPolicy(_EI, _APD, Ports.RANDOM),
)
CGNAT_SYMMETRIC: Final = SiteKind("cgnat-symmetric", nat=_PORT_RESTRICTED, carrier=_SYMMETRIC)

UDP_BLOCKED: Final = SiteKind("udp-blocked", nat=_PORT_RESTRICTED, egress=Egress.NO_UDP)
TCP_443_ONLY: Final = SiteKind("tcp-443-only", nat=_PORT_RESTRICTED, egress=Egress.TCP_443)
PROXY_ONLY: Final = SiteKind("proxy-only", nat=_PORT_RESTRICTED, egress=Egress.PROXY)
PROXY_AUTH: Final = SiteKind("proxy-auth", nat=_PORT_RESTRICTED, egress=Egress.PROXY_AUTH)

V4_ONLY: Final = SiteKind("v4-only", Attachment.OPEN, Attachment.NONE)
V6_ONLY: Final = SiteKind("v6-only", Attachment.NONE, Attachment.OPEN)
DUAL_STACK: Final = SiteKind("dual-stack", Attachment.OPEN, Attachment.OPEN)
"""As ``PUBLIC``, by its other name."""
V6_FIREWALLED: Final = SiteKind("v6-firewalled", Attachment.NONE, Attachment.FIREWALLED)
HOME: Final = SiteKind("home", v6=Attachment.FIREWALLED, nat=_PORT_RESTRICTED)
"""The usual line of today: a port-restricted NAT and a firewall for IPv6."""
HOME_SYMMETRIC: Final = SiteKind("home-symmetric", v6=Attachment.FIREWALLED, nat=_SYMMETRIC)
NAT_OPEN_V6: Final = SiteKind("nat-open-v6", v6=Attachment.OPEN, nat=_SYMMETRIC)
"""IPv6 that anybody reaches beside the worst IPv4."""

ALL: Final = {
    kind.name: kind
    for kind in (
        PUBLIC,
        FIREWALLED,
        FULL_CONE,
        ADDRESS_RESTRICTED,
        PORT_RESTRICTED,
        SYMMETRIC_SEQUENTIAL,
        SYMMETRIC_RANDOM,
        CGNAT_PORT_RESTRICTED,
        CGNAT_SYMMETRIC,
        UDP_BLOCKED,
        TCP_443_ONLY,
        PROXY_ONLY,
        PROXY_AUTH,
        V4_ONLY,
        V6_ONLY,
        DUAL_STACK,
        V6_FIREWALLED,
        HOME,
        HOME_SYMMETRIC,
        NAT_OPEN_V6,
    )
}
"""Every kind by its name."""
