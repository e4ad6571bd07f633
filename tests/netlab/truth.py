"""What networks allow: the cheapest way that connects a pair of sites, by the laws of packets.

Software that relays where punching works has failed; software that claims a direct path where
there can be none is wrong. Derived from what the kinds *are*; a test compares it with the table
that was measured with plain sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from .kinds import Attachment, Egress
from .policies import Dependence, Ports

if TYPE_CHECKING:
    from .kinds import SiteKind

__all__ = ["Cheapest", "acceptable", "cheapest", "is_dialable", "required"]


class Cheapest(IntEnum):
    """Ways to connect a pair, cheapest first."""

    DIRECT = 0
    """One end dials the other."""
    SIMULTANEOUS = 1
    """Both ends send at the same time."""
    PREDICTION = 2
    """The next port of a symmetric NAT is guessed from the last ones."""
    BIRTHDAY = 3
    """Many sockets at one end meet many guesses of the other."""
    TCP = 4
    """TCP to the other end itself."""
    UDP_RELAY = 5
    """A relay, reached by UDP."""
    TCP_RELAY = 6
    """A relay that one end reaches by TCP to port 443 or through its proxy."""


@dataclass(frozen=True, slots=True)
class _Behaviour:
    """What the internet sees of a family at a site: all boxes on the way as one."""

    mapping: Dependence
    filtering: Dependence
    sequential: bool


_RANK = [Dependence.ENDPOINT_INDEPENDENT, Dependence.ADDRESS, Dependence.ADDRESS_AND_PORT]
_OPEN = _Behaviour(Dependence.ENDPOINT_INDEPENDENT, Dependence.ENDPOINT_INDEPENDENT, False)
_STATEFUL = _Behaviour(Dependence.ENDPOINT_INDEPENDENT, Dependence.ADDRESS_AND_PORT, False)


def _behaviour(kind: SiteKind, version: int) -> _Behaviour | None:
    match kind.v4 if version == 4 else kind.v6:
        case Attachment.NONE:
            return None
        case Attachment.OPEN:
            return _OPEN
        case Attachment.FIREWALLED:
            return _STATEFUL
    boxes = [nat for nat in (kind.nat, kind.carrier) if nat is not None]
    return _Behaviour(
        max((nat.mapping for nat in boxes), key=_RANK.index),
        max((nat.filtering for nat in boxes), key=_RANK.index),
        # The outermost box chooses the ports that can be seen.
        boxes[-1].ports is Ports.SEQUENTIAL,
    )


def _by_udp(a: _Behaviour, b: _Behaviour) -> Cheapest:
    independent = Dependence.ENDPOINT_INDEPENDENT
    if any(end.mapping is end.filtering is independent for end in (a, b)):
        return Cheapest.DIRECT
    dependent = [end for end in (a, b) if end.mapping is not independent]
    if not dependent:
        return Cheapest.SIMULTANEOUS
    if len(dependent) == 2:
        both = all(end.sequential for end in dependent)
        return Cheapest.PREDICTION if both else Cheapest.UDP_RELAY
    (unknown,) = dependent
    known = b if unknown is a else a
    if known.filtering is not Dependence.ADDRESS_AND_PORT:
        return Cheapest.SIMULTANEOUS  # whatever port the unknown end comes from gets in
    return Cheapest.PREDICTION if unknown.sequential else Cheapest.BIRTHDAY


def is_dialable(near: SiteKind, far: SiteKind) -> bool:
    """Whether the near end reaches the far one by UDP at an address that the far one knows."""
    return near.egress is far.egress is Egress.ANY and any(
        _behaviour(near, version) is not None and _behaviour(far, version) is _OPEN
        for version in (4, 6)
    )


def cheapest(a: SiteKind, b: SiteKind) -> Cheapest:
    """The cheapest way that connects a pair, whoever begins."""
    ends = [(_behaviour(a, version), _behaviour(b, version)) for version in (4, 6)]
    common = [(one, other) for one, other in ends if one is not None and other is not None]
    if a.egress is b.egress is Egress.ANY:
        return min((_by_udp(*pair) for pair in common), default=Cheapest.UDP_RELAY)
    for one, other in common:
        if (one is _OPEN and a.egress is Egress.ANY) or (other is _OPEN and b.egress is Egress.ANY):
            return Cheapest.TCP
    return Cheapest.TCP_RELAY


def acceptable(near: SiteKind, far: SiteKind) -> frozenset[str]:
    """The methods that software may honestly report when the near end connects to the far one.

    Relaying is acceptable wherever the near end cannot simply dial the far one.
    """
    if is_dialable(near, far):
        return frozenset({"direct"})
    match cheapest(near, far):
        case Cheapest.DIRECT:
            return frozenset({"direct", "punched", "relayed"})
        case Cheapest.SIMULTANEOUS | Cheapest.PREDICTION | Cheapest.BIRTHDAY:
            return frozenset({"punched", "relayed"})
        case _:
            return frozenset({"relayed"})


def required(near: SiteKind, far: SiteKind) -> frozenset[str]:
    """The methods of which software must have got to one in the end: no relay where none need be.

    The near end connects to the far one. Where punching is needed, a plain dial of either end may
    be answered all the same, once the punching has opened the way. A node that can be dialed in one
    family only keeps an address at a relay, and who dials both may get there first.
    """
    if is_dialable(near, far) and {far.v4, far.v6} <= {Attachment.OPEN, Attachment.NONE}:
        return frozenset({"direct"})
    if cheapest(near, far) <= Cheapest.BIRTHDAY:
        return frozenset({"direct", "punched"})
    return frozenset({"relayed"})
