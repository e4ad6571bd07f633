"""What can be chosen about a NAT, in the terms of RFC 4787. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Dependence", "NatPolicy", "Ports"]


class Dependence(Enum):
    """What a mapping or a filter depends on besides the internal endpoint."""

    ENDPOINT_INDEPENDENT = "ei"
    ADDRESS = "ad"
    ADDRESS_AND_PORT = "apd"


class Ports(Enum):
    """How the external port of a new mapping is chosen."""

    PRESERVE = "preserve"
    """The internal port, if it is free; otherwise a random one."""
    SEQUENTIAL = "sequential"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class NatPolicy:
    """A behaviour of a NAT.

    Attributes:
        mapping: of an internal endpoint to an external port (section 4.1).
        filtering: of what comes in to a mapping (section 5).
        ports: which external ports are used (section 4.2).
        hairpin: whether insiders reach each other by their external addresses (section 6).
        timeout: seconds without outbound packets after which a UDP mapping is gone (section 4.3).
    """

    mapping: Dependence
    filtering: Dependence
    ports: Ports
    hairpin: bool = False
    timeout: int = 120
