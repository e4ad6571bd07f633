"""Who sent how much to whom, counted by a router: the independent witness of what software claims.

The router counts every packet once, where it comes in from a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .machine import Machine

__all__ = ["Count", "Counters", "Located", "Traffic"]

_TABLE: Final = """
table inet traffic {
set v4 {
type ipv4_addr . ipv4_addr . inet_proto
flags dynamic
size 65535
counter
}
set v6 {
type ipv6_addr . ipv6_addr . inet_proto
flags dynamic
size 65535
counter
}
chain forward {
type filter hook forward priority -50; policy accept;
iifname "port*" add @v4 { ip saddr . ip daddr . meta l4proto }
iifname "port*" add @v6 { ip6 saddr . ip6 daddr . meta l4proto }
}
}
"""


class Located(Protocol):
    """A site or host, by the networks its packets come from."""

    @property
    def networks(self) -> Sequence[IPv4Network | IPv6Network]: ...


@dataclass(frozen=True, slots=True)
class Count:
    """An amount of IP packets, headers included in the bytes."""

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.bytes + other.bytes)

    def __sub__(self, other: Count) -> Count:
        return Count(self.packets - other.packets, self.bytes - other.bytes)


_Key = tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address, str]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was counted by source, destination and protocol (``udp``, ``tcp``, ...)."""

    counts: Mapping[_Key, Count]

    def sent(self, near: Located, far: Located, protocol: str | None = None) -> Count:
        """What went from one to the other, of one protocol or of all."""
        total = Count()
        for (source, destination, spoken), count in self.counts.items():
            wanted = protocol is None or spoken == protocol
            if wanted and _within(source, near) and _within(destination, far):
                total += count
        return total

    def between(self, a: Located, b: Located, protocol: str | None = None) -> Count:
        """What went between them, both directions together."""
        return self.sent(a, b, protocol) + self.sent(b, a, protocol)

    def __sub__(self, earlier: Traffic) -> Traffic:
        """What was counted since an earlier look."""
        return Traffic(
            {key: count - earlier.counts.get(key, Count()) for key, count in self.counts.items()}
        )


class Counters:
    """The counters of a router, zero when made."""

    def __init__(self, router: Machine) -> None:
        self._router = router
        router.nft(_TABLE)

    def read(self) -> Traffic:
        """What was counted so far."""
        counts: dict[_Key, Count] = {}
        for name in ("v4", "v6"):
            listing = self._router.nft_json(f"list set inet traffic {name}")
            for element in _elements(listing):
                source, destination, protocol = element["val"]["concat"]
                counter = element["counter"]
                key = ip_address(source), ip_address(destination), str(protocol)
                counts[key] = Count(counter["packets"], counter["bytes"])
        return Traffic(counts)


def _elements(listing: Any) -> list[Any]:
    sets = [item["set"] for item in listing["nftables"] if "set" in item]
    return [element["elem"] for found in sets for element in found.get("elem", [])]


def _within(address: IPv4Address | IPv6Address, place: Located) -> bool:
    return any(address in network for network in place.networks)
