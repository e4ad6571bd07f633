"""The extension frames and transport parameters of the two drafts, written from their text.

- draft-seemann-quic-nat-traversal-02: ADD_ADDRESS, PUNCH_ME_NOW, REMOVE_ADDRESS, ``nat_traversal``;
- draft-ietf-quic-address-discovery-00: OBSERVED_ADDRESS, ``address_discovery``.

Nothing here is shared with the implementation under test, which is held to it. Decoding is strict:
what the text does not allow raises :class:`MalformedError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

__all__ = [
    "ADDRESS_DISCOVERY",
    "N0_FRAME_TYPES",
    "N0_NAT_TRAVERSAL",
    "NAT_TRAVERSAL",
    "AddAddress",
    "ExtensionFrame",
    "FrameType",
    "MalformedError",
    "ObservedAddress",
    "PunchMeNow",
    "Reader",
    "RemoveAddress",
    "decode_concurrency_limit",
    "decode_frame",
    "decode_observation",
    "encode_varint",
]

Address: TypeAlias = "IPv4Address | IPv6Address"

NAT_TRAVERSAL = 0x3D7E9F0BCA12FEA6
"""Transport parameter, draft-seemann-quic-nat-traversal-02 section 4.5."""

ADDRESS_DISCOVERY = 0x9F81A176
"""Transport parameter, draft-ietf-quic-address-discovery-00 section 3."""

N0_NAT_TRAVERSAL = 0x3D7F91120401
N0_FRAME_TYPES = range(0x3D7F90, 0x3D7F95)
"""Of the engine's own variant of NAT traversal, which no standard and no other stack knows."""


class MalformedError(ValueError):
    """Not what the drafts allow: FRAME_ENCODING_ERROR, or TRANSPORT_PARAMETER_ERROR."""


class FrameType(IntEnum):
    """The least significant bit, where there are two, is 1 for IPv6."""

    ADD_ADDRESS_V4 = 0x3D7E90
    ADD_ADDRESS_V6 = 0x3D7E91
    PUNCH_ME_NOW_V4 = 0x3D7E92
    PUNCH_ME_NOW_V6 = 0x3D7E93
    REMOVE_ADDRESS = 0x3D7E94
    OBSERVED_ADDRESS_V4 = 0x9F81A6
    OBSERVED_ADDRESS_V6 = 0x9F81A7


class Reader:
    """Takes fields off the front of some bytes.

    Attributes:
        at: how many bytes were taken.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self.at < len(self._data)

    def take(self, length: int) -> bytes:
        """So many bytes.

        Raises:
            MalformedError: there are fewer.
        """
        end = self.at + length
        if end > len(self._data):
            raise MalformedError(f"{length} bytes wanted, {len(self._data) - self.at} left")
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data) - self.at)

    def uint(self, length: int) -> int:
        """An integer of so many bytes in network order."""
        return int.from_bytes(self.take(length), "big")

    def varint(self) -> int:
        """A variable-length integer (RFC 9000 section 16)."""
        first = self.uint(1)
        more = (1 << (first >> 6)) - 1
        return (first & 0x3F) << 8 * more | self.uint(more)

    def skip_padding(self) -> None:
        """Take all zero bytes in front."""
        rest = self._data[self.at :]
        self.at += len(rest) - len(rest.lstrip(b"\0"))


def encode_varint(value: int) -> bytes:
    """The shortest encoding of a variable-length integer.

    Raises:
        ValueError: it has more than 62 bits.
    """
    for power in range(4):
        bits = 8 * (1 << power) - 2
        if value < 1 << bits:
            return (power << bits | value).to_bytes(1 << power, "big")
    raise ValueError(f"{value} does not fit into 62 bits")


@dataclass(frozen=True, slots=True)
class ObservedAddress:
    """Address discovery, section 4.1: where the sender sees the receiver on this path."""

    sequence: int
    ip: Address
    port: int

    def encode(self) -> bytes:
        """The frame, its type included."""
        return _encode(FrameType.OBSERVED_ADDRESS_V4, (self.sequence,), self.ip, self.port)


@dataclass(frozen=True, slots=True)
class AddAddress:
    """NAT traversal, section 4.6.1: a candidate of the server, under a number of its own."""

    sequence: int
    ip: Address
    port: int

    def encode(self) -> bytes:
        """The frame, its type included."""
        return _encode(FrameType.ADD_ADDRESS_V4, (self.sequence,), self.ip, self.port)


@dataclass(frozen=True, slots=True)
class PunchMeNow:
    """NAT traversal, section 4.6.2: a candidate of the client, paired with one of the server's."""

    round: int
    paired_with: int
    ip: Address
    port: int

    def encode(self) -> bytes:
        """The frame, its type included."""
        numbers = (self.round, self.paired_with)
        return _encode(FrameType.PUNCH_ME_NOW_V4, numbers, self.ip, self.port)


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """NAT traversal, section 4.6.3: a candidate of the server is one no more."""

    sequence: int

    def encode(self) -> bytes:
        """The frame, its type included."""
        return encode_varint(FrameType.REMOVE_ADDRESS) + encode_varint(self.sequence)


