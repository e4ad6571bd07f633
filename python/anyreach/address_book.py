"""Where peers were found before, and how far away they were; in memory, bounded.

Pure state of one process. It lets :meth:`anyreach.Node.connect` find a peer again by its PeerId
alone, and Happy Eyeballs start with the address that answered fastest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyreach.addresses import SocketAddress
    from anyreach.peer import PeerId

__all__ = ["AddressBook"]

MAX_PEERS: Final = 1024
"""Peers remembered; as many as may be connected at once by default."""

MAX_PER_PEER: Final = 8
"""Addresses remembered of one peer: both families of a few networks it moves between."""

K = TypeVar("K")
V = TypeVar("V")


class AddressBook:
    """Remembers addresses that worked; what was not used longest is forgotten first."""

    __slots__ = ("_peers", "_rtts")

    def __init__(self) -> None:
        # Dictionaries keep insertion order: the first key is the one not used longest.
        self._peers: dict[PeerId, dict[SocketAddress, None]] = {}
        self._rtts: dict[SocketAddress, float] = {}

    def remember(self, peer: PeerId, address: SocketAddress, rtt: float | None = None) -> None:
        """Note that ``peer`` was reached at ``address``, ``rtt`` seconds away."""
        addresses = self._peers.pop(peer, {})
        addresses.pop(address, None)
        _put(addresses, address, None, MAX_PER_PEER)
        _put(self._peers, peer, addresses, MAX_PEERS)
        if rtt is not None and rtt > 0:
            self._rtts.pop(address, None)
            _put(self._rtts, address, rtt, MAX_PEERS)

    def addresses(self, peer: PeerId) -> tuple[SocketAddress, ...]:
        """Addresses of ``peer`` that worked, the latest first; empty if it is not known."""
        return tuple(reversed(self._peers.get(peer, {})))

    @property
    def rtts(self) -> Mapping[SocketAddress, float]:
        """Round-trip times in seconds, as measured last on the present network."""
        return self._rtts

    def network_changed(self) -> None:
        """Forget the round-trip times: they belong to another network (RFC 8305 4)."""
        self._rtts.clear()


def _put(entries: dict[K, V], key: K, value: V, limit: int) -> None:
    while len(entries) >= limit:
        del entries[next(iter(entries))]
    entries[key] = value
