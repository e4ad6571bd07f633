"""Opens captures of QUIC with exported TLS secrets, as a packet analyser does.

Packet protection is aioquic's; headers, frames, TLS messages and multipath are read by code of the
tests. So what is found in a capture is what another implementation would find there.

The secrets are those of ``SSLKEYLOGFILE`` (draft-ietf-tls-keylogfile). A packet is assigned to its
connection, direction and path by its destination connection id: those of the handshake belong to
path 0, others to the path they were issued for (draft-ietf-quic-multipath: PATH_NEW_CONNECTION_ID),
whose number is part of the nonce.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aioquic._buffer import Buffer
from aioquic._crypto import CryptoError
from aioquic.quic.crypto import CryptoContext, CryptoPair, next_key_phase
from aioquic.quic.packet import QuicPacketType, decode_packet_number, pull_quic_header
from aioquic.tls import CipherSuite

from .extension_frames import MalformedError
from .quic_frames import Crypto, Frame, NewConnectionId, decode_frames
from .tls_messages import ClientHello, EncryptedExtensions, ServerHello, messages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = [
    "Dissection",
    "Level",
    "Packet",
    "Place",
    "Session",
    "Space",
    "dissect",
    "read_secrets",
]

Secrets: TypeAlias = "dict[tuple[str, bytes], bytes]"

_VERSION_1 = 1
_FIXED_BIT = 0x40
_LONG_HEADER = 0x80
_STATELESS_RESET_TOKEN = 0x02  # transport parameter
_RESET_TOKEN = 16  # bytes


class Place(NamedTuple):
    """One end of a datagram."""

    ip: IPv4Address | IPv6Address
    port: int


Datagram: TypeAlias = tuple[Place, Place, bytes]
"""Source, destination, payload."""


class Level(Enum):
    """Which keys protect a packet."""

    INITIAL = "initial"
    HANDSHAKE = "handshake"
    ONE_RTT = "1-rtt"


class Space(NamedTuple):
    """Packets that are numbered together.

    Attributes:
        level: their keys.
        from_client: whether the client of the connection sends them.
        path: number of the path; 0 before 1-RTT.
    """

    level: Level
    from_client: bool
    path: int


@dataclass(slots=True)
class Session:
    """A connection, as far as its handshake is in the capture.

    Attributes:
        hello: what its client offered.
        answer: what its server chose.
        extensions: what its server added under encryption.
    """

    hello: ClientHello | None = None
    answer: ServerHello | None = None
    extensions: EncryptedExtensions | None = None
    _keys: dict[tuple[Level, bool], list[Any]] = field(default_factory=dict)
    _streams: dict[tuple[Level, bool], dict[int, bytes]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _largest: dict[Space, int] = field(default_factory=dict)

    @property
    def protocol(self) -> bytes | None:
        """The application protocol (ALPN)."""
        return self.extensions.protocol if self.extensions else None

    def parameters(self, *, of_client: bool) -> dict[int, bytes]:
        """The transport parameters of one end; empty while they have not been seen."""
        source = self.hello if of_client else self.extensions
        return source.transport_parameters if source else {}


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that was opened.

    Attributes:
        index: number of its datagram in the capture.
        session: the connection it belongs to.
        source, destination: addresses of the datagram, as they were where it was captured.
        space: who sent it with which keys on which path.
        number: packet number.
        frames: what is in it, with types, without PADDING.
    """

    index: int
    session: Session
    source: Place
    destination: Place
    space: Space
    number: int
    frames: tuple[tuple[int, Frame], ...]


@dataclass(slots=True)
class Dissection:
    """What was found in a capture.

    Attributes:
        packets: those that were opened, in the order of the capture.
        resets: stateless resets, by a token that their sender has given out (RFC 9000 10.3).
        unopened: other packets that look like QUIC and could not be opened.
        others: UDP payloads that are not QUIC: their fixed bit is clear.
    """

    packets: list[Packet] = field(default_factory=list)
    resets: list[Datagram] = field(default_factory=list)
    unopened: list[Datagram] = field(default_factory=list)
    others: list[Datagram] = field(default_factory=list)

    def sessions(self) -> list[Session]:
        """The connections, in the order of their first packets."""
        found = {id(packet.session): packet.session for packet in self.packets}
        return list(found.values())

    def of(self, session: Session) -> list[Packet]:
        """The packets of one connection."""
        return [packet for packet in self.packets if packet.session is session]


