"""``send`` and ``receive`` when things go wrong."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from .program import Program, eventually, port_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 24_000_000
RATE = "16M"  # bytes per second: slow enough to break a transfer in its middle


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "data.bin"
    path.parent.mkdir()
    path.write_bytes(random.Random(7).randbytes(SIZE))
    return path


def receive(start: Callable[..., Program], tmp_path: Path, *options: str) -> Program:
    """A receiver that can be killed and started again as the same peer at the same port."""
    key = tmp_path / "receiver.pem"
    program = start("receive", tmp_path / "in", "--identity", key, *options)
    program.wait_for("ready")
    return program


def peer(receiver: Program) -> str:
    ready = receiver.events[0]
    return f"{ready['peer_id']}@127.0.0.1:{port_of(ready)}"


def halfway(tmp_path: Path) -> None:
    """Waits until a good part of the file is on the receiver's disk."""

    def is_there() -> bool:
        sizes = [p.stat().st_size for p in (tmp_path / "in").glob(".*.part")]
        return any(size > SIZE // 4 for size in sizes)

    eventually(is_there, "a quarter of the file arrives")


def check_arrived(tmp_path: Path, source: Path) -> None:
    assert [p.name for p in (tmp_path / "in").iterdir()] == [source.name]
    arrived = (tmp_path / "in" / source.name).read_bytes()
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(source.read_bytes()).digest()


def test_resumes_after_the_receiver_was_killed(
    start: Callable[..., Program], tmp_path: Path, source: Path
) -> None:
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0")
    where = peer(receiver)
    sender = start("send", where, source, "--ephemeral", "--limit-rate", RATE)
    halfway(tmp_path)
    receiver.kill()
    assert not (tmp_path / "in" / source.name).exists()
    receive(start, tmp_path, "--bind", where.partition("@")[2])
    events = sender.finish()
    (sent,) = (e for e in events if e["event"] == "file_sent")
    assert sent["resumed_at"] > SIZE // 4
    assert events[-1]["event"] == "sent"
    assert sum(e["event"] == "connected" for e in events) == 2
    check_arrived(tmp_path, source)


@pytest.mark.parametrize("identity", ["same", "other"])
def test_resumes_after_the_sender_was_killed(
    start: Callable[..., Program], tmp_path: Path, source: Path, identity: str
) -> None:
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0")
    who = ("--identity", tmp_path / "sender.pem") if identity == "same" else ("--ephemeral",)
    sender = start("send", peer(receiver), source, *who, "--limit-rate", RATE)
    halfway(tmp_path)
    sender.kill()
    events = start("send", peer(receiver), source, *who).finish()
    (sent,) = (e for e in events if e["event"] == "file_sent")
    assert sent["resumed_at"] > SIZE // 4
    assert events[-1]["carried_bytes"] == SIZE - sent["resumed_at"]
    check_arrived(tmp_path, source)
    received = receiver.wait_for("received")
    assert received["resumed_at"] == sent["resumed_at"]


def test_a_stopped_sender_can_be_continued(
    start: Callable[..., Program], tmp_path: Path, source: Path
) -> None:
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0")
    sender = start("send", peer(receiver), source, "--ephemeral", "--limit-rate", RATE)
    halfway(tmp_path)
    sender.stop(2, expected=130)
    assert receiver.wait_for("interrupted")["name"] == source.name
    events = start("send", peer(receiver), source, "--ephemeral").finish()
    assert next(e for e in events if e["event"] == "file_sent")["resumed_at"] > 0
    check_arrived(tmp_path, source)


def test_a_changed_file_starts_again(
    start: Callable[..., Program], tmp_path: Path, source: Path
) -> None:
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0")
    sender = start("send", peer(receiver), source, "--ephemeral", "--limit-rate", RATE)
    halfway(tmp_path)
    sender.kill()
    data = bytearray(source.read_bytes())
    data[SIZE // 8] ^= 1
    source.write_bytes(data)
    events = start("send", peer(receiver), source, "--ephemeral").finish()
    assert next(e for e in events if e["event"] == "file_sent")["resumed_at"] == 0
    check_arrived(tmp_path, source)


def test_a_damaged_partial_file_starts_again(
    start: Callable[..., Program], tmp_path: Path, source: Path
) -> None:
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0")
    sender = start("send", peer(receiver), source, "--ephemeral", "--limit-rate", RATE)
    halfway(tmp_path)
    receiver.kill()
    sender.kill()
    (partial,) = (tmp_path / "in").glob(".*.part")
    with partial.open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0")
    events = start("send", peer(receiver), source, "--ephemeral").finish()
    assert next(e for e in events if e["event"] == "file_sent")["resumed_at"] == 0
    check_arrived(tmp_path, source)


def test_gives_up_in_time_and_keeps_what_is_there(
    start: Callable[..., Program], tmp_path: Path, source: Path
) -> None:
    config = tmp_path / "quick.toml"
    config.write_text("idle_timeout = 0.5\nkeep_alive_interval = 0.1\n")
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0")
    sender = start("send", peer(receiver), source, "--ephemeral", "--limit-rate", RATE,
                   "--timeout", "2", "--config", config)  # fmt: skip
    halfway(tmp_path)
    receiver.kill()
    events = sender.finish(expected=1)
    assert events[-1]["event"] == "error"
    assert "trying again" in sender.stderr
    assert [p.suffix for p in (tmp_path / "in").iterdir()] == [".part"]


def test_several_files_and_names_that_are_taken(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0")
    paths = []
    for name, text in (("a", "one"), ("b", "two"), ("c", "one")):
        path = tmp_path / name / "note.txt"
        path.parent.mkdir()
        path.write_text(text)
        paths.append(path)
    empty = tmp_path / "empty"
    empty.touch()
    events = start("send", peer(receiver), *paths, empty, "--ephemeral").finish()
    sent = [e for e in events if e["event"] == "file_sent"]
    assert [s["name"] for s in sent] == ["note.txt", "note (1).txt", "note.txt", "empty"]
    assert [s["existing"] for s in sent] == [False, False, True, False]
    assert events[-1]["files"] == 4
    folder = tmp_path / "in"
    assert {p.name: p.read_text() for p in folder.iterdir()} == {
        "note.txt": "one",
        "note (1).txt": "two",
        "empty": "",
    }


def test_two_senders_of_the_same_file(
    start: Callable[..., Program], tmp_path: Path, source: Path
) -> None:
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0")
    first = start("send", peer(receiver), source, "--ephemeral", "--limit-rate", RATE)
    halfway(tmp_path)
    # Held, so that the second one meets it however slow this machine is.
    first.process.send_signal(signal.SIGSTOP)
    second = start("send", peer(receiver), source, "--ephemeral")
    eventually(lambda: "being received already" in second.stderr, "the second one is told")
    first.process.send_signal(signal.SIGCONT)
    assert not next(e for e in first.finish() if e["event"] == "file_sent")["existing"]
    assert next(e for e in second.finish() if e["event"] == "file_sent")["existing"]
    check_arrived(tmp_path, source)


def test_what_cannot_be_sent(node: Program, start: Callable[..., Program], tmp_path: Path) -> None:
    hidden = tmp_path / ".hidden"
    hidden.write_text("x")
    os.mkfifo(tmp_path / "pipe")
    cases: list[tuple[Path, str]] = [
        (tmp_path, "tar"),
        (tmp_path / "missing", "No such file"),
        (hidden, "hidden"),
        (tmp_path / "pipe", "regular file"),
    ]
    for path, words in cases:
        send = start("send", node.events[0]["ticket"], path, "--ephemeral")
        send.finish(expected=1)
        assert words in send.stderr


def test_a_peer_that_takes_no_files(start: Callable[..., Program], source: Path) -> None:
    node = start("node", "--bind", "127.0.0.1:0", "--ephemeral")
    ticket = node.wait_for("ready")["ticket"]
    send = start("send", ticket, source, source, "--ephemeral")
    (error,) = (e for e in send.finish(expected=1) if e["event"] == "error")
    assert error["code"] == "refused"
    assert "--receive" in send.stderr


def test_files_from_chosen_peers_only(
    start: Callable[..., Program], tmp_path: Path, source: Path
) -> None:
    (friend,) = start("id", "--identity", tmp_path / "friend.pem").finish()
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0", "--from", friend["peer_id"])
    stranger = start("send", peer(receiver), source, "--ephemeral")
    assert stranger.finish(expected=1)[-1]["code"] == "refused"
    start("send", peer(receiver), source, "--identity", tmp_path / "friend.pem").finish()
    check_arrived(tmp_path, source)


def test_a_size_limit(start: Callable[..., Program], tmp_path: Path, source: Path) -> None:
    receiver = receive(start, tmp_path, "--bind", "127.0.0.1:0", "--max-size", "1M")
    send = start("send", peer(receiver), source, "--ephemeral")
    assert send.finish(expected=1)[-1]["code"] == "too-large"
    assert list((tmp_path / "in").iterdir()) == []


def test_a_receiver_without_its_folder(start: Callable[..., Program], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    receiver = start("receive", tmp_path / "file", "--ephemeral")
    receiver.finish(expected=1)
    assert str(tmp_path / "file") in receiver.stderr


def test_progress_for_those_who_ask(
    node: Program, start: Callable[..., Program], source: Path
) -> None:
    send = start("send", node.events[0]["ticket"], source, "--ephemeral", "--progress")
    send.finish()
    lines = [line for line in send.stderr.splitlines() if "data.bin" in line]
    assert "100%" in lines[-1]
    assert len(lines) <= 11
    quiet = start("send", node.events[0]["ticket"], source, "--ephemeral")
    quiet.finish()
    assert quiet.stderr == ""
