"""Who a peer is and where it may be found: PeerIds, peer addresses and tickets.

Pure: parsing and formatting only. Text comes from people, configuration files and other
programs, so every parser here raises :class:`~anyreach.errors.ConfigError` with the reason
and nothing else, whatever it is given.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

from anyreach.addresses import HostPort, Scope, SocketAddress, parse_ip
from anyreach.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "MAX_ADDRESSES",
    "KnownPeer",
    "PeerAddress",
    "PeerId",
    "PeerLike",
    "Ticket",
    "parse_peer",
]

_ID_BYTES: Final = 32
# 256 bits in groups of five, rounded up; the last character carries one bit.
_ID_CHARS: Final = 52
_ALPHABET: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ234567")


@dataclass(frozen=True, slots=True, order=True, repr=False)
class PeerId:
    """The name of a node: SHA-256 of its public key, proved by every handshake.

    Written as 52 characters of lower-case base32 (RFC 4648 6) without padding. Ordered by its
    bytes, hashable, and convertible with ``bytes(peer_id)`` and ``str(peer_id)``.

    Attributes:
        raw: the 32 bytes of the hash.

    Raises:
        ConfigError: ``raw`` is not 32 bytes.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.raw, bytes) or len(self.raw) != _ID_BYTES:
            raise ConfigError("peer_id", self.raw, "a PeerId is 32 bytes")

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """From the text form; upper case is accepted.

        Raises:
            ConfigError: wrong length, a character outside a-z and 2-7, or a last character
                that carries bits no PeerId has (usually a truncated or mistyped id).
        """
        if len(text) != _ID_CHARS:
            raise ConfigError(
                "peer_id", text, f"a PeerId has {_ID_CHARS} characters, this has {len(text)}"
            )
        return cls(_base32_decode(text, "peer_id", text))

    @classmethod
    def from_public_key(cls, spki: bytes) -> PeerId:
        """The id of a public key, given as DER SubjectPublicKeyInfo."""
        return cls(hashlib.sha256(spki).digest())

    @property
    def short(self) -> str:
        """The first ten characters, for logs and progress lines; not unique by design."""
        return str(self)[:10]

    def __bytes__(self) -> bytes:
        return self.raw

    def __str__(self) -> str:
        return _base32_encode(self.raw)

    def __repr__(self) -> str:
        return f"PeerId({self.short}…)"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A peer as given by a user: its id, addresses to try, or both.

    Attributes:
        peer_id: who must answer; ``None`` accepts whoever does.
        addresses: where to try, most promising first; empty if only the id is known.

    Raises:
        ConfigError: neither an id nor an address is given, or several addresses without the
            id that would prove them to be one peer.
    """

    peer_id: PeerId | None = None
    addresses: tuple[HostPort, ...] = ()

    def __post_init__(self) -> None:
        if self.peer_id is None and not self.addresses:
            raise ConfigError("peer", "", "give a PeerId, an address, or both")
        _check_one_peer(self)

    def __str__(self) -> str:
        """``ID``, ``HOST:PORT`` or ``ID@HOST:PORT``; a ticket if there are more addresses."""
        if self.peer_id is not None and len(self.addresses) > 1:
            return str(Ticket.of(self.peer_id, self.addresses))
        return "@".join(str(part) for part in (self.peer_id, *self.addresses) if part is not None)


@dataclass(frozen=True, slots=True)
class KnownPeer(PeerAddress):
    """A peer the node keeps a connection to; it always has an address.

    Raises:
        ConfigError: as :class:`PeerAddress`, or no address is given.
    """

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ConfigError(
                "known_peers",
                str(self.peer_id or ""),
                "a known peer needs an address: ID@HOST:PORT",
            )
        _check_one_peer(self)

    @classmethod
    def parse(cls, text: str) -> KnownPeer:
        """From ``HOST:PORT``, ``ID@HOST:PORT`` or a ticket with addresses.

        Raises:
            ConfigError: the text is none of these.
        """
        parsed = parse_peer(text)
        return cls(parsed.peer_id, parsed.addresses)


_TICKET_PREFIX: Final = "anyr"
_TICKET_VERSION: Final = "1"
# Four bytes miss one damaged ticket in four billion, and cost seven characters.
_CHECKSUM_BYTES: Final = 4
# A ticket is refused above this length before it is decoded; 16 longest names take 6,700.
_MAX_TICKET_CHARS: Final = 8192
_ENTRY_V4: Final = 4
_ENTRY_V6: Final = 6
_ENTRY_NAME: Final = 0x4E  # "N"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A PeerId and addresses in one word, to hand to another person.

    The text form is ``anyr1`` and lower-case base32 of: the PeerId, then per address one byte
    kind, one byte length and the value (2 bytes port, then address or name), then the first
    four bytes of SHA-256 over prefix and contents. The digit is the version. Entries of
    an unknown kind are skipped, so that later versions can add some. White space is ignored
    when parsing, upper case accepted; no character needs quoting in a shell or URL.

    Attributes:
        peer_id: who must answer.
        addresses: up to :data:`MAX_ADDRESSES` places to try, most promising first.

    Raises:
        ConfigError: too many addresses, or one that means nothing elsewhere (port 0, a zone).
    """

    peer_id: PeerId
    addresses: tuple[HostPort, ...] = ()

    def __post_init__(self) -> None:
        if len(self.addresses) > MAX_ADDRESSES:
            raise ConfigError(
                "ticket", len(self.addresses), f"a ticket has at most {MAX_ADDRESSES} addresses"
            )
        for address in self.addresses:
            if not _portable(address):
                raise ConfigError("ticket", str(address), "this address means nothing elsewhere")

    @classmethod
    def of(cls, peer_id: PeerId, addresses: Iterable[HostPort | SocketAddress]) -> Ticket:
        """The ticket with the first of ``addresses`` that another host can use.

        Duplicates, wildcards and link-local addresses are left out, as is everything after
        :data:`MAX_ADDRESSES`.
        """
        hosts = (HostPort(a.host, a.port) if isinstance(a, SocketAddress) else a for a in addresses)
        portable = [host for host in dict.fromkeys(hosts) if _portable(host)]
        return cls(peer_id, tuple(portable[:MAX_ADDRESSES]))

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """From the text form.

        Raises:
            ConfigError: not a ticket, of another version, damaged or incomplete.
        """
        if len(text) > _MAX_TICKET_CHARS:
            raise ConfigError("ticket", text[:40] + "…", "too long for a ticket")
        word = "".join(text.split()).lower()
        if not word.startswith(_TICKET_PREFIX):
            raise ConfigError("ticket", text, f"a ticket starts with {_TICKET_PREFIX}")
        if not word.startswith(_TICKET_PREFIX + _TICKET_VERSION):
            raise ConfigError("ticket", text, "made by another version of anyreach; upgrade")
        prefix = len(_TICKET_PREFIX + _TICKET_VERSION)
        data = _base32_decode(word[prefix:], "ticket", text)
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if len(body) < _ID_BYTES or checksum != _checksum(body):
            raise ConfigError("ticket", text, "damaged or incomplete; copy all of it again")
        addresses = tuple(_decode_entries(body[_ID_BYTES:], text))
        return cls(PeerId(body[:_ID_BYTES]), addresses[:MAX_ADDRESSES])

    def __str__(self) -> str:
        body = bytes(self.peer_id) + b"".join(map(_encode_entry, self.addresses))
        return _TICKET_PREFIX + _TICKET_VERSION + _base32_encode(body + _checksum(body))


