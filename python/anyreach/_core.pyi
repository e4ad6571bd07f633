"""The Rust core. Private: use the classes of the package instead.

Conventions: every ``poll_*`` method either returns its result at once, raises, or returns
``None`` and arranges for ``token`` to appear in ``bridge.take()`` when it is worth polling
again. A result stays in Rust until a poll takes it, so a cancelled awaiter loses nothing.
No method blocks; the GIL is released while Rust works. PeerIds are 32 raw bytes here.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, final

__all__ = [
    "Bridge",
    "Connection",
    "DatagramSend",
    "Dial",
    "DialFailed",
    "Endpoint",
    "Find",
    "Identity",
    "PathAttempt",
    "PathInfo",
    "Pool",
    "PortMapping",
    "RecvStream",
    "Reflection",
    "SendStream",
    "Spray",
    "Tunnel",
    "__version__",
    "interface_addresses",
    "mlkem768_decapsulate",
    "mlkem768_encapsulate",
    "mlkem768_generate",
]

__version__: str

@final
class Identity:
    """An ML-DSA-65 key pair (FIPS 204)."""
    @staticmethod
    def generate() -> Identity: ...
    @staticmethod
    def from_pkcs8(der: bytes) -> Identity: ...  # raises errors.IdentityError
    def to_pkcs8(self) -> bytes: ...
    @property
    def public_key(self) -> bytes: ...  # DER SubjectPublicKeyInfo, 1974 bytes
    @property
    def peer_id(self) -> bytes: ...  # SHA-256 of public_key

@final
class Bridge:
    """Queue of wake-up tokens for one event loop; an eventfd tells when it is not empty."""
    def __new__(cls) -> Bridge: ...
    def fileno(self) -> int: ...  # -1 on platforms without a pollable descriptor: use wait()
    def take(self) -> list[int]: ...
    def wait(self, timeout: float) -> bool: ...  # blocks without the GIL; for a helper thread
    def forget(self, token: int) -> None: ...  # nobody awaits it any more
    def close(self) -> None: ...  # forgets every token and drops later ones

@final
class Endpoint:
    """The socket, the QUIC endpoint on it, and the registry of connections (one per peer)."""
    def __new__(
        cls,
        identity: Identity,
        *,
        bind_addr: str,  # "[::]:9000", "0.0.0.0:0", "127.0.0.1:0"
        ip_mode: str,  # "dual" | "v4" | "v6"
        allow_ipv4_mapped: bool,
        idle_timeout: float,  # seconds
        keep_alive_interval: float,  # seconds, 0 = off
        handshake_timeout: float,  # seconds
        stream_receive_window: int,
        receive_window: int,
        send_window: int,
        max_bidi_streams: int,
        max_uni_streams: int,
        datagram_buffer: int,
        socket_buffer: int,
        max_connections: int,
        key_log: bool,
        serve_relay: bool,  # take HTTP/3; see serve_relay()
        nat_traversal: bool,  # offer it to peers
        capabilities: Sequence[str],  # hints for peers, in the hello
    ) -> Endpoint: ...  # raises errors.BindError
    @property
    def ip_mode(self) -> str: ...  # what was bound: "dual" | "v4" | "v6"
    def local_addresses(self) -> list[tuple[str, int]]: ...  # bound addresses
    def dial(
        self,
        ip: str,
        port: int,
        peer_id: bytes | None,
        timeout: float,
        *,
        via: Tunnel | None = None,  # send through this tunnel
        relayed: bool = False,  # the address is one the peer has at a relay
    ) -> Dial: ...
    def open_path(
        self,
        connection: Connection,
        ip: str,
        port: int,
        timeout: float,
        *,
        via: Tunnel | None,
        relayed: bool,
        standby: bool,  # use it only if there is no other
        proved: bool = False,  # an opener of the peer came from there: no handshake is needed first
    ) -> PathAttempt:
        """Try one more path of a connection; only for those this side has dialed."""
    def serve_relay(
        self,
        *,
        tcp: str | None,  # "[::]:9000": carry HTTP/2 of nodes there as well
        https: str | None,  # "0.0.0.0:443": ordinary HTTP clients, UDP and TCP
        certificate: str | None,  # PEM files for them; None: self-signed
        private_key: str | None,
        allow_anonymous: bool,
        allow_targets: Sequence[str],  # prefixes, "10.0.0.0/8"
        deny_targets: Sequence[str],  # stronger than allow_targets
        bytes_per_second: int,  # of each client, 0 = unlimited
        total_bytes_per_second: int,  # of all together, 0 = unlimited
        max_reservations: int,
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Carry packets for others from now on; the bound addresses of tcp and of https.

        Raises errors.BindError, ValueError.
        """
    def set_external_addresses(self, ips: Sequence[str]) -> None: ...  # what relayed peers are told
    def relay_stats(self) -> dict[str, int]: ...  # empty if not serving
    def open_tunnel(
        self,
        *,
        peer_id: bytes | None,  # the relay; None: whoever answers
        host: str,  # name or address for HTTP proxies
        port: int,
        udp: Sequence[tuple[str, int]],
        tcp: Sequence[tuple[str, int]],
        plan: Sequence[tuple[str, float]],  # (carrier, seconds after the start)
        proxy: str | None,
        ca_file: str | None,
        allow_tls_inspection: bool,
    ) -> Tunnel: ...
    def announce(
        self,
        direct: Sequence[tuple[str, int]],
        relayed: Sequence[tuple[bytes, Sequence[tuple[str, int]]]],
        findable: bool,
        load: int | None = None,  # of us as a relay, in percent
    ) -> None:
        """What all peers are to know of us, and may tell others if ``findable``."""
    def connection(self, peer_id: bytes) -> Connection | None: ...
    def connections(self) -> list[Connection]: ...
    def poll_incoming(self, bridge: Bridge, token: int) -> Connection | None: ...
    def poll_events(self, bridge: Bridge, token: int) -> list[tuple[Any, ...]] | None:
        """Everything that happened since the last poll, oldest first, each a tuple:

        ``("connected", Connection)`` a connection was established, in or out;
        ``("disconnected", Connection, reason, code, message)`` reason as in ConnectionLost;
        ``("observed", Connection, path_id, ip, port, seconds)`` the peer reported our address
        ``seconds`` after the path came up or its address changed;
        ``("path", Connection, reason, silent)`` the set of paths or the current path changed; after
        a failover ``silent`` is how many seconds the path that is gone had been silent, else None;
        ``("silent", Connection)`` nothing that was sent is answered, on any path; every second while
        it is so;
        ``("reach", Connection)`` the peer told where it can be reached;
        ``("sought", Connection, peer_id, ip, port)`` the peer was asked for us by another one,
        which it sees at that address;
        ``("candidates", Connection)`` the peer added or removed addresses (ADD_ADDRESS,
        REMOVE_ADDRESS);
        ``("round", Connection, round)`` the peer has begun a round of punching (PUNCH_ME_NOW);
        ``("opened", Connection, ip, port)`` an authentic opener of the peer came from there;
        ``("nat", Connection)`` the peer told what its NAT does;
        ``("prepare", Connection, id, method, addresses, count)`` the peer asks for a step of
        punching; ``("prepared", Connection, id, ok, addresses)`` its answer to ours;
        ``("network", reason)`` "interfaces" or "source-gone": the addresses of this host changed.
        """
    # NAT traversal (docs/protocol.md)
    def announce_nat(self, mapping: str, filtering: str, ports: str, step: int) -> None:
        """Tell all peers what our NAT does; words as in nat.NatReport."""
    def set_near(self, prefixes: Sequence[str]) -> None:
        """Networks of ours, "192.168.1.0/24": candidates of peers inside them are not refused."""
    def map_port(self) -> PortMapping:
        """Ask the routers for a mapping of our port by PCP, NAT-PMP and UPnP IGD."""
    def prime(self, addresses: Sequence[tuple[str, int]], ttl: int) -> int:
        """Open our own NATs for these addresses by packets that end `ttl` routers away."""
    def reflect(
        self,
        ip: str,
        port: int,
        timeout: float,
        *,
        via: Tunnel | None = None,  # send through this tunnel
        fresh: bool = False,  # send from a socket made for this, thrown away afterwards
    ) -> Reflection:
        """Send a datagram to one of our own addresses and see where from and where it arrives."""
    def counters(self) -> dict[str, int]: ...
    def close(self, code: int, reason: bytes) -> None: ...
    def abandon(self) -> None: ...  # closes in good order, with nobody to wait for it
    def poll_closed(self, bridge: Bridge, token: int) -> bool | None: ...  # True once drained

