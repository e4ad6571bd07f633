"""Which file names a receiver accepts, and the names it derives from them. Pure: no I/O.

A name comes from a stranger and is used inside one folder. It must therefore be one path
component on every system, must not hide itself or spoof what people read, and must not be one
of the names the receiver uses for its own partial files.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from .errors import TransferError, TransferErrorCode

__all__ = ["MAX_NAME_BYTES", "check_name", "numbered_name", "partial_name", "printable"]

#: Longest file name of the common file systems (ext4, XFS, Btrfs, APFS, NTFS), in UTF-8 bytes.
MAX_NAME_BYTES: Final = 255

#: Device names of Windows, with or without an extension. Refused everywhere: the folder may be
#: shared, and nobody misses them.
_DEVICES: Final = re.compile(
    r"(?:con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3]|conin\$|conout\$)"
    r"[ ]*(?:\..*)?",
    re.IGNORECASE | re.DOTALL,
)

#: Characters Windows does not allow; a colon would name a drive or an alternate stream there.
_WINDOWS_FORBIDDEN: Final = frozenset('<>:"|?*')

#: Characters that reorder or break what people read on a terminal ("gpj.exe" as "exe.jpg").
_SPOOFING: Final = frozenset(
    "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


def check_name(name: str, *, windows: bool = False) -> str:
    """``name`` unchanged, if a file may be stored under it.

    Args:
        windows: also apply the rules only Windows has.

    Raises:
        TransferError: with code ``bad-name`` and the reason.
    """
    if reason := _objection(name, windows):
        raise TransferError(
            TransferErrorCode.BAD_NAME, f"the file name {printable(name)!r} is refused: {reason}"
        )
    return name


def _objection(name: str, windows: bool) -> str | None:
    if not name:
        return "it is empty"
    if "/" in name or "\\" in name:
        return "it has a path separator"
    if name.startswith("."):
        # Covers "." and "..", plants no ".profile", and keeps partial files out of reach.
        return "hidden names are not accepted; send the file under another name"
    if any(unicodedata.category(c) in ("Cc", "Cs") or c in _SPOOFING for c in name):
        return "it has control characters"
    if len(name.encode("utf-8")) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    if _DEVICES.fullmatch(name):
        return "it is a device name on some systems"
    if name[-1] in ". ":
        return "it ends in a dot or a space"
    if windows and not _WINDOWS_FORBIDDEN.isdisjoint(name):
        return "it has a character this system does not allow"
    return None


def partial_name(name: str, content_id: str) -> str:
    """The name of the partial file: ``.name.<id>.part``, shortened to fit.

    Args:
        name: an accepted name.
        content_id: the id of the content, hexadecimal.
    """
    suffix = f".{content_id[:16]}.part"
    return "." + _shorten(name, MAX_NAME_BYTES - len(suffix) - 1) + suffix


def numbered_name(name: str, number: int) -> str:
    """``photo.jpg`` becomes ``photo (1).jpg``: what browsers do when a name is taken."""
    if number == 0:
        return name
    stem, dot, extension = name.rpartition(".")
    if not dot or not stem or len(extension) > 16:
        stem, dot, extension = name, "", ""
    tail = f" ({number}){dot}{extension}"
    return _shorten(stem, MAX_NAME_BYTES - len(tail.encode("utf-8"))) + tail


def printable(name: str, limit: int = 80) -> str:
    """``name`` made safe to print: control and reordering characters replaced, shortened."""
    shown = "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in _SPOOFING else c
        for c in name[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _shorten(text: str, octets: int) -> str:
    return text.encode("utf-8")[:octets].decode("utf-8", "ignore")
