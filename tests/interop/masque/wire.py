"""Capsules and datagrams, as RFC 9297, RFC 9298 and the bind draft lay them out."""

import ipaddress
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

Fields = list[tuple[str, str]]
"""Header fields with pseudo-header fields, in order, names in lower case."""


class CapsuleType(IntEnum):
    """Those that have a meaning here (RFC 9297 section 5.4, bind draft section 10.2)."""

    DATAGRAM = 0x00
    COMPRESSION_ASSIGN = 0x11
    COMPRESSION_ACK = 0x12
    COMPRESSION_CLOSE = 0x13


class Remote(NamedTuple):
    """An address and port a proxy exchanges UDP packets with."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


def remote(host: str, port: int) -> Remote:
    """A remote from the text of its address."""
    return Remote(ipaddress.ip_address(host), port)


@dataclass(frozen=True, slots=True)
class Capsule:
    """One capsule. An HTTP Datagram is one of type DATAGRAM, however it travelled."""

    type: int
    value: bytes

    def encode(self) -> bytes:
        return encode_varint(self.type) + encode_varint(len(self.value)) + self.value


def encode_varint(value: int) -> bytes:
    """RFC 9000 section 16."""
    for size, prefix in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if value < 1 << (8 * size - 2):
            return (value | prefix << (8 * size - 2)).to_bytes(size)
    raise ValueError(f"{value} needs more than 62 bits")


def decode_varint(data: bytes) -> tuple[int, bytes] | None:
    """The integer and what follows it; None if it is not all there."""
    if not data:
        return None
    size = 1 << (data[0] >> 6)
    if len(data) < size:
        return None
    return int.from_bytes(data[:size]) & ((1 << (8 * size - 2)) - 1), data[size:]


class CapsuleReader:
    """Cuts a data stream into capsules."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Capsule]:
        self._buffer += data
        capsules = []
        while (capsule := self._take()) is not None:
            capsules.append(capsule)
        return capsules

    def _take(self) -> Capsule | None:
        if (head := decode_varint(self._buffer)) is None:
            return None
        capsule_type, rest = head
        if (tail := decode_varint(rest)) is None:
            return None
        length, rest = tail
        if len(rest) < length:
            return None
        self._buffer = rest[length:]
        return Capsule(capsule_type, rest[:length])

    @property
    def truncated(self) -> bool:
        """Whether the stream may not end here (RFC 9297 section 3.3)."""
        return bool(self._buffer)


def datagram(context: int, payload: bytes) -> bytes:
    """An HTTP Datagram (RFC 9298 section 5)."""
    return encode_varint(context) + payload


def split_datagram(data: bytes) -> tuple[int, bytes]:
    """The context ID of an HTTP Datagram, and what follows it.

    Raises:
        ValueError: there is no context ID.
    """
    if (split := decode_varint(data)) is None:
        raise ValueError("an HTTP Datagram without a context ID")
    return split


def encode_remote(remote: Remote) -> bytes:
    """IP version, address and port, as ASSIGN and uncompressed payloads have them."""
    return bytes([remote.ip.version]) + remote.ip.packed + struct.pack("!H", remote.port)


def split_remote(data: bytes) -> tuple[Remote, bytes]:
    """A remote, and what follows it.

    Raises:
        ValueError: it is cut short, or of another IP version.
    """
    sizes = {4: 4, 6: 16}
    size = sizes.get(data[0] if data else -1)
    if size is None or len(data) < 1 + size + 2:
        raise ValueError(f"not a remote: {data[:19].hex()}")
    ip = ipaddress.ip_address(data[1 : 1 + size])
    (port,) = struct.unpack_from("!H", data, 1 + size)
    return Remote(ip, port), data[1 + size + 2 :]


def assign(context: int, target: Remote | None) -> Capsule:
    """COMPRESSION_ASSIGN; without a target, of the uncompressed context."""
    value = encode_varint(context) + (b"\0" if target is None else encode_remote(target))
    return Capsule(CapsuleType.COMPRESSION_ASSIGN, value)


def split_assign(value: bytes) -> tuple[int, Remote | None]:
    """Context ID and target of a COMPRESSION_ASSIGN.

    Raises:
        ValueError: it is malformed.
    """
    context, rest = split_datagram(value)
    if rest == b"\0":
        target = None
    else:
        target, rest = split_remote(rest)
        if rest:
            raise ValueError("bytes after the target of a COMPRESSION_ASSIGN")
    return context, target


def ack(context: int) -> Capsule:
    """COMPRESSION_ACK."""
    return Capsule(CapsuleType.COMPRESSION_ACK, encode_varint(context))


def close(context: int) -> Capsule:
    """COMPRESSION_CLOSE."""
    return Capsule(CapsuleType.COMPRESSION_CLOSE, encode_varint(context))


def split_context(value: bytes) -> int:
    """The context ID of a COMPRESSION_ACK or COMPRESSION_CLOSE.

    Raises:
        ValueError: it is malformed.
    """
    context, rest = split_datagram(value)
    if rest:
        raise ValueError("bytes after a context ID")
    return context


def field(fields: Fields, name: str) -> str | None:
    """The value of a field, its lines joined; None if there is none."""
    values = [value for key, value in fields if key == name]
    return ", ".join(values) if values else None


def write_addresses(addresses: Sequence[Remote]) -> str:
    """The value of Proxy-Public-Address (bind draft section 6)."""
    return ", ".join(f'"{address}"' for address in addresses)


def read_addresses(value: str) -> list[Remote]:
    """The addresses in a Proxy-Public-Address.

    Raises:
        ValueError: a member is no address with port.
    """
    addresses = []
    for member in value.split(","):
        match = re.fullmatch(r'"(?:\[([0-9a-f:.]+)\]|([0-9.]+)):(\d+)"', member.strip())
        if match is None:
            raise ValueError(f"not an address and port: {member}")
        addresses.append(remote(match[1] or match[2], int(match[3])))
    return addresses
