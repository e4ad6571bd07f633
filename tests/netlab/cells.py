"""Which pairs of kinds the matrix consists of, and what sites there are in the world."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from . import kinds
from .truth import Cheapest, cheapest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .kinds import SiteKind

__all__ = [
    "DUAL",
    "QUICK",
    "QUICK_DUAL",
    "SOURCES",
    "TABLE",
    "TABLE_KINDS",
    "WEIGHTS",
    "Cell",
    "possible",
    "share",
]

Cell = tuple["SiteKind", "SiteKind"]
"""The near end, which connects, and the far one."""

TABLE_KINDS: Final = (
    kinds.PUBLIC,
    kinds.FIREWALLED,
    kinds.FULL_CONE,
    kinds.ADDRESS_RESTRICTED,
    kinds.PORT_RESTRICTED,
    kinds.SYMMETRIC_SEQUENTIAL,
    kinds.SYMMETRIC_RANDOM,
    kinds.CGNAT_PORT_RESTRICTED,
    kinds.CGNAT_SYMMETRIC,
    kinds.HOME,
    kinds.UDP_BLOCKED,
    kinds.TCP_443_ONLY,
    kinds.PROXY_ONLY,
)
"""The kinds of the IPv4 table, and the usual line of today, which has both families."""

TABLE: Final[tuple[Cell, ...]] = tuple((near, far) for near in TABLE_KINDS for far in TABLE_KINDS)
"""Every cell of it, in both roles."""


def possible(near: SiteKind, far: SiteKind) -> bool:
    """Whether a pair can be direct, by the laws of packets."""
    return cheapest(near, far) <= Cheapest.BIRTHDAY


def _both_ways(*cells: Cell) -> tuple[Cell, ...]:
    return tuple(dict.fromkeys(turned for a, b in cells for turned in ((a, b), (b, a))))


DUAL: Final = _both_ways(
    (kinds.V4_ONLY, kinds.V6_ONLY),
    (kinds.DUAL_STACK, kinds.V4_ONLY),
    (kinds.DUAL_STACK, kinds.V6_ONLY),
    (kinds.HOME_SYMMETRIC, kinds.HOME_SYMMETRIC),
    (kinds.HOME, kinds.HOME_SYMMETRIC),
    (kinds.V6_FIREWALLED, kinds.V6_FIREWALLED),
    (kinds.V6_FIREWALLED, kinds.V6_ONLY),
    (kinds.V6_FIREWALLED, kinds.HOME_SYMMETRIC),
    (kinds.NAT_OPEN_V6, kinds.HOME_SYMMETRIC),
    (kinds.HOME_SYMMETRIC, kinds.PORT_RESTRICTED),
    (kinds.HOME_SYMMETRIC, kinds.SYMMETRIC_RANDOM),
    (kinds.V6_FIREWALLED, kinds.PORT_RESTRICTED),
)
"""Pairs with IPv6 at an end."""

QUICK: Final = _both_ways(
    (kinds.PUBLIC, kinds.PUBLIC),
    (kinds.PUBLIC, kinds.PORT_RESTRICTED),
    (kinds.PUBLIC, kinds.SYMMETRIC_RANDOM),
    (kinds.FULL_CONE, kinds.SYMMETRIC_RANDOM),
    (kinds.FIREWALLED, kinds.PORT_RESTRICTED),
    (kinds.PORT_RESTRICTED, kinds.PORT_RESTRICTED),
    (kinds.ADDRESS_RESTRICTED, kinds.SYMMETRIC_RANDOM),
    (kinds.SYMMETRIC_SEQUENTIAL, kinds.PORT_RESTRICTED),
    (kinds.SYMMETRIC_SEQUENTIAL, kinds.SYMMETRIC_SEQUENTIAL),
    (kinds.CGNAT_PORT_RESTRICTED, kinds.PORT_RESTRICTED),
    (kinds.SYMMETRIC_RANDOM, kinds.PORT_RESTRICTED),
    (kinds.SYMMETRIC_RANDOM, kinds.SYMMETRIC_RANDOM),
    (kinds.UDP_BLOCKED, kinds.PORT_RESTRICTED),
)
"""Cells of every kind of way, for every day."""

QUICK_DUAL: Final = _both_ways(
    (kinds.V4_ONLY, kinds.V6_ONLY),
    (kinds.HOME_SYMMETRIC, kinds.HOME_SYMMETRIC),
    (kinds.NAT_OPEN_V6, kinds.HOME_SYMMETRIC),
)

WEIGHTS: Final[Mapping[SiteKind, float]] = {
    kinds.PUBLIC: 3.0,
    kinds.FIREWALLED: 2.0,
    kinds.FULL_CONE: 3.0,
    kinds.ADDRESS_RESTRICTED: 4.0,
    kinds.PORT_RESTRICTED: 25.0,
    kinds.HOME: 26.6,
    kinds.SYMMETRIC_SEQUENTIAL: 2.0,
    kinds.SYMMETRIC_RANDOM: 4.0,
    kinds.CGNAT_PORT_RESTRICTED: 20.0,
    kinds.CGNAT_SYMMETRIC: 6.0,
    kinds.UDP_BLOCKED: 2.2,
    kinds.TCP_443_ONLY: 1.2,
    kinds.PROXY_ONLY: 1.0,
}
"""Per cent of the sites of the world that are of each kind: an assumption, not a measurement."""

SOURCES: Final = """\
No survey counts today's sites by RFC 4787 behaviour, so the weights are an assumption: half of all
sites are households at a router of their own that is port-restricted, as Linux and most home
routers are, about half of these with IPv6 behind a firewall (the share that large sites see in
their user statistics); a quarter is behind a carrier's NAT, mostly as RFC 6888 wants it, with
endpoint-independent mapping, but cellular ones often otherwise (Richter et al., IMC 2016, arXiv
1605.05606); 4.4 % get no UDP out, as Google found of the clients that tried QUIC (Langley et al.,
SIGCOMM 2017)."""


def share(
    direct: Callable[[SiteKind, SiteKind], bool] = possible,
    weights: Mapping[SiteKind, float] = WEIGHTS,
) -> float:
    """The weighted share of pairs that are direct, 0 to 1.

    Args:
        direct: says so of a pair; by default what the laws of packets allow.
        weights: of the kinds.
    """
    pairs = list(itertools.product(weights.items(), repeat=2))
    return sum(one * other for (a, one), (b, other) in pairs if direct(a, b)) / sum(
        one * other for (_, one), (_, other) in pairs
    )