ExtensionFrame: TypeAlias = ObservedAddress | AddAddress | PunchMeNow | RemoveAddress


def decode_frame(frame_type: int, reader: Reader) -> ExtensionFrame | None:
    """The rest of a frame after its type; ``None`` if the type is none of the drafts.

    Raises:
        MalformedError: it is cut short.
    """
    match frame_type:
        case FrameType.OBSERVED_ADDRESS_V4 | FrameType.OBSERVED_ADDRESS_V6:
            return ObservedAddress(reader.varint(), *_address(frame_type, reader))
        case FrameType.ADD_ADDRESS_V4 | FrameType.ADD_ADDRESS_V6:
            return AddAddress(reader.varint(), *_address(frame_type, reader))
        case FrameType.PUNCH_ME_NOW_V4 | FrameType.PUNCH_ME_NOW_V6:
            return PunchMeNow(reader.varint(), reader.varint(), *_address(frame_type, reader))
        case FrameType.REMOVE_ADDRESS:
            return RemoveAddress(reader.varint())
        case _:
            return None


def decode_observation(value: bytes) -> tuple[bool, bool]:
    """What ``address_discovery`` says: (whether it provides observations, whether it wants them).

    Raises:
        MalformedError: another value than the three that are defined.
    """
    reader = Reader(value)
    number = reader.varint()
    if reader or number not in _OBSERVATION:
        raise MalformedError(f"address_discovery is {value.hex()}")
    return _OBSERVATION[number]


def decode_concurrency_limit(value: bytes, *, from_client: bool) -> int | None:
    """What ``nat_traversal`` says: the server's concurrency limit; ``None`` from a client.

    Raises:
        MalformedError: a client's is not empty, or a server's no variable-length integer above 0.
    """
    if from_client:
        if value:
            raise MalformedError(f"nat_traversal of a client is {value.hex()}")
        return None
    reader = Reader(value)
    limit = reader.varint()
    if reader or limit == 0:
        raise MalformedError(f"nat_traversal of a server is {value.hex()}")
    return limit


_OBSERVATION = {0: (True, False), 1: (False, True), 2: (True, True)}


def _address(frame_type: int, reader: Reader) -> tuple[Address, int]:
    ip = IPv6Address(reader.take(16)) if frame_type & 1 else IPv4Address(reader.take(4))
    return ip, reader.uint(2)


def _encode(v4_type: FrameType, numbers: tuple[int, ...], ip: Address, port: int) -> bytes:
    frame_type = v4_type if isinstance(ip, IPv4Address) else v4_type + 1
    head = b"".join(map(encode_varint, (frame_type, *numbers)))
    return head + ip.packed + port.to_bytes(2, "big")
