"""One node at a time uses a key file, however the other ends."""

from __future__ import annotations

import errno
import gc
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anyreach import IdentityInUse, _key_lock
from anyreach._key_lock import claim
from anyreach.errors import IdentityError
from anyreach.identity import Identity

HOLDER = """
import sys
from anyreach._key_lock import claim
held = claim(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "node.pem"


def test_a_key_in_use_is_refused_until_it_is_released(key: Path) -> None:
    identity, lock = claim(key)
    assert identity == Identity.load(key)  # reading it is free
    with pytest.raises(IdentityInUse, match=r"node\.pem.*another running node") as caught:
        claim(key)
    assert caught.value.file == key
    lock.release()
    lock.release()
    again, lock = claim(key)
    assert again == identity
    lock.release()


def test_another_name_of_the_same_key_is_in_use_as_well(key: Path, tmp_path: Path) -> None:
    _, lock = claim(key)
    link = tmp_path / "link.pem"
    link.symlink_to(key)
    with pytest.raises(IdentityInUse):
        claim(link)
    lock.release()


def test_a_key_that_replaces_one_in_use_is_free(key: Path) -> None:
    first, held = claim(key)
    Identity.generate().save(key, overwrite=True)
    second, lock = claim(key)
    assert first != second
    held.release()
    lock.release()


def test_a_key_replaced_meanwhile_is_looked_at_again(
    key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Identity.load
    replaced: list[Identity] = []

    def replace_once(path: Path) -> Identity:
        identity = load(path)
        if len(replaced) < times:
            replaced.append(Identity.generate())
            replaced[-1].save(path, overwrite=True)
        return identity

    Identity.load_or_create(key)
    monkeypatch.setattr(Identity, "load", replace_once)
    times = 2
    identity, lock = claim(key)
    assert identity == replaced[-1] == load(key)
    lock.release()
    times = 1000
    with pytest.raises(IdentityError, match="again and again"):
        claim(key)


def test_a_lock_nobody_keeps_is_released(key: Path) -> None:
    claim(key)
    gc.collect()
    _, lock = claim(key)
    lock.release()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_a_key_that_cannot_be_written_is_locked_all_the_same(key: Path) -> None:
    Identity.load_or_create(key)
    key.chmod(0o400)
    _, lock = claim(key)
    with pytest.raises(IdentityInUse):
        claim(key)
    lock.release()


def test_a_file_system_without_locks_is_told(
    key: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(_key_lock, "_lock", refuse)
    with caplog.at_level(logging.WARNING, "anyreach"):
        _, lock = claim(key)
    assert "no locks" in caplog.text
    lock.release()


def test_a_process_that_is_killed_leaves_no_lock(key: Path) -> None:
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(key)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(IdentityInUse):
            claim(key)
    finally:
        holder.kill()
        holder.communicate()
    _, lock = claim(key)
    lock.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_holds_nor_releases(key: Path) -> None:
    _, lock = claim(key)
    reading, writing = os.pipe()
    started, starting = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            lock.release()
            os.write(starting, b"!")
            os.close(writing)
            os.read(reading, 1)  # until the parent has looked
            code = 0
        finally:
            os._exit(code)
    assert os.read(started, 1) == b"!"
    with pytest.raises(IdentityInUse):
        claim(key)  # the child's release was not ours
    # As the kernel does when the parent crashes, without a word to the lock.
    assert lock._descriptor is not None
    os.close(lock._descriptor)
    lock._descriptor = None
    _, again = claim(key)
    again.release()
    for descriptor in (writing, reading, started, starting):
        os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
