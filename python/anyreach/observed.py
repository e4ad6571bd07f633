"""What peers say our own address is, and how far to believe it.

Pure state; time is an argument. Reports are OBSERVED_ADDRESS frames
(draft-ietf-quic-address-discovery-00). One report makes an address a *candidate*: trying it is
cheap and harms nobody but us. It is *believed* when several observers agree that one liar with
many identities cannot easily be: distinct PeerIds in distinct networks (draft, 6.1). A
report that disagrees never takes an agreed address away: hosts have several uplinks, and a NAT
may give every destination its own port.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from anyreach.addresses import Scope

if TYPE_CHECKING:
    from anyreach.addresses import IpAddress, SocketAddress
    from anyreach.peer import PeerId

__all__ = [
    "MAX_OBSERVERS",
    "Observation",
    "ObservationChange",
    "ObservedAddresses",
    "network_of",
]

_K = TypeVar("_K")

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
        return network_of(self.observer_address.ip)

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

    Attributes:
        version: another number whenever anything may have changed.
    """

    __slots__ = ("_believed", "_by_address", "_by_network", "_quorum", "_reports", "version")

    def __init__(self, quorum: int = 2) -> None:
        self.version = 0
        self._quorum = quorum
        # Oldest first. Per observer and family of our address: a dual-stack peer may see both.
        self._reports: dict[_Key, Observation] = {}
        # The same by what they say and by where they come from, so that a flood of reports costs
        # no more each than a single one; also oldest first.
        self._by_address: dict[SocketAddress, dict[_Key, Observation]] = {}
        self._by_network: dict[str, dict[_Key, Observation]] = {}
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
        self.version += 1
        key = (observer, address.version)
        observation = Observation(observer, observer_address, address, now)
        before = {address: self.observers(address)}
        self._drop(key, before)
        self._make_room(observation.network, before)
        self._reports[key] = observation
        self._by_address.setdefault(address, {})[key] = observation
        self._by_network.setdefault(observation.network, {})[key] = observation
        return self._changes(before, observation)

    def remove(self, observer: PeerId) -> tuple[ObservationChange, ...]:
        """Forget the reports of a peer that is no longer connected.

        Returns:
            What changed, if anything.
        """
        self.version += 1
        before: dict[SocketAddress, int] = {}
        for version in (4, 6):
            self._drop((observer, version), before)
        return self._changes(before)

    def candidates(self) -> tuple[SocketAddress, ...]:
        """Every reported address: believed ones first, then by number of observers."""
        latest = {a: max(o.at for o in reports.values()) for a, reports in self._by_address.items()}
        return tuple(
            sorted(
                self._by_address,
                key=lambda a: (
                    a not in self._believed,
                    -len(self._by_address[a]),
                    -latest[a],
                    a.sort_key,
                ),
            )
        )

    def believed(self) -> tuple[SocketAddress, ...]:
        """Addresses enough observers agreed on, best supported first.

        Once believed, an address stays so while anybody reports it.
        """
        return tuple(address for address in self.candidates() if address in self._believed)

    def observers(self, address: SocketAddress) -> int:
        """How many peers report ``address`` now."""
        return len(self._by_address.get(address, ()))

    def observations(self) -> tuple[Observation, ...]:
        """The latest reports, oldest first; what the mapping of a NAT is classified from."""
        return tuple(sorted(self._reports.values(), key=lambda o: o.at))

    def _is_agreed_by(self, latest: Observation) -> bool:
        """Whether the latest report makes its address one that enough networks agree on."""
        if not latest.counts:
            return False
        networks = {latest.network}
        for report in self._by_address[latest.address].values():
            if len(networks) >= self._quorum:
                break
            if report.network not in networks and report.counts:
                networks.add(report.network)
        return len(networks) >= self._quorum

    def _changes(
        self, before: dict[SocketAddress, int], report: Observation | None = None
    ) -> tuple[ObservationChange, ...]:
        """What became of addresses that had so many observers before ``report``."""
        changes = []
        for address, observers in before.items():
            if observers and address not in self._by_address:
                self._believed.discard(address)
                changes.append(ObservationChange("withdrawn", address, 0))
        for address, observers in before.items():
            now = self.observers(address)
            if now and not observers:
                changes.append(ObservationChange("adopted", address, now))
        # Only one more observer can make an agreement.
        if report and report.address not in self._believed and self._is_agreed_by(report):
            self._believed.add(report.address)
            now = self.observers(report.address)
            changes.append(ObservationChange("believed", report.address, now))
        return tuple(changes)

    def _drop(self, key: _Key, before: dict[SocketAddress, int]) -> None:
        """Forget a report if there is one; ``before`` notes how many its address had."""
        report = self._reports.pop(key, None)
        if report is None:
            return
        before.setdefault(report.address, self.observers(report.address))
        _take(self._by_address, report.address, key)
        _take(self._by_network, report.network, key)

    def _make_room(self, network: str, before: dict[SocketAddress, int]) -> None:
        """Drop the oldest reports of the fullest network while a limit is reached."""
        while True:
            if len(self._by_network.get(network, ())) >= _MAX_PER_NETWORK:
                crowded = self._by_network[network]
            elif len(self._reports) >= MAX_OBSERVERS:
                crowded = max(self._by_network.values(), key=len)
            else:
                return
            self._drop(min(crowded, key=lambda key: crowded[key].at), before)


_Key: TypeAlias = "tuple[PeerId, int]"


def _take(index: dict[_K, dict[_Key, Observation]], entry: _K, key: _Key) -> None:
    del index[entry][key]
    if not index[entry]:
        del index[entry]


@lru_cache(maxsize=4 * MAX_OBSERVERS)
def network_of(ip: IpAddress) -> str:
    """The network ``ip`` is in, as registries hand them out: its /16 for IPv4, /32 for IPv6."""
    prefix = _PREFIX_V4 if ip.version == 4 else _PREFIX_V6
    packed = ip.packed  # without the zone, which is no part of a network
    return str(ip_network((packed, prefix), strict=False))
