"""What the handshake messages of TLS 1.3 say about a QUIC connection (RFC 8446, RFC 9001)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .extension_frames import MalformedError, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ClientHello",
    "EncryptedExtensions",
    "ServerHello",
    "messages",
    "transport_parameters",
]

_CLIENT_HELLO = 1
_SERVER_HELLO = 2
_ENCRYPTED_EXTENSIONS = 8

_ALPN = 16
_QUIC_TRANSPORT_PARAMETERS = 0x39

_HELLO_RETRY_REQUEST = bytes.fromhex(
    "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
)


@dataclass(frozen=True, slots=True)
class ClientHello:
    """The client's offer.

    Attributes:
        random: names the connection in files of secrets.
        transport_parameters: by their ids, undecoded.
    """

    random: bytes
    transport_parameters: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class ServerHello:
    """The server's choice."""

    cipher_suite: int


@dataclass(frozen=True, slots=True)
class EncryptedExtensions:
    """The rest of the server's choice."""

    protocol: bytes | None
    transport_parameters: dict[int, bytes]


Message: TypeAlias = ClientHello | ServerHello | EncryptedExtensions


def messages(stream: bytes) -> Iterator[Message]:
    """Those messages of a stream of CRYPTO data that are complete, and of interest."""
    reader = Reader(stream)
    while len(stream) - reader.at >= 4:
        kind, length = reader.uint(1), reader.uint(3)
        if len(stream) - reader.at < length:
            return
        body = Reader(reader.take(length))
        if kind == _CLIENT_HELLO:
            body.take(2)
            random = body.take(32)
            body.take(body.uint(1))
            body.take(body.uint(2))
            body.take(body.uint(1))
            parameters = _extensions(body)[_QUIC_TRANSPORT_PARAMETERS]
            yield ClientHello(random, transport_parameters(parameters))
        elif kind == _SERVER_HELLO:
            body.take(2)
            random = body.take(32)
            body.take(body.uint(1))
            if random != _HELLO_RETRY_REQUEST:
                yield ServerHello(body.uint(2))
        elif kind == _ENCRYPTED_EXTENSIONS:
            extensions = _extensions(body)
            parameters = extensions[_QUIC_TRANSPORT_PARAMETERS]
            # A list of one name: two bytes of its length, one of the name's.
            chosen = extensions[_ALPN][3:] if _ALPN in extensions else None
            yield EncryptedExtensions(chosen, transport_parameters(parameters))


def _extensions(body: Reader) -> dict[int, bytes]:
    reader = Reader(body.take(body.uint(2)))
    found = {}
    while reader:
        kind = reader.uint(2)
        found[kind] = reader.take(reader.uint(2))
    return found


def transport_parameters(data: bytes) -> dict[int, bytes]:
    """The transport parameters of an extension by their ids (RFC 9000 section 18).

    Raises:
        MalformedError: one is cut short, or there twice.
    """
    reader = Reader(data)
    found: dict[int, bytes] = {}
    while reader:
        parameter = reader.varint()
        if parameter in found:
            raise MalformedError(f"transport parameter {parameter:#x} twice")
        found[parameter] = reader.take(reader.varint())
    return found
