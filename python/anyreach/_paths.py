"""Questions about the paths of a connection as they are now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach import _core

__all__ = ["current", "has_direct", "is_relayed"]


class _Path(Protocol):
    @property
    def current(self) -> bool: ...


P = TypeVar("P", bound=_Path)


def current(paths: Iterable[P]) -> P | None:
    """The path data takes; ``None`` if there is none at the moment."""
    return next((path for path in paths if path.current), None)


def is_relayed(connection: _core.Connection) -> bool:
    """Whether data goes through a relay now."""
    path = current(connection.paths())
    return path is not None and path.method == "relayed"


def has_direct(connection: _core.Connection) -> bool:
    """Whether there is a path that needs no relay."""
    return any(path.method != "relayed" for path in connection.paths())
