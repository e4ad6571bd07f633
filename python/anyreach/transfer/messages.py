"""The messages of one file transfer and their order. Pure: no I/O.

::

    sender                               receiver
    Offer name, size, id          ->
                                  <-     Resume offset n
    if n > 0: Prefix sha256       ->     of the first n bytes
                                  <-     Resume offset m     m = n: agreed, m < n: try that
    bytes from the agreed offset  ->
    Trailer sha256                ->     of the whole file
                                  <-     Done name

Instead of any answer the receiver may send a Refusal. A partial file is only continued when
the SHA-256 of what is already there equals that of the sender's first bytes, so a file that
changed in between starts again, and the sender reads nothing twice on a first attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .errors import FrameError, TransferError, TransferErrorCode
from .frames import get_bool, get_hex, get_int, get_text
from .names import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_SIZE",
    "Done",
    "Offer",
    "Prefix",
    "Resume",
    "Trailer",
    "parse_reply",
    "refusal",
]

#: Largest file size that can be announced: what a signed 64-bit file offset holds.
MAX_SIZE: Final = 2**63 - 1

#: Longest name in a message, in characters; names.check_name() has the last word.
_MAX_NAME_CHARACTERS: Final = 1024

_ID_BYTES: Final = 16
_SHA256_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Offer:
    """The sender's request.

    Attributes:
        name: file name, not yet checked.
        size: bytes of the file.
        content_id: 16 bytes in hexadecimal that name the content: a partial file is looked up
            by it. It is a hint; the prefix hash decides.
    """

    name: str
    size: int
    content_id: str

    def to_body(self) -> dict[str, object]:
        """The message as a frame body."""
        return {"name": self.name, "size": self.size, "id": self.content_id}

    @classmethod
    def from_body(cls, body: Mapping[str, object]) -> Offer:
        """Parses the frame body; raises :class:`FrameError`."""
        return cls(
            name=get_text(body, "name", limit=_MAX_NAME_CHARACTERS),
            size=get_int(body, "size", 0, MAX_SIZE),
            content_id=get_hex(body, "id", _ID_BYTES),
        )


@dataclass(frozen=True, slots=True)
class Resume:
    """Where the receiver would like the sender to start."""

    offset: int

    def to_body(self) -> dict[str, object]:
        """The message as a frame body."""
        return {"ok": True, "offset": self.offset}

    @classmethod
    def from_body(cls, body: Mapping[str, object], limit: int) -> Resume:
        """Parses a positive reply whose offset is at most ``limit``; raises on a refusal."""
        return cls(offset=get_int(parse_reply(body), "offset", 0, limit))


@dataclass(frozen=True, slots=True)
class Prefix:
    """SHA-256 of the bytes before the proposed offset, in hexadecimal."""

    sha256: str

    def to_body(self) -> dict[str, object]:
        """The message as a frame body."""
        return {"prefix_sha256": self.sha256}

    @classmethod
    def from_body(cls, body: Mapping[str, object]) -> Prefix:
        """Parses the frame body; raises :class:`FrameError`."""
        return cls(sha256=get_hex(body, "prefix_sha256", _SHA256_BYTES))


@dataclass(frozen=True, slots=True)
class Trailer:
    """SHA-256 of the whole file, in hexadecimal."""

    sha256: str

    def to_body(self) -> dict[str, object]:
        """The message as a frame body."""
        return {"sha256": self.sha256}

    @classmethod
    def from_body(cls, body: Mapping[str, object]) -> Trailer:
        """Parses the frame body; raises :class:`FrameError`."""
        return cls(sha256=get_hex(body, "sha256", _SHA256_BYTES))


@dataclass(frozen=True, slots=True)
class Done:
    """The file is complete, verified and under its final name.

    Attributes:
        name: the name it got.
        existing: the receiver had the same file already.
    """

    name: str
    existing: bool

    def to_body(self) -> dict[str, object]:
        """The message as a frame body."""
        return {"ok": True, "name": self.name, "existing": self.existing}

    @classmethod
    def from_body(cls, body: Mapping[str, object]) -> Done:
        """Parses a positive reply; raises the receiver's error on a refusal."""
        reply = parse_reply(body)
        return cls(
            name=get_text(reply, "name", limit=_MAX_NAME_CHARACTERS),
            existing=get_bool(reply, "existing"),
        )


def refusal(error: TransferError) -> dict[str, object]:
    """The frame body that tells the other side about ``error``."""
    return {"ok": False, "code": str(error.code), "message": str(error)[:512]}


def parse_reply(body: Mapping[str, object]) -> Mapping[str, object]:
    """``body`` if it is a positive reply.

    Raises:
        TransferError: the reply is a refusal; ``remote`` is true.
        FrameError: the frame is not a reply.
    """
    ok = body.get("ok")
    if ok is True:
        return body
    if ok is not False:
        raise FrameError("a reply without 'ok'")
    code = TransferErrorCode.parse(get_text(body, "code", limit=64))
    message = printable(get_text(body, "message", limit=512), 512)
    raise TransferError(code, message, remote=True)
