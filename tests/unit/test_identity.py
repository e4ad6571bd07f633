"""Key files: private, complete or absent, and one per node whoever creates it."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import pickle
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anyreach.config import P2pConfig
from anyreach.errors import IdentityError
from anyreach.identity import Identity, default_identity_path
from anyreach.peer import PeerId

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A valid key file."""
    path = tmp_path / "identity.pem"
    Identity.generate().save(path)
    return path


def test_generated_identities_differ() -> None:
    one, other = Identity.generate(), Identity.generate()
    assert one != other
    assert len({one, other}) == 2
    assert one.peer_id == PeerId(hashlib.sha256(one.public_key).digest())
    assert len(one.public_key) == 1974


def test_the_private_key_does_not_slip_out() -> None:
    identity = Identity.generate()
    assert repr(identity) == f"Identity({identity.peer_id.short}…)"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(identity)


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    identity = Identity.generate()
    identity.save(path)
    loaded = Identity.load(str(path))
    assert loaded == identity
    assert loaded.public_key == identity.public_key
    lines = path.read_text().splitlines()
    assert lines[0] == "-----BEGIN PRIVATE KEY-----"
    assert lines[-1] == "-----END PRIVATE KEY-----"
    assert {len(line) for line in lines[1:-2]} <= {64}
    assert [p.name for p in tmp_path.iterdir()] == ["identity.pem"]


@posix
def test_files_and_folders_are_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "identity.pem"
    umask = os.umask(0)
    try:
        Identity.load_or_create(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_save_does_not_overwrite_unasked(key: Path) -> None:
    before = key.read_bytes()
    with pytest.raises(IdentityError, match="exists already"):
        Identity.generate().save(key)
    assert key.read_bytes() == before
    identity = Identity.generate()
    identity.save(key, overwrite=True)
    assert Identity.load(key) == identity
    assert len(list(key.parent.iterdir())) == 1


def test_load_or_create_creates_once(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    assert Identity.load_or_create(path) == Identity.load_or_create(path)


def test_threads_that_create_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: Identity.load_or_create(path), range(16)))
    assert len(set(found)) == 1
    assert Identity.load(path) == found[0]
    assert len(list(tmp_path.iterdir())) == 1


def test_processes_that_create_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    program = (
        "import sys; from anyreach.identity import Identity; sys.stdin.read();"
        "print(Identity.load_or_create(sys.argv[1]).peer_id)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    # They wait for the end of their input, so they start together.
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
        child.stdin = None
    ids = {child.communicate(timeout=60)[0].strip() for child in children}
    assert ids == {str(Identity.load(path).peer_id)}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_file_systems_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "identity.pem"
    identity = Identity.load_or_create(path)
    assert Identity.load(path) == identity
    with pytest.raises(IdentityError, match="exists already"):
        Identity.generate().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["identity.pem"]


def test_a_crash_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(IdentityError, match="No space left"):
        Identity.load_or_create(tmp_path / "identity.pem")
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_keys_others_can_use_are_refused(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(IdentityError, match=f"mode {mode:04o}.*chmod 600 .*identity.pem"):
        Identity.load_or_create(key)


@posix
def test_a_read_only_key_is_fine(key: Path) -> None:
    key.chmod(0o400)
    Identity.load(key)


@posix
def test_a_symbolic_link_is_followed(key: Path) -> None:
    link = key.with_name("link.pem")
    link.symlink_to(key)
    assert Identity.load(link) == Identity.load(key)
    dangling = key.with_name("dangling.pem")
    dangling.symlink_to(key.with_name("nothing"))
    with pytest.raises(IdentityError, match="no such key file"):
        Identity.load_or_create(dangling)


@posix
def test_not_a_regular_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (tmp_path, fifo, Path("/dev/null")):
        with pytest.raises(IdentityError, match="not a regular file"):
            Identity.load(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="no such key file"):
        Identity.load(tmp_path / "nothing.pem")


def test_impossible_names(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("a\0b", "~no-such-user/key.pem", tmp_path / "file" / "key.pem"):
        with pytest.raises(IdentityError):
            Identity.load_or_create(path)


def _pem(label: str, der: bytes) -> str:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a PEM file"),
        ("hello\n", "not a PEM file"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n", "not a PEM file"),
        ("-----BEGIN PRIVATE KEY-----\nAAA\n-----END PRIVATE KEY-----\n", "base64"),
        ("-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n", "damaged"),
        (_pem("PRIVATE KEY", b"not a key"), "PKCS#8|ML-DSA"),
        (_pem("CERTIFICATE", b"abc"), "holds a 'certificate'"),
        (_pem("ENCRYPTED PRIVATE KEY", b"abc"), "holds a 'encrypted private key'"),
        (_pem("OPENSSH PRIVATE KEY", b"abc"), "holds a 'openssh private key'"),
        (_pem("PRIVATE KEY", b"abc") * 2, "more than one"),
        ("\x00\xff" * 100, "not a PEM file"),
        ("x" * 70_000, "larger than 65536"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "identity.pem"
    path.write_text(content, encoding="latin-1")
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=message) as caught:
        Identity.load_or_create(path)
    assert str(caught.value).startswith(str(path))
    assert path.read_text(encoding="latin-1") == content


def test_every_truncation_is_an_error(key: Path) -> None:
    whole = key.read_bytes()
    for length in range(0, len(whole) - 2, 97):
        key.write_bytes(whole[:length])
        with pytest.raises(IdentityError):
            Identity.load(key)


def test_surroundings_and_line_ends_do_not_matter(key: Path) -> None:
    identity = Identity.load(key)
    text = key.read_text()
    key.write_bytes(("a comment\r\n" + text.replace("\n", "\r\n")).encode())
    assert Identity.load(key) == identity


def test_configurations_take_identities() -> None:
    identity = Identity.generate()
    config = P2pConfig(identity=identity)
    assert config.identity is identity
    assert "identity" not in config.to_dict()


def test_default_path(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path("/home/me")
    monkeypatch.setattr(Path, "home", lambda: home)
    linux = home / ".config" / "anyreach" / "identity.pem"
    assert default_identity_path({}, "linux") == linux
    assert default_identity_path({"XDG_CONFIG_HOME": ""}, "linux") == linux
    assert default_identity_path({"XDG_CONFIG_HOME": "relative"}, "linux") == linux
    assert default_identity_path({"XDG_CONFIG_HOME": "/x"}, "linux") == Path(
        "/x/anyreach/identity.pem"
    )
    assert default_identity_path({"XDG_CONFIG_HOME": "/x"}, "darwin") == (
        home / "Library" / "Application Support" / "anyreach" / "identity.pem"
    )
    assert default_identity_path({"APPDATA": "/roaming"}, "win32") == Path(
        "/roaming/anyreach/identity.pem"
    )
    assert default_identity_path({}, "win32") == (
        home / "AppData" / "Roaming" / "anyreach" / "identity.pem"
    )
