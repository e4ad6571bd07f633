"""What peers say our own address is, and how far to believe it.

Pure state; time is an argument. Reports are OBSERVED_ADDRESS frames
(draft-ietf-quic-address-discovery-00). One report makes an address a *candidate*: trying it is
cheap and harms nobody but us. It is *believed* when several observers agree that one liar with
many identities cannot easily be: distinct PeerIds in distinct networks (draft, 6.1). A
report that disagrees never takes an agreed address away: hosts have several uplinks, and a NAT
may give every destination its own port.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final, Literal

from anyreach.addresses import Scope

if TYPE_CHECKING:
    from anyreach.addresses import IpAddress, SocketAddress
    from anyreach.peer import PeerId

__all__ = ["MAX_OBSERVERS", "Observation", "ObservationChange", "ObservedAddresses"]

MAX_OBSERVERS: Final = 64
"""Most reports kept. Agreement needs a handful; more only costs memory a peer can make us spend."""

_MAX_PER_NETWORK: Final = 8
"""Most reports kept from one /16 or /32, so that one network cannot crowd out the others."""

# Networks a single party rarely has several of: what address registries hand out in one piece.
_PREFIX_V4: Final = 16
_PREFIX_V6: Final = 32


@dataclass(frozen=True, slots=True)
class Observation:
    """The latest report of one peer about one of our addresses.

    Attributes:
        observer: who reports.
        observer_address: where the observer is, as we see it.
        address: our address as the observer sees it.
        at: when the report arrived, in seconds of a monotonic clock.
    """

    observer: PeerId
    observer_address: SocketAddress
    address: SocketAddress
    at: float

    @property
    def network(self) -> str:
        """The network of the observer: its /16 for IPv4, its /32 for IPv6."""
        return _network(self.observer_address.ip)

    @property
    def counts(self) -> bool:
        """Whether the observer is placed to know the address it reports.

        One inside our own host or site sees the inside of the NAT and cannot vouch for a
        global address.
        """
        if self.address.scope is not Scope.GLOBAL:
            return True
        return self.observer_address.scope in (Scope.GLOBAL, Scope.CGN)


@dataclass(frozen=True, slots=True)
class ObservationChange:
    """Something changed in what we know about our address.

    Attributes:
        kind: ``"adopted"``: new candidate; ``"believed"``: enough observers agree now;
            ``"withdrawn"``: nobody reports it any more.
        address: the address.
        observers: how many peers report it now.
    """

    kind: Literal["adopted", "believed", "withdrawn"]
    address: SocketAddress
    observers: int


class ObservedAddresses:
    """Reports of the connected peers, and the conclusions drawn from them.

    Args:
        quorum: networks with agreeing observers needed to believe an address; 1 to trust
            anybody, as in a closed network.
    """

    __slots__ = ("_believed", "_quorum", "_reports")

    def __init__(self, quorum: int = 2) -> None:
        self._quorum = quorum
        # Per observer and family of our address: a dual-stack peer may see both.
        self._reports: dict[tuple[PeerId, int], Observation] = {}
        self._believed: set[SocketAddress] = set()

    def report(
        self,
        observer: PeerId,
        observer_address: SocketAddress,
        address: SocketAddress,
        now: float,
    ) -> tuple[ObservationChange, ...]:
        """Take in a report; the latest of each observer and family replaces the one before.

        Addresses nobody can be reached at are ignored.

        Returns:
            What changed, if anything.
        """
        if not address.scope.dialable or address.port == 0:
            return ()
        before = self._support()
        self._reports.pop((observer, address.version), None)
        observation = Observation(observer, observer_address, address, now)
        self._make_room(observation.network)
        self._reports[observer, address.version] = observation
        return self._changes(before)

    def remove(self, observer: PeerId) -> tuple[ObservationChange, ...]:
        """Forget the reports of a peer that is no longer connected.

        Returns:
            What changed, if anything.
        """
        before = self._support()
        for version in (4, 6):
            self._reports.pop((observer, version), None)
        return self._changes(before)

    def candidates(self) -> tuple[SocketAddress, ...]:
        """Every reported address: believed ones first, then by number of observers."""
        support = self._support()
        latest = {o.address: o.at for o in self._reports.values()}
        return tuple(
            sorted(
                support,
                key=lambda a: (a not in self._believed, -support[a], -latest[a], a.sort_key),
            )
        )

    def believed(self) -> tuple[SocketAddress, ...]:
        """Addresses enough observers agreed on, best supported first.

        Once believed, an address stays so while anybody reports it.
        """
        return tuple(address for address in self.candidates() if address in self._believed)

    def observers(self, address: SocketAddress) -> int:
        """How many peers report ``address`` now."""
        return self._support()[address]

    def observations(self) -> tuple[Observation, ...]:
        """The latest reports, oldest first; what the mapping of a NAT is classified from."""
        return tuple(sorted(self._reports.values(), key=lambda o: o.at))

    def _support(self) -> Counter[SocketAddress]:
        return Counter(report.address for report in self._reports.values())

    def _agreeing_networks(self, address: SocketAddress) -> int:
        reports = [r for r in self._reports.values() if r.address == address and r.counts]
        return len({report.network for report in reports})

    def _changes(self, before: Counter[SocketAddress]) -> tuple[ObservationChange, ...]:
        after = self._support()
        gone = [address for address in before if address not in after]
        self._believed.difference_update(gone)
        changes = [ObservationChange("withdrawn", address, 0) for address in gone]
        for address, observers in after.items():
            if address not in before:
                changes.append(ObservationChange("adopted", address, observers))
            agreed = self._agreeing_networks(address) >= self._quorum
            if agreed and address not in self._believed:
                self._believed.add(address)
                changes.append(ObservationChange("believed", address, observers))
        return tuple(changes)

    def _make_room(self, network: str) -> None:
        """Drop the oldest reports of the fullest network while a limit is reached."""
        while True:
            counts = Counter(report.network for report in self._reports.values())
            if counts[network] >= _MAX_PER_NETWORK:
                crowded = network
            elif len(self._reports) >= MAX_OBSERVERS:
                crowded = counts.most_common(1)[0][0]
            else:
                return
            oldest = min(
                (key for key, report in self._reports.items() if report.network == crowded),
                key=lambda key: self._reports[key].at,
            )
            del self._reports[oldest]


def _network(ip: IpAddress) -> str:
    prefix = _PREFIX_V4 if ip.version == 4 else _PREFIX_V6
    packed = ip.packed  # without the zone, which is no part of a network
    return str(ip_network((packed, prefix), strict=False))