@final
class Dial:
    """One attempt in progress. Dropping or cancelling it ends the attempt, and closes the
    connection it has made unless that was kept, or given out by Endpoint.connection."""
    def poll(self, bridge: Bridge, token: int) -> Connection | None: ...  # raises DialFailed
    def keep(self) -> None: ...  # from now on the connection of poll outlives the attempt
    def cancel(self) -> None: ...

class DialFailed(Exception):
    """args: (reason, detail, actual_peer_id or None); reason as in errors.Attempt."""

@final
class Connection:
    """Several objects may stand for one connection; they share their state."""
    @property
    def id(self) -> int: ...  # unique within the process
    @property
    def peer_id(self) -> bytes: ...
    @property
    def public_key(self) -> bytes: ...
    @property
    def outbound(self) -> bool: ...
    @property
    def key_exchange_group(self) -> str: ...
    @property
    def capabilities(self) -> list[str]: ...  # what the peer says it offers; hints
    @property
    def handshake_seconds(self) -> float: ...
    def paths(self) -> list[PathInfo]: ...  # none once the connection has ended
    @property
    def first_path(self) -> PathInfo | None: ...  # as it was after the handshake
    @property
    def path_changes(self) -> int: ...  # how many "path" events there were
    def poll_path_change(self, seen: int, bridge: Bridge, token: int) -> tuple[int, str] | None:
        """(path_changes, reason of the latest) once it is not ``seen``; raises ConnectionLost.

        Changes are fed by Endpoint.poll_events: somebody must poll those. The end is not.
        """
    def stats(self) -> dict[str, int]: ...  # as connection.ConnectionStats
    def poll_open(
        self, bidi: bool, bridge: Bridge, token: int
    ) -> tuple[SendStream, RecvStream | None] | None: ...
    def poll_accept(
        self, bidi: bool, bridge: Bridge, token: int
    ) -> tuple[SendStream | None, RecvStream] | None: ...
    def send_datagrams(self, datagrams: Sequence[bytes | bytearray | memoryview]) -> int:
        """How many were queued, up to the first without room; ValueError if one is too large."""
    def send_datagram_wait(self, data: bytes | bytearray | memoryview) -> DatagramSend:
        """Queue a datagram once there is room; polls raise ValueError if it is too large."""
    @property
    def max_datagram_size(self) -> int | None: ...
    def poll_datagrams(self, max: int, bridge: Bridge, token: int) -> list[bytes] | None: ...
    @property
    def reach(self) -> _Reach | None: ...  # what the peer told, direct and relayed
    @property
    def relay_load(self) -> float | None: ...  # how busy it says it is, 0 to 1
    def find(self, peer_id: bytes) -> Find: ...  # ask the peer for another one
    # NAT traversal (docs/protocol.md)
    @property
    def can_punch(self) -> bool: ...  # negotiated nat_traversal (draft-seemann-02)
    @property
    def peer_nat(self) -> tuple[str, str, str, int] | None:
        """(mapping, filtering, ports, step) as the peer told."""
    @property
    def peer_candidates(self) -> list[tuple[str, int]]:
        """What the peer has added and not removed, without what is refused; client side."""
    def set_candidates(self, candidates: Sequence[tuple[str, int]]) -> None:
        """Our addresses for this peer, best first: those that are new are added, others removed.

        On the side that dialed they are told with the next round only.
        """
    def set_keep_alive(self, interval: float) -> None:
        """Also keep the open paths that are not relayed alive, after so many seconds of silence.

        0 stops that. Paths that come later have none.
        """
    def allow_near(self, prefixes: Sequence[str]) -> None:
        """More networks in which addresses of this peer are not refused, as Endpoint.set_near."""
    def start_round(
        self,
        pairs: Sequence[tuple[tuple[str, int], tuple[str, int]]],
        *,
        opener_ttl: int = 0,
        hold: float = 0.0,
    ) -> int:
        """Begin a round of punching with (own, remote) pairs; its number. Client side only.

        First openers are sent to the remote addresses in the order of their ports, with that
        time to live (0: none are sent, 255: as usual), then probes of ours are held back for
        ``hold`` seconds or until the peer was heard from there. Raises DialFailed: "not-dialed",
        "limit" (too soon), "closed", "protocol" (not negotiated).
        """
    def prepare(
        self, method: str, addresses: Sequence[tuple[str, int]], count: int
    ) -> int: ...  # asks the peer for a step of punching; the id of the question
    def prepared(self, id: int, ok: bool, addresses: Sequence[tuple[str, int]]) -> None: ...
    def spray(self, ip: str, count: int, seconds: float) -> Spray:
        """Openers to that many random ports of ``ip``, evenly over ``seconds``, until one is answered.

        What the budget of the peer does not allow is left out.
        """
    def pool(self, ip: str, port: int, count: int) -> Pool:
        """Open so many sockets, each sending an opener to the address. Raises OSError."""
    def openers(self, addresses: Sequence[tuple[str, int]], ttl: int) -> int:
        """Send an opener to each, in this order; how many the budget allowed."""
    def punch_stats(self) -> dict[str, int]:
        """rounds, probes_sent, openers_sent, openers_received, refused_*, budget_refused."""
    def rank_paths(self, ranks: Sequence[tuple[int, int]]) -> None:
        """(path id, rank): data takes the lowest; unranked paths come last. Empty: by the rule."""
    def close_path(self, id: int) -> bool: ...  # False if it is gone already, or the only one
    def poll_answers(self, bridge: Bridge, token: int) -> bool | None:
        """Whether the peer answers a PING within about three round trips, at most two seconds."""
    def close(self, code: int, reason: bytes) -> None: ...
    def poll_closed(self, bridge: Bridge, token: int) -> tuple[str, int, str] | None: ...
    @property
    def close_reason(self) -> tuple[str, int, str] | None: ...  # (reason, code, message)

