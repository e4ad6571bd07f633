"""The receiving folder: partial files, resuming, and giving a file its final name.

Blocking file operations only; :mod:`anyreach.transfer.receiver` runs them in a thread.

A file is written as ``.name.<id>.part`` beside its final place, synced, and then linked to the
final name, which fails if that name is taken: a reader of the folder sees either nothing or the
whole file, and nothing is ever overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .errors import TransferError, TransferErrorCode
from .names import numbered_name, partial_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from hashlib import _Hash

try:
    import fcntl
except ImportError:  # Windows: only transfers of this process exclude each other
    _flock = None
else:

    def _flock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


__all__ = ["Inbox", "Partial"]

#: Partial files nobody continued for so long are deleted when a receiver starts: long enough
#: for a laptop to come back after a holiday week, short enough not to fill the disk.
STALE_PARTIAL_SECONDS: Final = 14 * 24 * 3600

#: How many files of one name are kept side by side before another one is refused.
MAX_NUMBER: Final = 999

#: What is read at once when a partial file is hashed again.
_HASH_BLOCK: Final = 1 << 20

#: No symbolic link is ever followed to a file, and opening a pipe must not block.
_NO_FOLLOW: Final = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)

_PARTIAL_PATTERN: Final = re.compile(r"\..+\.[0-9a-f]{16}\.part", re.DOTALL)

_NO_SPACE: Final = frozenset(
    code
    for name in ("ENOSPC", "EDQUOT", "EFBIG")
    if (code := getattr(errno, name, None)) is not None
)

#: What os.link() says where a file system has no hard links (FAT, some network mounts).
_NO_LINKS: Final = frozenset(
    code
    for name in ("EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV", "EACCES")
    if (code := getattr(errno, name, None)) is not None
)


@contextlib.contextmanager
def _reported(action: str) -> Iterator[None]:
    """Turns a failed file operation into a transfer error; the peer learns no local path."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise TransferError(
                TransferErrorCode.DISK_FULL, f"{action}: no space left at the receiver"
            ) from error
        reason = error.strerror or type(error).__name__
        raise TransferError(TransferErrorCode.IO, f"{action}: {reason}") from error


