"""The header that begins every service stream, and the prefix of service datagrams. Pure.

A stream says in its first bytes which service it wants::

    "ars" version(1)   frame {"service": NAME, ...parameters}

and the answering side's first frame says ``{"ok": true, ...}`` or why not. Datagrams that
belong to a service start with the id of the stream that opened it, as a variable-length
integer (RFC 9000, 16), so that several services share a connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from anyreach.transfer.errors import FrameError
from anyreach.transfer.frames import FrameReader, encode_frame, get_text, read_frame

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BAD_HEADER",
    "BAD_VERSION",
    "MAGIC",
    "VERSION",
    "HeaderError",
    "Request",
    "decode_varint",
    "encode_header",
    "encode_varint",
    "read_header",
]

MAGIC: Final = b"ars"
VERSION: Final = 1

#: Application error code: the stream did not begin with a service header.
BAD_HEADER: Final = 0x10

#: Application error code: the header is of a version this program does not speak.
BAD_VERSION: Final = 0x11

_SERVICE_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


class HeaderError(FrameError):
    """The stream does not begin with a header we understand.

    Attributes:
        reset_code: application error code to reset the stream with.
    """

    def __init__(self, message: str, reset_code: int = BAD_HEADER) -> None:
        super().__init__(message)
        self.reset_code = reset_code


@dataclass(frozen=True, slots=True)
class Request:
    """What a peer asks for on a stream.

    Attributes:
        service: ``"ping"``, ``"bench"``, ``"send"``, or a name this version does not know.
        body: the parameters, not yet checked.
    """

    service: str
    body: Mapping[str, object]


def encode_header(service: str, **parameters: object) -> bytes:
    """The first bytes of a stream that asks for ``service``."""
    return MAGIC + bytes([VERSION]) + encode_frame({"service": service, **parameters})


async def read_header(stream: FrameReader) -> Request:
    """Reads the header of a stream a peer opened.

    Raises:
        HeaderError: it is not a header, or of another version.
    """
    start = await stream.readexactly(len(MAGIC) + 1)
    if start[: len(MAGIC)] != MAGIC:
        raise HeaderError("the stream does not begin with a service header")
    if start[len(MAGIC)] != VERSION:
        raise HeaderError(
            f"service headers of version {start[len(MAGIC)]} are unknown", BAD_VERSION
        )
    try:
        body = await read_frame(stream)
        service = get_text(body, "service", limit=32)
    except FrameError as error:
        raise HeaderError(str(error)) from error
    if not _SERVICE_NAME.fullmatch(service):
        raise HeaderError("the service name is not valid")
    return Request(service, body)


def encode_varint(value: int) -> bytes:
    """``value`` as a variable-length integer (RFC 9000, 16), in the shortest form."""
    for exponent in range(4):
        octets = 1 << exponent
        if value >> (8 * octets - 2) == 0:
            return (value | exponent << (8 * octets - 2)).to_bytes(octets, "big")
    raise ValueError("a variable-length integer has at most 62 bits")


def decode_varint(data: bytes) -> tuple[int, int] | None:
    """Value and length of the variable-length integer ``data`` starts with, or ``None``."""
    if not data:
        return None
    octets = 1 << (data[0] >> 6)
    if len(data) < octets:
        return None
    return int.from_bytes(data[:octets], "big") & ((1 << (8 * octets - 2)) - 1), octets
