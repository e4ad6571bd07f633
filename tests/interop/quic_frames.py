"""All frames of a QUIC packet in clear, with the extensions that a node negotiates.

RFC 9000 section 19, RFC 9221 (DATAGRAM), draft-ietf-quic-multipath, draft-ietf-quic-ack-frequency,
and the drafts of :mod:`.extension_frames`. Strict: a type that is none of these raises, so that
whoever reads a whole capture knows what is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .extension_frames import ExtensionFrame, MalformedError, Reader, decode_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Close",
    "Crypto",
    "Datagram",
    "Frame",
    "NewConnectionId",
    "Other",
    "PathChallenge",
    "PathResponse",
    "decode_frames",
    "decode_rest",
]


@dataclass(frozen=True, slots=True)
class Crypto:
    """A part of the TLS handshake."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class NewConnectionId:
    """The sender takes packets with this id, on a path: 0 if the frame names none."""

    path: int
    connection_id: bytes
    reset_token: bytes


@dataclass(frozen=True, slots=True)
class PathChallenge:
    """A probe."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PathResponse:
    """The answer to a probe."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Datagram:
    """Of the application, unreliable."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The end, by the transport or the application."""

    by_application: bool
    code: int
    reason: bytes


@dataclass(frozen=True, slots=True)
class Other:
    """A frame whose contents nobody has asked for yet."""

    type: int


Frame: TypeAlias = (
    ExtensionFrame
    | Crypto
    | NewConnectionId
    | PathChallenge
    | PathResponse
    | Datagram
    | Close
    | Other
)


def decode_frames(payload: bytes) -> Iterator[tuple[int, Frame]]:
    """The frames of a packet, each with its type, without PADDING.

    Raises:
        MalformedError: a frame is cut short, or of a type that nobody has defined.
    """
    reader = Reader(payload)
    if not reader:
        raise MalformedError("a packet without frames")
    while reader:
        frame_type = reader.varint()
        if frame_type == _PADDING:
            reader.skip_padding()
            continue
        yield frame_type, decode_frame(frame_type, reader) or decode_rest(frame_type, reader)


def decode_rest(frame_type: int, reader: Reader) -> Frame:
    """The rest of a frame of another type than those of the drafts, after its type.

    Raises:
        MalformedError: it is cut short, or nobody has defined the type.
    """
    match frame_type:
        case 0x06:
            return Crypto(reader.varint(), reader.take(reader.varint()))
        case 0x18 | 0x3E78:  # NEW_CONNECTION_ID, PATH_NEW_CONNECTION_ID
            path = reader.varint() if frame_type == 0x3E78 else 0
            reader.varint()
            reader.varint()
            return NewConnectionId(path, reader.take(reader.uint(1)), reader.take(16))
        case 0x1A:
            return PathChallenge(reader.take(8))
        case 0x1B:
            return PathResponse(reader.take(8))
        case 0x1C | 0x1D:  # CONNECTION_CLOSE
            code = reader.varint()
            if frame_type == 0x1C:
                reader.varint()
            return Close(frame_type == 0x1D, code, reader.take(reader.varint()))
        case 0x30:
            return Datagram(reader.rest())
        case 0x31:
            return Datagram(reader.take(reader.varint()))
        case 0x02 | 0x03 | 0x3E | 0x3F:  # ACK, PATH_ACK
            if frame_type & 0x3C:
                reader.varint()
            _skip_ack(reader, counts=bool(frame_type & 1))
        case 0x07:  # NEW_TOKEN
            reader.take(reader.varint())
        case _ if 0x08 <= frame_type <= 0x0F:  # STREAM
            reader.varint()
            if frame_type & 4:
                reader.varint()
            if frame_type & 2:
                reader.take(reader.varint())
            else:
                reader.rest()
        case _ if frame_type in _INTEGERS:
            for _ in range(_INTEGERS[frame_type]):
                reader.varint()
        case _:
            raise MalformedError(f"frame type {frame_type:#x}")
    return Other(frame_type)


_PADDING = 0x00

_INTEGERS = {
    0x01: 0,  # PING
    0x04: 3,  # RESET_STREAM
    0x05: 2,  # STOP_SENDING
    0x10: 1,  # MAX_DATA
    0x11: 2,  # MAX_STREAM_DATA
    0x12: 1,  # MAX_STREAMS, bidirectional
    0x13: 1,  # MAX_STREAMS, unidirectional
    0x14: 1,  # DATA_BLOCKED
    0x15: 2,  # STREAM_DATA_BLOCKED
    0x16: 1,  # STREAMS_BLOCKED, bidirectional
    0x17: 1,  # STREAMS_BLOCKED, unidirectional
    0x19: 1,  # RETIRE_CONNECTION_ID
    0x1E: 0,  # HANDSHAKE_DONE
    0x1F: 0,  # IMMEDIATE_ACK
    0xAF: 4,  # ACK_FREQUENCY
    0x3E75: 2,  # PATH_ABANDON
    0x3E76: 2,  # PATH_STATUS_BACKUP
    0x3E77: 2,  # PATH_STATUS_AVAILABLE
    0x3E79: 2,  # PATH_RETIRE_CONNECTION_ID
    0x3E7A: 1,  # MAX_PATH_ID
    0x3E7B: 1,  # PATHS_BLOCKED
    0x3E7C: 2,  # PATH_CIDS_BLOCKED
}
"""Frames that are nothing but so many variable-length integers."""


def _skip_ack(reader: Reader, *, counts: bool) -> None:
    reader.varint()  # largest
    reader.varint()  # delay
    ranges = reader.varint()
    for _ in range(1 + 2 * ranges + 3 * counts):
        reader.varint()