def read_secrets(path: Path) -> Secrets:
    """The secrets in a file of ``SSLKEYLOGFILE``, by label and client random."""
    secrets = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            label, random, secret = line.split()
            secrets[label, bytes.fromhex(random)] = bytes.fromhex(secret)
    return secrets


def dissect(ip_packets: Iterable[bytes], secrets: Secrets) -> Dissection:
    """Open all QUIC packets among these IP packets."""
    found = Dissection()
    waiting = []
    for index, packet in enumerate(ip_packets):
        datagram = _udp(packet)
        if datagram is None:
            continue
        source, destination, payload = datagram
        if payload and payload[0] & _FIXED_BIT:
            waiting.append((index, source, destination, payload))
        else:
            found.others.append(datagram)
    opener = _Opener(secrets)
    # What came out of order needs a second look, when its keys and connection ids are known.
    while waiting:
        closed = []
        for index, source, destination, payload in waiting:
            for part in opener.parts(payload):
                packet_or_rest = opener.open(index, source, destination, part)
                if isinstance(packet_or_rest, Packet):
                    found.packets.append(packet_or_rest)
                else:
                    closed.append((index, source, destination, packet_or_rest))
        if len(closed) == len(waiting):
            for _, source, destination, payload in closed:
                known = payload[-_RESET_TOKEN:] in opener.reset_tokens
                kept = found.resets if known else found.unopened
                kept.append((source, destination, payload))
            break
        waiting = closed
    found.packets.sort(key=lambda packet: packet.index)
    return found


class _Opener:
    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        # By destination connection id: whose it is, whether the client sends to it, which path.
        self._known: dict[bytes, tuple[Session, bool, int]] = {}
        self._lengths: set[int] = set()
        self.reset_tokens: set[bytes] = set()

    def parts(self, payload: bytes) -> Iterator[bytes]:
        """The packets of a datagram (RFC 9000 section 12.2)."""
        while payload:
            length = len(payload)
            if payload[0] & _LONG_HEADER:
                buffer = Buffer(data=payload)
                try:
                    length = pull_quic_header(buffer).packet_length
                except ValueError:
                    length = len(payload)
            yield payload[:length]
            payload = payload[length:]

    def open(self, index: int, source: Place, destination: Place, data: bytes) -> Packet | bytes:
        """The packet in clear, or the data itself if that is not possible (yet)."""
        opened = self._open_long(data) if data[0] & _LONG_HEADER else self._open_short(data)
        if opened is None:
            return data
        session, space, number, payload = opened
        try:
            frames = tuple(decode_frames(payload))
        except MalformedError as error:
            raise MalformedError(f"packet {number} of {space}: {error}") from None
        for _, frame in frames:
            if isinstance(frame, Crypto):
                session._streams[space[:2]][frame.offset] = frame.data
                self._read_handshake(session, space)
            elif isinstance(frame, NewConnectionId):
                self._learn(frame.connection_id, session, not space.from_client, frame.path)
                self.reset_tokens.add(frame.reset_token)
        return Packet(index, session, source, destination, space, number, frames)

    def _learn(self, connection_id: bytes, session: Session, from_client: bool, path: int) -> None:
        assert connection_id, "packets to an empty connection id cannot be told apart"
        self._known[connection_id] = (session, from_client, path)
        self._lengths.add(len(connection_id))

    def _open_long(self, data: bytes) -> _Clear | None:
        buffer = Buffer(data=data)
        header = pull_quic_header(buffer)
        if header.version != _VERSION_1:
            return None
        level = _LEVELS.get(header.packet_type)
        known = self._known.get(header.destination_cid)
        if header.packet_type is QuicPacketType.RETRY and known is not None:
            # From now on the client's Initials are protected with the id the server chose here.
            session = known[0]
            self._learn(header.source_cid, session, True, 0)
            session._keys.update(_initial_keys(header.source_cid))
            return session, Space(Level.INITIAL, False, 0), 0, _PING
        if known is None and level is Level.INITIAL:
            session = Session()
            session._keys.update(_initial_keys(header.destination_cid))
            self._learn(header.destination_cid, session, True, 0)
            known = self._known[header.destination_cid]
        if known is None or level is None:
            return None
        session, from_client, _ = known
        opened = _unprotect(session, Space(level, from_client, 0), data, buffer.tell())
        if opened is not None:
            self._learn(header.source_cid, session, not from_client, 0)
        return opened

    def _open_short(self, data: bytes) -> _Clear | None:
        for length in self._lengths:
            known = self._known.get(data[1 : 1 + length])
            if known is not None:
                session, from_client, path = known
                space = Space(Level.ONE_RTT, from_client, path)
                return _unprotect(session, space, data, 1 + length)
        return None

    def _read_handshake(self, session: Session, space: Space) -> None:
        for message in messages(_contiguous(session._streams[space[:2]])):
            match message:
                case ClientHello():
                    session.hello = message
                case ServerHello() if session.answer is None:
                    session.answer = message
                    self._take_keys(session)
                case EncryptedExtensions():
                    session.extensions = message
                    token = message.transport_parameters.get(_STATELESS_RESET_TOKEN)
                    if token is not None:
                        self.reset_tokens.add(token)

    def _take_keys(self, session: Session) -> None:
        assert session.hello is not None
        assert session.answer is not None
        suite = CipherSuite(session.answer.cipher_suite)
        for (level, from_client), label in _LABELS.items():
            secret = self._secrets.get((label, session.hello.random))
            if secret is not None:
                context = CryptoContext()
                context.setup(cipher_suite=suite, secret=secret, version=_VERSION_1)
                session._keys[level, from_client] = [context]


