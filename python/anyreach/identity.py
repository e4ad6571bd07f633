"""The key pair a node is known by, and the file it is kept in.

The file is PEM (RFC 7468) around PKCS#8: an ML-DSA-65 private key (FIPS 204), mode 0600. It
appears under its name complete or not at all, so a crash leaves no half key and several
processes that create it at once all end up with the same one.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from anyreach import _core
from anyreach.errors import IdentityError
from anyreach.peer import PeerId

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Identity", "default_identity_path"]

# An expanded ML-DSA-65 key is 4,096 bytes, 5.6 KB as PEM; nothing that large is a key.
_MAX_FILE: Final = 64 * 1024
_PEM: Final = re.compile(
    r"-----BEGIN ([A-Z0-9 ]{1,64})-----\s+([A-Za-z0-9+/=\s]+)-----END \1-----", re.ASCII
)
_LABEL: Final = "PRIVATE KEY"


@final
class Identity:
    """An ML-DSA-65 key pair; its public half hashed is the :class:`PeerId`.

    Make one with :meth:`generate`, :meth:`load` or :meth:`load_or_create`. The private key
    stays in the Rust core and never appears in ``repr``; identities cannot be pickled.
    """

    __slots__ = ("_core", "_peer_id")

    def __init__(self, core: _core.Identity) -> None:
        self._core = core
        self._peer_id = PeerId(core.peer_id)

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity from the system's random numbers, kept in memory only."""
        return cls(_core.Identity.generate())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """The identity stored in ``path``.

        Raises:
            IdentityError: the file is missing, not a regular file, readable by others (POSIX),
                larger than 64 KiB, damaged, or holds another kind of key.
        """
        file = expand(path)
        try:
            return cls(_core.Identity.from_pkcs8(_parse_pem(_read_private(file))))
        except FileNotFoundError:
            raise IdentityError(f"{file}: no such key file; create one or run ephemeral") from None
        except OSError as error:
            raise IdentityError(f"{file}: cannot be read: {error.strerror}") from error
        except IdentityError as error:
            raise IdentityError(f"{file}: {error}") from None

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Identity:
        """The identity stored in ``path``, made first if there is no such file.

        Missing folders are created with mode 0700. When several processes create the
        same file at once, one key wins and all of them return it.

        Raises:
            IdentityError: as :meth:`load`, or the file cannot be created.
        """
        file = expand(path)
        if not os.path.lexists(file):
            identity = cls.generate()
            if identity._store(file, replace=False):
                return identity
        return cls.load(file)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Store the identity in ``path``, readable by its owner only.

        Args:
            path: the file; missing folders are created with mode 0700.
            overwrite: replace an existing file, atomically.

        Raises:
            IdentityError: the file exists and ``overwrite`` is false, or it cannot be written.
        """
        file = expand(path)
        if not self._store(file, replace=overwrite):
            raise IdentityError(f"{file}: exists already; a lost key cannot be recovered")

    @property
    def peer_id(self) -> PeerId:
        """What other nodes know this identity by."""
        return self._peer_id

    @property
    def public_key(self) -> bytes:
        """The public key as DER SubjectPublicKeyInfo, 1,974 bytes."""
        return self._core.public_key

    @property
    def core(self) -> _core.Identity:
        """The key pair in the Rust core, for the endpoint. Not part of the public interface."""
        return self._core

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._peer_id == other._peer_id

    def __hash__(self) -> int:
        return hash(self._peer_id)

    def __repr__(self) -> str:
        return f"Identity({self._peer_id.short}…)"

    def __reduce__(self) -> str:
        raise TypeError("an Identity holds a private key and cannot be pickled; save() it")

    def _store(self, file: Path, *, replace: bool) -> bool:
        """Write ``file`` in one step; false if it exists and is not to be replaced."""
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _write_private(file, _to_pem(self._core.to_pkcs8()), replace=replace)
        except OSError as error:
            raise IdentityError(f"{file}: cannot be written: {error.strerror}") from error


def default_identity_path(
    environ: Mapping[str, str] | None = None, platform: str = sys.platform
) -> Path:
    """Where the command line keeps the identity of this user.

    ``$XDG_CONFIG_HOME/anyreach/identity.pem`` or ``~/.config/...`` (XDG Base Directory
    Specification), ``~/Library/Application Support/...`` on macOS, ``%APPDATA%\\...`` on
    Windows.

    Args:
        environ: environment variables; those of the process by default.
        platform: as :data:`sys.platform`.
    """
    variables = os.environ if environ is None else environ
    if platform == "win32":
        appdata = variables.get("APPDATA")
        base = Path(appdata) if appdata else Path.home() / "AppData" / "Roaming"
    elif platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        # The specification tells us to ignore relative values.
        xdg = Path(variables.get("XDG_CONFIG_HOME", ""))
        base = xdg if xdg.is_absolute() else Path.home() / ".config"
    return base / "anyreach" / "identity.pem"


def expand(path: str | os.PathLike[str]) -> Path:
    """The file meant by ``path``, with ``~`` replaced.

    Raises:
        IdentityError: no file can have that name, or there is no such user.
    """
    if "\0" in os.fspath(path):
        raise IdentityError(f"{os.fspath(path)!r} is not a file name")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # "~nobody" without such a user
        raise IdentityError(f"{path}: {error}") from None


def _read_private(file: Path) -> bytes:
    # O_NONBLOCK: opening a FIFO must not wait for a writer before we can refuse it.
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(file, flags | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError("not a regular file")
        if os.name == "posix" and status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise IdentityError(f"others can use this key (mode {mode:04o}): chmod 600 {file}")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(_MAX_FILE + 1)
    finally:
        os.close(descriptor)
    if len(data) > _MAX_FILE:
        raise IdentityError(f"larger than {_MAX_FILE} bytes, so not a key file")
    return data


def _parse_pem(data: bytes) -> bytes:
    text = data.decode("ascii", "replace")
    if text.count("-----BEGIN ") > 1:
        raise IdentityError("holds more than one PEM block; keep only the private key")
    match = _PEM.search(text)
    if match is None:
        raise IdentityError("damaged, or not a PEM file")
    if match[1] != _LABEL:
        raise IdentityError(f"holds a {match[1].lower()!r}, not a PKCS#8 {_LABEL.lower()!r}")
    try:
        return base64.b64decode("".join(match[2].split()), validate=True)
    except binascii.Error:
        raise IdentityError("damaged: the base64 text is not valid") from None


def _to_pem(der: bytes) -> bytes:
    text = base64.b64encode(der).decode("ascii")
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]  # RFC 7468 2
    return "\n".join([f"-----BEGIN {_LABEL}-----", *lines, f"-----END {_LABEL}-----", ""]).encode()


def _write_private(file: Path, data: bytes, *, replace: bool) -> bool:
    """Write through a temporary neighbour, so that ``file`` is never seen incomplete."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        _write_new(temporary, data)
        if replace:
            temporary.replace(file)
        elif not _publish(temporary, file, data):
            return False
        _sync_folder(file.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, file: Path, data: bytes) -> bool:
    """Give ``temporary`` its name unless that is taken; false if it is."""
    try:
        os.link(temporary, file)  # unlike rename, link never replaces
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Network shares and some phones have no hard links: exclusive creation is next best.
        try:
            _write_new(file, data)
        except FileExistsError:
            return False
    return True


_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def _write_new(file: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(file, flags | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut; not every system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)