MAX_ADDRESSES: Final = 16
"""Most addresses in a ticket: both families of a few interfaces and what peers observed."""

PeerLike: TypeAlias = str | PeerId | Ticket | PeerAddress
"""What a peer can be given as; see :func:`parse_peer`."""


def parse_peer(peer: PeerLike) -> PeerAddress:
    """The peer meant by a PEER argument.

    Args:
        peer: a PeerId, ``HOST:PORT``, ``ID@HOST:PORT`` or a ticket, as text or as an object.
            IPv6 addresses stand in brackets: ``[2001:db8::1]:9000``, ``[fe80::1%eth0]:9000``.

    Raises:
        ConfigError: it is none of these; ``remedy`` says what is wrong.
    """
    if isinstance(peer, PeerAddress):
        return peer
    if isinstance(peer, PeerId):
        return PeerAddress(peer)
    if isinstance(peer, Ticket):
        return PeerAddress(peer.peer_id, peer.addresses)
    if not isinstance(peer, str):
        raise ConfigError("peer", peer, _FORMS)
    try:
        return _parse_text(peer.strip())
    except ConfigError as error:
        raise ConfigError("peer", peer, error.remedy) from None


_FORMS: Final = "give a PeerId, ID@HOST:PORT, HOST:PORT or a ticket"


