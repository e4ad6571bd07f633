"""Which HTTP to try to a relay, in which order, and when to start the next.

Pure: delays are seconds from the start of the race. HTTP/3 over UDP is the best carrier where it
works and says nothing where it does not, so TCP follows a moment later, as an address family does
in Happy Eyeballs (RFC 8305). What won on a network goes first there the next time.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from anyreach.addresses import Scope, scope_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach.candidates import InterfaceAddress

__all__ = [
    "CARRIER_DELAY",
    "MAX_NETWORKS",
    "SECOND_BEST_SECONDS",
    "Carrier",
    "CarrierMemory",
    "NetworkKey",
    "better_than",
    "carrier_plan",
    "network_key",
]

Carrier: TypeAlias = Literal["h3", "h2", "h2-proxy"]
"""HTTP/3 over UDP; HTTP/2 over TLS over TCP; the same through an HTTP proxy by CONNECT."""

NetworkKey: TypeAlias = frozenset[str]
"""Names a network as well as a host can: the on-link prefixes, and the gateways where known."""

CARRIER_DELAY: Final = 0.25
"""Seconds between the starts of two carriers: the Connection Attempt Delay of RFC 8305 8."""

SECOND_BEST_SECONDS: Final = 600.0
"""How long a carrier that is not the best goes first. Trying UDP once in ten minutes costs a race a
quarter of a second where it is still blocked."""

MAX_NETWORKS: Final = 32
"""Networks remembered; more than anybody moves between in a month."""

# Bounds and factor as for addresses (happy_eyeballs.py): a first packet is repeated after about
# three round trips, and until then deserves patience.
_MIN_DELAY: Final = 0.1
_RTTS: Final = 3.0


def carrier_plan(
    *,
    proxy: bool = False,
    direct_tcp: bool = True,
    udp: bool = True,
    rtt: float | None = None,
    remembered: Carrier | None = None,
    delay: float = CARRIER_DELAY,
) -> tuple[tuple[Carrier, float], ...]:
    """The carriers to try, each with the offset in seconds at which it starts; never empty.

    A carrier that fails before lets the next one start at once. When a carrier wins that is not
    the best, the ones of :func:`better_than` are still worth their attempt: it is how UDP is found
    again after it was blocked.

    Args:
        proxy: an HTTP proxy is configured for this relay. It goes before TCP without it: where
            there is a proxy, TCP around it is usually dropped without a word.
        direct_tcp: the relay is known to listen on TCP, or may be.
        udp: the node's socket can reach the relay's family.
        rtt: round-trip time to the relay in seconds, if known.
        remembered: the carrier that won on this network before.
        delay: seconds between two starts if ``rtt`` does not say that less is enough.
    """
    order: list[Carrier] = []
    if udp:
        order.append("h3")
    if proxy:
        order.append("h2-proxy")
    if direct_tcp or not order:
        order.append("h2")
    if remembered in order:
        order.remove(remembered)
        order.insert(0, remembered)
    step = delay if rtt is None else min(delay, max(_MIN_DELAY, _RTTS * rtt))
    return tuple((carrier, index * step) for index, carrier in enumerate(order))


def better_than(carrier: Carrier) -> tuple[Carrier, ...]:
    """The carriers worth replacing ``carrier`` with, best first.

    Only HTTP/3 is better: it does not hold back what follows a lost packet. A proxy in between
    costs a little, but TCP around it is not worth a new tunnel.
    """
    return () if carrier == "h3" else ("h3",)


def network_key(interfaces: Iterable[InterfaceAddress], gateways: Iterable[str] = ()) -> NetworkKey:
    """The key of the network these interfaces are on.

    Loopback and link-local prefixes are the same everywhere and left out. IPv6 addresses with full
    prefix length, as some systems show them, count as their /64 (RFC 4291 2.5.4).
    """
    prefixes = set()
    for own in interfaces:
        if scope_of(own.ip) in (Scope.LOOPBACK, Scope.LINK_LOCAL):
            continue
        length = min(own.prefix_length, 64) if own.ip.version == 6 else own.prefix_length
        prefixes.add(str(ip_network((own.ip.packed, length), strict=False)))
    return frozenset(prefixes | {f"via {gateway}" for gateway in gateways})


class CarrierMemory:
    """Which carrier won on each network; at most :data:`MAX_NETWORKS`, oldest forgotten first.

    Times are seconds of a monotonic clock.
    """

    __slots__ = ("_winners",)

    def __init__(self) -> None:
        self._winners: OrderedDict[NetworkKey, tuple[Carrier, float]] = OrderedDict()

    def won(self, network: NetworkKey, carrier: Carrier, now: float) -> None:
        """Note that ``carrier`` was the first to work on ``network``."""
        self._winners.pop(network, None)
        while len(self._winners) >= MAX_NETWORKS:
            self._winners.popitem(last=False)
        self._winners[network] = (carrier, now)

    def winner(self, network: NetworkKey, now: float) -> Carrier | None:
        """The carrier that won on ``network`` last, if it is remembered.

        One that is not the best goes first for :data:`SECOND_BEST_SECONDS` only: UDP that was
        blocked may be open by then.
        """
        carrier, since = self._winners.get(network, (None, now))
        if carrier is None or (better_than(carrier) and now - since > SECOND_BEST_SECONDS):
            return None
        return carrier

    def failed(self, network: NetworkKey, carrier: Carrier) -> None:
        """Note that ``carrier`` does not work on ``network``: it need not go first any more."""
        if self._winners.get(network, (None, 0.0))[0] == carrier:
            del self._winners[network]

    def entered(self, network: NetworkKey) -> None:
        """The node came to ``network`` from another one, or its interfaces went down and up.

        Half of all networks are 192.168.0.0/24 or 192.168.1.0/24: what was remembered under a key
        without a public prefix may belong to another one of that name, and is forgotten.
        """
        if not any(_is_public(prefix) for prefix in network):
            self._winners.pop(network, None)

    def clear(self) -> None:
        """Forget everything."""
        self._winners.clear()

    def __len__(self) -> int:
        return len(self._winners)


def _is_public(prefix: str) -> bool:
    return not prefix.startswith("via ") and scope_of(ip_interface(prefix).ip) is Scope.GLOBAL
