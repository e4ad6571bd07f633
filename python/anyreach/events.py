"""What a node tells about itself: typed events, yielded by :meth:`anyreach.Node.events`.

The fields are those of the JSON lines the command line prints; :meth:`Event.to_dict` gives
that form. Times ending in ``_ms`` or called ``ms`` are milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from .carriers import Carrier
    from .peer import PeerId, Ticket

__all__ = [
    "Connected",
    "Disconnected",
    "Event",
    "ExternalAddress",
    "KnownPeerState",
    "Nat",
    "PathChanged",
    "Punch",
    "Ready",
    "Relay",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events.

    Attributes:
        event: the name of the event in JSON, a class attribute.
    """

    event: ClassVar[str]

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-ready values, ``"event"`` first; PeerIds and tickets as text."""
        values = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {"event": self.event, **values}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """The socket is bound and the node accepts connections. First event of every subscription.

    Attributes:
        peer_id: this node.
        udp: addresses it can be dialed at, as far as the machine itself can tell.
        tcp: addresses of the HTTPS carrier listener; empty when there is none.
        ip_mode: what was bound, ``"dual"``, ``"v4"`` or ``"v6"``.
        ticket: PeerId and addresses in one string to hand to others.
    """

    event: ClassVar[str] = "ready"
    peer_id: PeerId
    udp: tuple[str, ...]
    tcp: tuple[str, ...]
    ip_mode: str
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class KnownPeerState(Event):
    """A peer from ``known_peers`` was connected, or an attempt to connect it failed.

    Attributes:
        peer_id: the peer; ``None`` while an entry without PeerId has never answered.
        address: the entry as it was configured (without its PeerId).
        state: ``"connected"`` or ``"failed"``. Failed entries are tried again, except those
            that turned out to be this node itself.
        error: why it failed, for people; ``None`` when connected.
    """

    event: ClassVar[str] = "known_peer"
    peer_id: PeerId | None
    address: str
    state: Literal["connected", "failed"]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ExternalAddress(Event):
    """Enough peers agree that this node is seen at an address (OBSERVED_ADDRESS).

    Attributes:
        address: ``ip:port`` as the peers see it.
        observers: how many connected peers report it.
    """

    event: ClassVar[str] = "external_address"
    address: str
    observers: int


@dataclass(frozen=True, slots=True)
class Nat(Event):
    """What is known about the NAT in front of this node changed (RFC 4787 terms).

    That the peers it is known from have left is no change; see :class:`anyreach.NatReport`.

    Attributes:
        mapping: ``"none"``, ``"endpoint-independent"``, ``"address-dependent"``,
            ``"address-and-port-dependent"`` or ``"unknown"``.
        filtering: the same words.
        ports: how external ports are chosen: ``"preserving"``, ``"sequential"``, ``"random"`` or
            ``"unknown"``.
        step: from one port to the next, if they are sequential, else 0.
    """

    event: ClassVar[str] = "nat"
    mapping: str
    filtering: str
    ports: str = "unknown"
    step: int = 0


@dataclass(frozen=True, slots=True)
class Relay(Event):
    """This node got an address at a relay, or no longer has it.

    Attributes:
        peer_id: the relay; ``None`` for a proxy that is no node.
        address: ``ip:port`` at which others reach this node through it; the one of the IPv6 family
            if there are two, and where the relay itself is if it never gave one.
        carrier: ``"h3"``, ``"h2"`` or ``"h2-proxy"``.
        state: ``"reserved"`` or ``"lost"``.
    """

    event: ClassVar[str] = "relay"
    peer_id: PeerId | None
    address: str
    carrier: Carrier
    state: Literal["reserved", "lost"]


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """A connection was established, by either side.

    Attributes:
        peer_id: the peer.
        direction: ``"out"`` when this node dialed, else ``"in"``.
        method: how the first path was made: ``"direct"``, ``"punched"`` or ``"relayed"``.
        remote: ``ip:port`` of the peer on that path.
        ms: how long it took, from the call to ``connect()`` (or, for incoming connections,
            from the first packet of the handshake).
        rtt_ms: round-trip time of that path.
        group: TLS key-exchange group, ``"X25519MLKEM768"`` or ``"MLKEM768"``.
        relay: the relay a relayed path goes through; ``None`` if that is not known.
    """

    event: ClassVar[str] = "connected"
    peer_id: PeerId
    direction: Literal["in", "out"]
    method: str
    remote: str
    ms: float
    rtt_ms: float
    group: str
    relay: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Punch(Event):
    """A round of punching is over, of a connection this node has dialed.

    Attributes:
        peer_id: the peer.
        method: ``"simple"``, ``"predict"``, ``"pool"`` or ``"spray"``; see
            :class:`anyreach.explain.PunchAttempt`.
        result: ``"direct"``: it made a path; ``"failed"``; ``"refused"``: a limit of this node or
            the peer did not let it begin.
        ms: how long it took.
        remote: ``ip:port`` of the path, if there is one.
        reason: one sentence for people.
    """

    event: ClassVar[str] = "punch"
    peer_id: PeerId
    method: Literal["simple", "predict", "pool", "spray"]
    result: Literal["direct", "failed", "refused"]
    ms: float
    remote: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class PathChanged(Event):
    """Data to a peer goes another way from now on.

    Attributes:
        peer_id: the peer.
        method: ``"direct"``, ``"punched"`` or ``"relayed"``.
        remote: ``ip:port`` of the peer on the new path.
        rtt_ms: round-trip time of the new path.
        reason: ``"better"``, ``"failover"`` or ``"roamed"``.
        relay: the relay a relayed path goes through; ``None`` if that is not known.
    """

    event: ClassVar[str] = "path"
    peer_id: PeerId
    method: str
    remote: str
    rtt_ms: float
    reason: str
    relay: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Disconnected(Event):
    """A connection ended.

    Attributes:
        peer_id: the peer.
        reason: as :attr:`anyreach.ConnectionLost.reason`.
    """

    event: ClassVar[str] = "disconnected"
    peer_id: PeerId
    reason: str
