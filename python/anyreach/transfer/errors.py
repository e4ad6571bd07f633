"""Errors of a file transfer, each with the code both sides see."""

from __future__ import annotations

from enum import StrEnum

from anyreach.errors import AnyreachError

__all__ = ["FrameError", "TransferError", "TransferErrorCode"]


class TransferErrorCode(StrEnum):
    """Why a transfer was refused or given up; the value is what goes over the wire."""

    #: The peer does not take files, or not from this PeerId.
    REFUSED = "refused"
    #: The file name cannot be used: it has a separator, is hidden, reserved, or too long.
    BAD_NAME = "bad-name"
    #: Not enough space in the receiving folder.
    DISK_FULL = "disk-full"
    #: The file is larger than the receiver accepts.
    TOO_LARGE = "too-large"
    #: The same file is being received right now, or too many others are. Worth trying again.
    BUSY = "busy"
    #: The bytes received do not have the SHA-256 the sender computed.
    HASH_MISMATCH = "hash-mismatch"
    #: The file changed while it was being sent.
    CHANGED = "changed"
    #: The receiver could not write, or the sender could not read.
    IO = "io"
    #: The other side broke the transfer protocol.
    PROTOCOL = "protocol"
    #: The other side does not know the service that was asked for.
    UNSUPPORTED = "unsupported"
    #: A code of a newer version.
    OTHER = "other"

    @classmethod
    def parse(cls, text: str) -> TransferErrorCode:
        """The code with this wire value; unknown ones become :attr:`OTHER`."""
        try:
            return cls(text)
        except ValueError:
            return cls.OTHER


class TransferError(AnyreachError):
    """A file could not be sent or received.

    Attributes:
        code: why, for programs.
        remote: the other side said so.
    """

    def __init__(self, code: TransferErrorCode, message: str, *, remote: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.remote = remote

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.code is TransferErrorCode.BUSY


class FrameError(TransferError):
    """What arrived is not a well-formed frame, or not the one expected here."""

    def __init__(self, message: str) -> None:
        super().__init__(TransferErrorCode.PROTOCOL, message)