_Clear: TypeAlias = "tuple[Session, Space, int, bytes]"

_PING = b"\x01"
"""Stands for the contents of a Retry, which has no frames."""

_LEVELS = {
    QuicPacketType.INITIAL: Level.INITIAL,
    QuicPacketType.HANDSHAKE: Level.HANDSHAKE,
}

_LABELS = {
    (Level.HANDSHAKE, True): "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
    (Level.HANDSHAKE, False): "SERVER_HANDSHAKE_TRAFFIC_SECRET",
    (Level.ONE_RTT, True): "CLIENT_TRAFFIC_SECRET_0",
    (Level.ONE_RTT, False): "SERVER_TRAFFIC_SECRET_0",
}


def _initial_keys(connection_id: bytes) -> dict[tuple[Level, bool], list[Any]]:
    pair = CryptoPair()
    pair.setup_initial(connection_id, is_client=True, version=_VERSION_1)
    return {(Level.INITIAL, True): [pair.send], (Level.INITIAL, False): [pair.recv]}


def _unprotect(session: Session, space: Space, data: bytes, offset: int) -> _Clear | None:
    generations = session._keys.get(space[:2])
    if generations is None:
        return None
    try:
        # Header protection outlives key updates (RFC 9001 section 6.1).
        header, truncated = generations[0].hp.remove(data, offset)
    except CryptoError:
        return None
    expected = session._largest.get(space, -1) + 1
    number = decode_packet_number(truncated, 8 * ((header[0] & 3) + 1), expected)
    for context in _candidates(generations, space.level, header[0]):
        try:
            # Multipath, section 2.4: 32 bits of the path's number, then the packet number.
            payload = context.aead.decrypt(data[len(header) :], header, space.path << 64 | number)
        except CryptoError:
            continue
        if context not in generations:
            generations.append(context)
        session._largest[space] = max(number, expected - 1)
        return session, space, number, payload
    return None


def _candidates(generations: list[Any], level: Level, first: int) -> Iterator[Any]:
    """Keys the packet may be protected with: by its key phase, if it has one (RFC 9001 6)."""
    if level is not Level.ONE_RTT:
        yield generations[0]
        return
    phase = (first >> 2) & 1
    for context in reversed(generations):
        if context.key_phase == phase:
            yield context
    if generations[-1].key_phase != phase:
        yield next_key_phase(generations[-1])


def _contiguous(parts: dict[int, bytes]) -> bytes:
    """A stream as far as it has no gap."""
    stream = b""
    for offset, data in sorted(parts.items()):
        if offset > len(stream):
            break
        stream += data[len(stream) - offset :]
    return stream


def _udp(packet: bytes) -> Datagram | None:
    """Addresses and payload of an IP packet, if it carries UDP and is not a fragment."""
    ip: type[IPv4Address | IPv6Address]
    if packet[0] >> 4 == 4:
        fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
        protocol, head, ip, at = packet[9], 4 * (packet[0] & 15), IPv4Address, 12
    else:
        fragment, protocol, head, ip, at = 0, packet[6], 40, IPv6Address, 8
    if protocol != 17 or fragment:
        return None
    width = 4 if ip is IPv4Address else 16
    source, destination = (packet[at + i * width : at + (i + 1) * width] for i in range(2))
    ports = (int.from_bytes(packet[head + i : head + i + 2], "big") for i in (0, 2))
    length = int.from_bytes(packet[head + 4 : head + 6], "big")
    payload = packet[head + 8 : head + length]
    return Place(ip(source), next(ports)), Place(ip(destination), next(ports)), payload