def _parse_text(text: str) -> PeerAddress:
    before, at, after = text.partition("@")
    if at:
        return PeerAddress(PeerId.parse(before), (HostPort.parse_peer(after),))
    if ":" in text:
        return PeerAddress(None, (HostPort.parse_peer(text),))
    # A PeerId may start like a ticket, but no ticket is as short as a PeerId.
    if text[: len(_TICKET_PREFIX)].lower() == _TICKET_PREFIX and len(text) != _ID_CHARS:
        return parse_peer(Ticket.parse(text))
    if "." in text:
        raise ConfigError("peer", text, f"add the port, like {text}:9000")
    if not text.isalnum():
        raise ConfigError("peer", text, _FORMS)
    return PeerAddress(PeerId.parse(text))


def _check_one_peer(peer: PeerAddress) -> None:
    if peer.peer_id is None and len(peer.addresses) > 1:
        raise ConfigError(
            "peer", ", ".join(map(str, peer.addresses)), "several addresses need the PeerId"
        )


def _portable(host: HostPort) -> bool:
    address = host.address
    if host.port == 0:
        return False
    return address is None or (address.scope.dialable and address.scope is not Scope.LINK_LOCAL)


def _checksum(body: bytes) -> bytes:
    tag = (_TICKET_PREFIX + _TICKET_VERSION).encode()
    return hashlib.sha256(tag + body).digest()[:_CHECKSUM_BYTES]


def _encode_entry(host: HostPort) -> bytes:
    ip = parse_ip(host.host)
    if ip is None:
        kind, value = _ENTRY_NAME, host.host.encode("ascii")
    else:
        kind, value = (_ENTRY_V4 if ip.version == 4 else _ENTRY_V6), ip.packed
    value = host.port.to_bytes(2, "big") + value
    return bytes((kind, len(value))) + value


def _decode_entries(data: bytes, text: str) -> Iterator[HostPort]:
    while data:
        if len(data) < 2 or len(data) < 2 + data[1]:
            raise ConfigError("ticket", text, "its contents are cut short; ask for a new one")
        kind, value, data = data[0], data[2 : 2 + data[1]], data[2 + data[1] :]
        if kind in (_ENTRY_V4, _ENTRY_V6, _ENTRY_NAME):
            yield _decode_entry(kind, value, text)


def _decode_entry(kind: int, value: bytes, text: str) -> HostPort:
    port, host = int.from_bytes(value[:2], "big"), value[2:]
    if kind == _ENTRY_NAME:
        name = host.decode("ascii", "replace")
        if parse_ip(name) is None and ":" not in name and "[" not in name:
            return HostPort.parse_peer(f"{name}:{port}", field="ticket")
    elif len(host) == (4 if kind == _ENTRY_V4 else 16):
        address = SocketAddress(ip_address(host), port)
        return HostPort.parse_peer(str(address), field="ticket")
    raise ConfigError("ticket", text, "one of its addresses is not valid; ask for a new one")


@lru_cache(maxsize=1024)
def _base32_encode(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _base32_decode(word: str, field: str, text: str) -> bytes:
    """Bytes of unpadded base32; ``text`` is what an error shows."""
    wrong = next((c for c in word if c not in _ALPHABET), None)
    if wrong is not None:
        raise ConfigError(field, text, f"{wrong!r} cannot occur; the characters are a-z and 2-7")
    try:
        data = base64.b32decode(word.upper() + "=" * (-len(word) % 8))
    except binascii.Error:
        raise ConfigError(field, text, "a part is missing; copy all of it") from None
    # The last character may carry bits that no whole byte needs; they are zero when encoding.
    if _base32_encode(data) != word.lower():
        raise ConfigError(field, text, "the last character is mistyped; copy all of it")
    return data