_Addresses: TypeAlias = list[tuple[str, int]]
_Reach: TypeAlias = tuple[_Addresses, list[tuple[bytes, _Addresses]]]

@final
class DatagramSend:
    """A datagram that waits for room. Dropping it before it was queued gives it up."""
    def poll(self, bridge: Bridge, token: int) -> bool | None: ...  # True once it is queued

@final
class Find:
    """A question to a peer. Dropping it withdraws the question."""
    def poll(
        self, bridge: Bridge, token: int
    ) -> tuple[str, tuple[str, int] | None, _Addresses, list[tuple[bytes, _Addresses]]] | None:
        """(status, where the asked peer sees it, direct, relayed); raises ConnectionLost.

        Status is ok, unknown, not-findable or limit.
        """

@final
class PathAttempt:
    """A path in the making. Dropping it leaves the path to its fate."""
    def poll(self, bridge: Bridge, token: int) -> int | None: ...  # path id; raises DialFailed

@final
class Reflection:
    """A datagram to ourselves on its way. Dropping it gives up."""
    @property
    def local_port(self) -> int: ...  # of the socket it was sent from
    def poll(self, bridge: Bridge, token: int) -> tuple[tuple[str, int] | None, int | None] | None:
        """(the source it arrived with, number of the tunnel it arrived through or None for the
        own socket); the source is None if it did not arrive in time."""

