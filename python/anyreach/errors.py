"""The exceptions of anyreach: one family, each with what a program needs to react.

Every exception is an :class:`AnyreachError`; each also derives from the built-in
exception a Python programmer would catch. ``asyncio.CancelledError`` is never wrapped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AnyreachError",
    "Attempt",
    "BindError",
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionLost",
    "ForkError",
    "IdentityError",
    "IdentityInUse",
    "NodeClosed",
    "PeerIdMismatch",
    "StreamClosed",
    "StreamReset",
]


class AnyreachError(Exception):
    """Base of every exception raised by anyreach."""


class ConfigError(AnyreachError, ValueError):
    """A configuration value was rejected.

    Attributes:
        field: name of the field, as in :class:`anyreach.P2pConfig`.
        value: the rejected value.
        remedy: what to write instead.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(f"{field}={value!r} is not valid: {remedy}")
        self.field = field
        self.value = value
        self.remedy = remedy


class IdentityError(AnyreachError, ValueError):
    """A key file or key is unusable: damaged, of another kind, or readable by others."""


class IdentityInUse(IdentityError):
    """A running node, in this process or another, has the key file.

    Peers keep one connection per PeerId, so two nodes with one key would take each other's
    connections away without end.

    Attributes:
        file: the key file.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        super().__init__(
            f"{os.fspath(file)}: another running node uses this key; stop that node, or give this"
            " one a key file of its own or an ephemeral identity"
        )
        self.file = file


class BindError(AnyreachError, OSError):
    """The socket could not be bound (port in use, no such address, no permission)."""


class NodeClosed(AnyreachError, RuntimeError):
    """The node was closed, or never started."""


class ForkError(AnyreachError, RuntimeError):
    """anyreach objects made before ``os.fork()`` were used in the child process.

    Threads do not survive a fork; create a new node in the child.
    """


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to reach a peer, as listed by :class:`ConnectError` and by
    :attr:`anyreach.Connection.attempts`.

    Attributes:
        address: ``host:port`` that was tried (``[v6]:port``), or a description.
        method: ``"direct"``, ``"punched"`` or ``"relayed"``.
        reason: machine-readable outcome, one of ``"handshake-timeout"``, ``"refused"``,
            ``"unreachable"``, ``"peer-id-mismatch"``, ``"key-exchange"``, ``"tls"``,
            ``"protocol"``, ``"limit"``, ``"closed"``, ``"cancelled"``, ``"name-resolution"``,
            ``"family"``, ``"self"`` (the node reached itself), ``"no-answer"`` (on the connection
            there was), ``"internal"``; ``"ok"`` for the one that succeeded.
        detail: one sentence for people.
        ms: milliseconds from the start of this attempt to its end.
    """

    address: str
    method: str
    reason: str
    detail: str
    ms: float


class ConnectError(AnyreachError, ConnectionError):
    """No attempt reached the peer.

    Attributes:
        attempts: what was tried and why each attempt failed, in order of their start.
    """

    def __init__(self, message: str, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(message)
        self.attempts: tuple[Attempt, ...] = tuple(attempts)

    def __str__(self) -> str:
        head = super().__str__()
        if not self.attempts:
            return head
        lines = [f"  {a.address} ({a.method}, {a.ms:.0f} ms): {a.detail}" for a in self.attempts]
        return "\n".join([head, *lines])


class ConnectTimeout(ConnectError, TimeoutError):
    """The peer was not reached within the time allowed; ``attempts`` says how far it came."""


class PeerIdMismatch(ConnectError):
    """Somebody answered, but proved another PeerId than the one that was dialed.

    Attributes:
        expected: the PeerId that was dialed (text form).
        actual: the PeerId that answered (text form).
    """

    def __init__(
        self,
        message: str,
        attempts: Sequence[Attempt] = (),
        *,
        expected: str = "",
        actual: str = "",
    ) -> None:
        super().__init__(message, attempts)
        self.expected = expected
        self.actual = actual


class ConnectionLost(AnyreachError, ConnectionError):
    """The connection ended: closed by either side, timed out, or broken.

    Attributes:
        reason: ``"closed"`` (by the peer's application), ``"local"`` (by this side),
            ``"timeout"``, ``"reset"``, ``"replaced"`` (by a newer connection between the same
            PeerIds; without one here, another node uses this node's key), ``"transport"``.
        code: application or transport error code, 0 where there is none.
    """

    def __init__(self, message: str, *, reason: str = "transport", code: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code


class StreamReset(AnyreachError, ConnectionError):
    """The peer reset the stream, or asked us to stop sending on it (RFC 9000, 19.4 and 19.5).

    Attributes:
        code: the application error code the peer gave.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class StreamClosed(AnyreachError, RuntimeError):
    """The stream was already finished, reset or stopped by this side."""
