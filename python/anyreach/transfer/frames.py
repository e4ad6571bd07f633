"""Length-prefixed JSON frames, the control messages of service streams. Pure: no I/O.

A frame is two bytes of length, big-endian, and that many bytes of UTF-8 JSON holding one
object. Keys a reader does not know are ignored, so later versions can add some.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Protocol

from .errors import FrameError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LENGTH_BYTES",
    "MAX_FRAME",
    "FrameReader",
    "decode_body",
    "decode_length",
    "encode_frame",
    "get_bool",
    "get_hex",
    "get_int",
    "get_text",
    "read_frame",
]

#: Bytes of the length prefix.
LENGTH_BYTES: Final = 2

#: Largest body accepted. The longest message carries a file name: 255 bytes, six times that
#: when every character is escaped. Small enough that a thousand idle streams hold 4 MB.
MAX_FRAME: Final = 4096


class FrameReader(Protocol):
    """The one operation reading a frame needs; :class:`anyreach.Stream` has it."""

    async def readexactly(self, n: int, /) -> bytes:
        """Exactly ``n`` bytes."""
        ...


def encode_frame(body: Mapping[str, object]) -> bytes:
    """The frame that carries ``body``.

    Raises:
        FrameError: the body is longer than :data:`MAX_FRAME`.
    """
    data = json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(data) > MAX_FRAME:
        raise FrameError(f"a frame of {len(data)} bytes is over the limit of {MAX_FRAME}")
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def decode_length(prefix: bytes) -> int:
    """The body length announced by the two-byte prefix.

    Raises:
        FrameError: shorter than an empty object or longer than :data:`MAX_FRAME`.
    """
    length = int.from_bytes(prefix, "big")
    if not 2 <= length <= MAX_FRAME:
        raise FrameError(f"a frame length of {length} is outside 2..{MAX_FRAME}")
    return length


def decode_body(data: bytes) -> dict[str, object]:
    """The object in a frame body.

    Raises:
        FrameError: not UTF-8, not JSON, not an object, or nested without end.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FrameError("a frame does not hold valid JSON") from error
    if not isinstance(value, dict):
        raise FrameError("a frame does not hold a JSON object")
    return value


async def read_frame(stream: FrameReader) -> dict[str, object]:
    """Reads one frame.

    Raises:
        FrameError: what arrived is not a frame.
    """
    length = decode_length(await stream.readexactly(LENGTH_BYTES))
    return decode_body(await stream.readexactly(length))


def get_text(body: Mapping[str, object], key: str, *, limit: int = 1024) -> str:
    """The text under ``key``, at most ``limit`` characters."""
    value = body.get(key)
    if not isinstance(value, str) or len(value) > limit:
        raise FrameError(f"{key!r} is not a text of at most {limit} characters")
    return value


def get_int(body: Mapping[str, object], key: str, low: int, high: int) -> int:
    """The integer under ``key``, within ``low..high``."""
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FrameError(f"{key!r} is not an integer in {low}..{high}")
    return value


def get_bool(body: Mapping[str, object], key: str, default: bool = False) -> bool:
    """The truth value under ``key``, ``default`` when it is missing."""
    value = body.get(key, default)
    if not isinstance(value, bool):
        raise FrameError(f"{key!r} is not true or false")
    return value


def get_hex(body: Mapping[str, object], key: str, octets: int) -> str:
    """The lower-case hexadecimal text of exactly ``octets`` bytes under ``key``."""
    value = body.get(key)
    if (
        not isinstance(value, str)
        or len(value) != 2 * octets
        or not set(value) <= set("0123456789abcdef")
    ):
        raise FrameError(f"{key!r} is not {octets} bytes of lower-case hexadecimal")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