@final
class Spray:
    """Openers being sent. Dropping it ends that."""
    def poll(self, bridge: Bridge, token: int) -> tuple[int, bool] | None: ...  # (sent, was hit)
    def cancel(self) -> None: ...

@final
class Pool:
    """Sockets towards one address. Closing or dropping it closes those that no path uses."""
    @property
    def size(self) -> int: ...
    @property
    def adopted(self) -> list[tuple[tuple[str, int], tuple[str, int]]]: ...  # (local, remote)
    def refresh(self) -> None: ...  # send the openers once more
    def close(self) -> None: ...

@final
class PortMapping:
    """A port of a router that leads here, kept up until closed or dropped."""
    @property
    def external(self) -> tuple[str, int] | None: ...  # None while there is none
    @property
    def protocol(self) -> Literal["pcp", "nat-pmp", "upnp"] | None: ...
    @property
    def error(self) -> str | None: ...  # why there is none
    @property
    def changes(self) -> int: ...
    def poll_change(self, seen: int, bridge: Bridge, token: int) -> int | None: ...
    def close(self) -> None: ...  # takes the mapping back

@final
class Tunnel:
    """A tunnel to a relay, with addresses there. Reconnects until closed or dropped."""
    @property
    def number(self) -> int: ...  # unique within the endpoint
    @property
    def state(self) -> Literal["connecting", "up", "down", "closed"]: ...
    @property
    def relay(self) -> bytes | None: ...  # PeerId it proved
    @property
    def carrier(self) -> Literal["h3", "h2", "h2-proxy"] | None: ...
    @property
    def remote(self) -> tuple[str, int] | None: ...  # where the relay is, None through a proxy
    @property
    def public_addresses(self) -> list[tuple[str, int]]: ...
    @property
    def node_addresses(self) -> list[tuple[str, int]]: ...  # the relay's own, seen from inside
    @property
    def rtt(self) -> float | None: ...
    @property
    def attempts(self) -> list[tuple[str, str, str, str, float]]:
        """(carrier, address, reason, detail, seconds) of the latest round."""
    def counters(self) -> dict[str, int]: ...
    @property
    def changes(self) -> int: ...
    def poll_change(self, seen: int, bridge: Bridge, token: int) -> int | None: ...
    def probe(self) -> None: ...  # look at once whether the carrier still works
    def improve(self, plan: Sequence[tuple[str, float]]) -> None:
        """Look for a better carrier while the present one goes on, and move over if there is."""
    def close(self) -> None: ...