class Inbox:
    """A folder that takes files.

    Args:
        directory: where files go; created if missing.
        max_size: largest file accepted, in bytes; ``None`` for what the disk holds.

    Raises:
        OSError: the folder cannot be created or is not a folder.
    """

    def __init__(self, directory: Path, *, max_size: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Resolved once: what a relative path or a link at the top means cannot change later.
        self.directory: Final = directory.resolve(strict=True)
        self.max_size: Final = max_size
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise PermissionError(
                errno.EACCES, "the folder is not writable", os.fspath(self.directory)
            )
        self._locked: set[str] = set()

    def remove_stale(self, *, now: float | None = None) -> int:
        """Deletes partial files nobody continued for two weeks; returns how many."""
        limit = (time.time() if now is None else now) - STALE_PARTIAL_SECONDS
        removed = 0
        with contextlib.suppress(OSError), os.scandir(self.directory) as entries:
            for entry in entries:
                if not _PARTIAL_PATTERN.fullmatch(entry.name):
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_mtime < limit:
                        Path(entry.path).unlink()
                        removed += 1
        return removed

    def check_size(self, size: int, present: int = 0) -> None:
        """Refuses a file that is over the limit or cannot fit on the disk.

        Args:
            size: bytes of the file.
            present: bytes of it that are on the disk already.

        Raises:
            TransferError: ``too-large`` or ``disk-full``.
        """
        if self.max_size is not None and size > self.max_size:
            raise TransferError(
                TransferErrorCode.TOO_LARGE,
                f"{size} bytes are over the receiver's limit of {self.max_size}",
            )
        # statvfs counts what an ordinary user may use; Windows has no statvfs and finds out
        # while writing.
        if hasattr(os, "statvfs"):
            with _reported("the folder cannot be examined"):
                info = os.statvfs(self.directory)
            if size - present > info.f_bavail * info.f_frsize:
                raise TransferError(
                    TransferErrorCode.DISK_FULL,
                    f"the receiver has no space for {size} bytes",
                )

    def existing_sha256(self, name: str, size: int) -> str | None:
        """SHA-256 of the regular file ``name`` if it is there with this size, else ``None``."""
        try:
            descriptor = os.open(self.directory / local_name(name), os.O_RDONLY | _NO_FOLLOW)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                return None
            digest, hashed = _hash_descriptor(descriptor)
            return digest.hexdigest() if hashed == size else None
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def open_partial(self, name: str, content_id: str) -> Partial:
        """Opens or creates the partial file of this name and content, and locks it.

        Raises:
            TransferError: ``busy`` if another transfer has it, ``io`` or ``disk-full``.
        """
        file_name = partial_name(name, content_id)
        path = self.directory / local_name(file_name)
        if path.name in self._locked:
            raise TransferError(TransferErrorCode.BUSY, f"{name!r} is being received already")
        with _reported("the partial file cannot be opened"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise TransferError(TransferErrorCode.IO, "the partial file is not a file")
            if _flock is not None:
                try:
                    _flock(descriptor)
                except OSError as error:
                    raise TransferError(
                        TransferErrorCode.BUSY, f"{name!r} is being received already"
                    ) from error
                if not _is_at(path, status):
                    # Whoever had the lock finished and moved the file while we opened it.
                    raise TransferError(TransferErrorCode.BUSY, f"{name!r} was received just now")
        except BaseException:
            os.close(descriptor)
            raise
        self._locked.add(path.name)
        return Partial(self, path, descriptor, status.st_size)

    def _unlock(self, path: Path) -> None:
        self._locked.discard(path.name)


class Partial:
    """One partial file, open and locked. Not thread-safe: used by one thread at a time.

    Attributes:
        size: bytes on the disk, all of them hashed once :meth:`rehash` or :meth:`restart` ran.
    """

    def __init__(self, inbox: Inbox, path: Path, descriptor: int, size: int) -> None:
        self._inbox = inbox
        self._path = path
        self._descriptor = descriptor
        self._hash: _Hash = hashlib.sha256()
        self._failed = False
        self.size = size

    def rehash(self) -> str:
        """SHA-256 of what is there; writing continues at its end."""
        with _reported("the partial file cannot be read"):
            self._hash, self.size = _hash_descriptor(self._descriptor)
            os.lseek(self._descriptor, self.size, os.SEEK_SET)
        return self._hash.hexdigest()

    def restart(self) -> None:
        """Throws away what is there."""
        with _reported("the partial file cannot be emptied"):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._hash, self.size = hashlib.sha256(), 0

    def write(self, data: memoryview) -> None:
        """Appends ``data``.

        Raises:
            TransferError: ``disk-full`` or ``io``; what was written before stays.
        """
        if self._failed:
            # What follows a gap is not a prefix of the file any more.
            raise TransferError(TransferErrorCode.IO, "an earlier write failed")
        rest = data
        self._failed = True
        with _reported("the file cannot be written"):
            while rest:
                count = os.write(self._descriptor, rest)
                self._hash.update(rest[:count])
                self.size += count
                rest = rest[count:]
        self._failed = False

    def digest(self) -> str:
        """SHA-256 of everything written, in hexadecimal."""
        return self._hash.hexdigest()

    def commit(self, name: str) -> str:
        """Syncs the file, gives it its final name and closes it.

        Returns:
            The name it got: ``name``, or a numbered one if that was taken.

        Raises:
            TransferError: ``disk-full`` or ``io``; the partial file stays.
        """
        with _reported("the file cannot get its final name"):
            os.fsync(self._descriptor)
            final = self._give_name(name)
            _sync_directory(self._inbox.directory)
        self.close()
        return final

    def discard(self) -> None:
        """Deletes the file and closes it."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        self.close()

    def close(self) -> None:
        """Closes the file and keeps it; an empty one is deleted. May be called twice."""
        if self._descriptor < 0:
            return
        if self.size == 0 and self._path.exists():
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1
        self._inbox._unlock(self._path)

    def _give_name(self, name: str) -> str:
        for number in range(MAX_NUMBER + 1):
            candidate = numbered_name(name, number)
            try:
                _move_without_clobbering(self._path, self._inbox.directory / local_name(candidate))
            except FileExistsError:
                continue
            return candidate
        raise OSError(errno.EEXIST, f"{MAX_NUMBER} files of this name exist already")


def local_name(name: str) -> str:
    """``name`` as this process writes it: on disk it is UTF-8 even in a C locale."""
    return os.fsdecode(name.encode("utf-8"))


def _move_without_clobbering(source: Path, target: Path) -> None:
    """Renames atomically; raises FileExistsError when the target exists, whatever it is."""
    if os.name == "nt":
        source.rename(target)
        return
    try:
        # link() does not follow or replace a target, unlike rename().
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here. An exclusive create claims the name; only a crash between these
        # two calls would leave an empty file there.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666))
        try:
            source.replace(target)
        except OSError:
            target.unlink()
            raise
        return
    source.unlink()


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False


def _sync_directory(directory: Path) -> None:
    """Makes the new name survive a power cut, where folders can be synced."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; the file itself is safe.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _hash_descriptor(descriptor: int) -> tuple[_Hash, int]:
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_HASH_BLOCK))
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return digest, size
