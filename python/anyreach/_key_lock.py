"""Holding a key file, so that one node at a time uses it.

Peers keep one connection per PeerId, the newest. Two nodes with one key would take each other's
connections away without end, so a running node holds an exclusive lock on its key file. It is
the file that is locked, not its name: a key that replaces it under that name is free. The lock
ends with :meth:`KeyLock.release`, and with the process however that ends.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from anyreach.errors import IdentityError, IdentityInUse
from anyreach.identity import Identity, expand

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KeyLock", "claim"]

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 5
"""How often the file may be replaced while we look at it, before that is no coincidence."""

_TAKEN: Final = frozenset({errno.EACCES, errno.EAGAIN, errno.EDEADLK})
"""Errors that mean that somebody else has the lock; all others, that there are no locks."""


def claim(path: str | os.PathLike[str]) -> tuple[Identity, KeyLock]:
    """The identity stored in ``path``, made first if there is no such file, and the right to it.

    Blocks for file operations.

    Raises:
        IdentityInUse: a running node has it.
        IdentityError: as :meth:`Identity.load_or_create`.
    """
    file = expand(path)
    for _ in range(_ATTEMPTS):
        Identity.load_or_create(file)
        lock = KeyLock(file)
        try:
            identity = Identity.load(file)
            if lock.is_for(file):
                return identity, lock
        except BaseException:
            lock.release()
            raise
        lock.release()
    raise IdentityError(f"{file}: is being replaced again and again")


class KeyLock:
    """The lock on one key file. Where the file system has no locks, it warns and holds nothing.

    Args:
        file: the key file, which must exist.

    Raises:
        IdentityInUse: somebody else holds it.
        IdentityError: the file cannot be opened.
    """

    __slots__ = ("__weakref__", "_descriptor")

    def __init__(self, file: Path) -> None:
        self._descriptor: int | None = None
        try:
            self._descriptor = _open(file)
        except OSError as error:
            raise IdentityError(f"{file}: cannot be opened: {error.strerror}") from error
        _held.add(self)
        try:
            _lock(self._descriptor)
        except OSError as error:
            if error.errno in _TAKEN:
                self._close()
                raise IdentityInUse(file) from None
            logger.warning(
                "%s: this file system has no locks (%s); make sure that no other node uses the key",
                file,
                error.strerror,
            )

    def is_for(self, file: Path) -> bool:
        """Whether ``file`` is what was locked, not something that has replaced it."""
        assert self._descriptor is not None
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), file.stat())
        return False

    def release(self) -> None:
        """Let others have it. Idempotent."""
        if self._descriptor is not None:
            # Closing is not enough while a forked child has the descriptor, too.
            with suppress(OSError):
                _unlock(self._descriptor)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        # A start that was cancelled leaves it to nobody.
        self.release()


def _open(file: Path) -> int:
    flags = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        # NFS locks what can be written only.
        return os.open(file, os.O_RDWR | flags)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(file, os.O_RDONLY | flags)


if sys.platform == "win32":
    import msvcrt

    # Locks are mandatory there: one beyond the end keeps nobody from reading the key.
    _BEYOND: Final = 1 << 30

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _BEYOND, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _BEYOND, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


_held: WeakSet[KeyLock] = WeakSet()


def _forget_parent() -> None:
    """The parent's locks are not the child's: without this, they would outlive a parent's crash."""
    for lock in list(_held):
        lock._close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