@final
class PathInfo:
    @property
    def id(self) -> int: ...
    @property
    def method(self) -> Literal["direct", "punched", "relayed"]: ...
    @property
    def remote(self) -> tuple[str, int]: ...
    @property
    def via(self) -> bytes | None: ...  # PeerId of the relay, where it is known
    @property
    def tunnelled(self) -> bool: ...  # our end of it is a tunnel of ours
    @property
    def local_ip(self) -> str | None: ...
    @property
    def rtt(self) -> float: ...  # seconds
    @property
    def mtu(self) -> int: ...
    @property
    def congestion_window(self) -> int: ...
    @property
    def sent_bytes(self) -> int: ...
    @property
    def received_bytes(self) -> int: ...
    @property
    def lost_packets(self) -> int: ...
    @property
    def age(self) -> float: ...  # seconds since the path was established
    @property
    def current(self) -> bool: ...  # data goes this way
    @property
    def observed(self) -> tuple[str, int] | None: ...  # our address as the peer reports it

@final
class SendStream:
    @property
    def id(self) -> int: ...
    def poll_write(
        self, data: bytes | bytearray | memoryview, offset: int, bridge: Bridge, token: int
    ) -> int | None: ...
    def finish(self) -> None: ...
    def reset(self, code: int) -> None: ...
    def set_priority(self, priority: int) -> None: ...
    def poll_stopped(self, bridge: Bridge, token: int) -> int | None:
        """-1 when the peer acknowledged everything up to the finish, else its STOP_SENDING code."""

@final
class RecvStream:
    @property
    def id(self) -> int: ...
    def poll_read(self, max: int, bridge: Bridge, token: int) -> bytes | None: ...  # b"" at the end
    def poll_readinto(
        self, buffer: Any, bridge: Bridge, token: int
    ) -> int | None: ...  # 0 at the end
    def stop(self, code: int) -> None: ...

def interface_addresses() -> list[tuple[str, str, int]]:
    """(interface, address, prefix length) of every address that is up."""

def mlkem768_generate() -> tuple[bytes, bytes]:
    """(decapsulation key 2400 B, encapsulation key 1184 B), FIPS 203. For the known-answer tests."""

def mlkem768_encapsulate(encapsulation_key: bytes) -> tuple[bytes, bytes]:
    """(ciphertext 1088 B, shared secret 32 B). Raises ValueError for a bad key."""

def mlkem768_decapsulate(decapsulation_key: bytes, ciphertext: bytes) -> bytes:
    """Shared secret; implicit rejection for a wrong ciphertext. Raises ValueError for bad lengths."""
