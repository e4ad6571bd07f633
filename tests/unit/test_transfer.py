"""Sending and receiving over an in-memory stream with real files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from anyreach.errors import ConnectionLost
from anyreach.transfer import (
    Inbox,
    Outgoing,
    Pacer,
    Received,
    Receiver,
    Sent,
    TransferError,
    TransferErrorCode,
    send_file,
)
from anyreach.transfer.frames import encode_frame, read_frame
from anyreach.transfer.messages import Done, Offer, Trailer
from anyreach.transfer.names import partial_name

from .transfer_pipe import PipeEnd, pipe

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "inbox")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_file(tmp_path / "source" / "data.bin", 3 * MIB + 17)


def make_file(path: Path, size: int, seed: int = 1) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def names(inbox: Inbox) -> list[str]:
    return sorted(p.name for p in inbox.directory.iterdir())


async def transfer(
    path: Path, receiver: Receiver, *, cut: int | None = None, who: object = "peer"
) -> tuple[Sent, Received]:
    """One attempt. The error of the sender wins, as its user sees it."""
    near, far = pipe(cut)
    receiving = asyncio.create_task(receiver.receive(far, who))
    try:
        sent = await send_file(near, Outgoing.look_at(path))
    finally:
        (outcome,) = await asyncio.gather(receiving, return_exceptions=True)
    if isinstance(outcome, BaseException):
        raise outcome
    return sent, outcome


@pytest.mark.parametrize("size", [0, 1, 65_536, MIB, MIB + 1, 5 * MIB])
async def test_a_file_arrives_verified(tmp_path: Path, inbox: Inbox, size: int) -> None:
    path = make_file(tmp_path / "source" / "file.bin", size)
    sent, received = await transfer(path, Receiver(inbox))
    data = (inbox.directory / "file.bin").read_bytes()
    assert data == path.read_bytes()
    assert sent.sha256 == received.sha256 == hashlib.sha256(data).hexdigest()
    assert (sent.name, sent.size, sent.resumed_at, sent.existing) == ("file.bin", size, 0, False)
    assert names(inbox) == ["file.bin"]


@pytest.mark.parametrize("cut", [10, 70_000, MIB + 5000, 3 * MIB])
async def test_resumes_where_it_broke(source: Path, inbox: Inbox, cut: int) -> None:
    receiver = Receiver(inbox)
    with pytest.raises(ConnectionLost):
        await transfer(source, receiver, cut=cut)
    assert "data.bin" not in names(inbox)
    sent, received = await transfer(source, Receiver(inbox))  # a receiver started anew
    assert received.resumed_at == sent.resumed_at
    assert sent.resumed_at >= max(0, cut - 300) if cut > 1000 else sent.resumed_at == 0
    assert (inbox.directory / "data.bin").read_bytes() == source.read_bytes()
    assert names(inbox) == ["data.bin"]


async def test_many_breaks_make_progress_and_end(source: Path, inbox: Inbox) -> None:
    receiver, offsets = Receiver(inbox), [0]
    for _ in range(20):
        try:
            sent, _ = await transfer(source, receiver, cut=400_000)
        except ConnectionLost:
            (partial,) = inbox.directory.iterdir()
            offsets.append(partial.stat().st_size)
            continue
        break
    else:
        pytest.fail("never finished")
    assert offsets == sorted(set(offsets))
    assert (inbox.directory / sent.name).read_bytes() == source.read_bytes()


async def test_a_damaged_partial_file_starts_again(source: Path, inbox: Inbox) -> None:
    with pytest.raises(ConnectionLost):
        await transfer(source, Receiver(inbox), cut=2 * MIB)
    (partial,) = inbox.directory.iterdir()
    data = bytearray(partial.read_bytes())
    data[100] ^= 1
    partial.write_bytes(data)
    sent, _ = await transfer(source, Receiver(inbox))
    assert sent.resumed_at == 0
    assert (inbox.directory / "data.bin").read_bytes() == source.read_bytes()


async def test_a_partial_file_longer_than_the_source_starts_again(
    source: Path, inbox: Inbox
) -> None:
    with pytest.raises(ConnectionLost):
        await transfer(source, Receiver(inbox), cut=2 * MIB)
    (partial,) = inbox.directory.iterdir()
    with partial.open("ab") as file:
        file.write(bytes(5 * MIB))
    sent, _ = await transfer(source, Receiver(inbox))
    assert sent.resumed_at == 0


async def test_a_changed_file_starts_again(source: Path, inbox: Inbox) -> None:
    with pytest.raises(ConnectionLost):
        await transfer(source, Receiver(inbox), cut=2 * MIB)
    data = bytearray(source.read_bytes())
    data[500_000] ^= 0xFF  # in the middle: size, name and both ends stay
    source.write_bytes(data)
    sent, _ = await transfer(source, Receiver(inbox))
    assert sent.resumed_at == 0
    assert (inbox.directory / "data.bin").read_bytes() == data


async def test_the_same_file_is_not_sent_twice(source: Path, inbox: Inbox) -> None:
    await transfer(source, Receiver(inbox))
    sent, received = await transfer(source, Receiver(inbox))
    assert sent.existing
    assert received.existing
    assert sent.resumed_at == sent.size
    assert names(inbox) == ["data.bin"]


async def test_another_file_of_the_same_name_gets_a_number(source: Path, inbox: Inbox) -> None:
    first = source.read_bytes()
    await transfer(source, Receiver(inbox))
    make_file(source, len(first), seed=2)  # same size: the hash must tell them apart
    sent, _ = await transfer(source, Receiver(inbox))
    assert sent.name == "data (1).bin"
    assert (inbox.directory / "data.bin").read_bytes() == first
    assert (inbox.directory / "data (1).bin").read_bytes() == source.read_bytes()


async def test_without_hard_links(
    source: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    (inbox.directory / "data.bin").write_text("precious")
    sent, _ = await transfer(source, Receiver(inbox))
    assert sent.name == "data (1).bin"
    assert (inbox.directory / "data.bin").read_text() == "precious"
    assert names(inbox) == ["data (1).bin", "data.bin"]


async def test_never_follows_links_out_of_the_folder(
    source: Path, inbox: Inbox, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (inbox.directory / "data.bin").symlink_to(victim)
    sent, _ = await transfer(source, Receiver(inbox))
    assert sent.name == "data (1).bin"
    assert victim.read_text() == "precious"


async def test_a_link_in_place_of_the_partial_file_is_refused(
    source: Path, inbox: Inbox, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    outgoing = Outgoing.look_at(source)
    link = inbox.directory / partial_name(outgoing.name, outgoing.content_id)
    link.symlink_to(victim)
    with pytest.raises(TransferError) as caught:
        await transfer(source, Receiver(inbox))
    assert caught.value.code is TransferErrorCode.IO
    assert victim.read_text() == "precious"


async def test_a_pipe_of_the_same_name_does_not_block(source: Path, inbox: Inbox) -> None:
    os.mkfifo(inbox.directory / "data.bin")
    sent, _ = await transfer(source, Receiver(inbox))
    assert sent.name == "data (1).bin"


@pytest.mark.parametrize("name", ["../escape", "/abs", "a/b", "..", "nul", ".hidden", "x" * 300])
async def test_bad_names_are_refused_with_a_reason(inbox: Inbox, name: str) -> None:
    near, far = pipe()
    receiving = asyncio.create_task(Receiver(inbox).receive(far, "peer"))
    await near.write(encode_frame(Offer(name, 3, "0" * 32).to_body()))
    with pytest.raises(TransferError) as caught:
        Done.from_body(await read_frame(near))
    assert caught.value.code is TransferErrorCode.BAD_NAME
    with pytest.raises(TransferError):
        await receiving
    assert names(inbox) == []


async def test_wrong_bytes_never_get_the_final_name(inbox: Inbox) -> None:
    near, far = pipe()
    receiving = asyncio.create_task(Receiver(inbox).receive(far, "peer"))
    await near.write(encode_frame(Offer("x.bin", 3, "0" * 32).to_body()))
    await read_frame(near)
    await near.write(b"abc" + encode_frame(Trailer("0" * 64).to_body()))
    with pytest.raises(TransferError) as caught:
        Done.from_body(await read_frame(near))
    assert caught.value.code is TransferErrorCode.HASH_MISMATCH
    with pytest.raises(TransferError):
        await receiving
    assert names(inbox) == []


async def test_a_short_stream_keeps_the_rest_for_later(inbox: Inbox) -> None:
    near, far = pipe()
    receiving = asyncio.create_task(Receiver(inbox).receive(far, "peer"))
    await near.write(encode_frame(Offer("x.bin", 10, "0" * 32).to_body()) + b"abc")
    await near.finish()
    with pytest.raises(EOFError):
        await receiving
    (partial,) = inbox.directory.iterdir()
    assert partial.read_bytes() == b"abc"


async def test_disk_full_reaches_the_sender_and_keeps_the_partial_file(
    source: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    written = 0

    def write(descriptor: int, data: bytes) -> int:
        nonlocal written
        if written > MIB:
            raise OSError(28, "No space left on device")
        count = real_write(descriptor, data[:300_000])
        written += count
        return count

    monkeypatch.setattr(os, "write", write)
    near, far = pipe()
    receiving = asyncio.create_task(Receiver(inbox).receive(far, "peer"))
    with pytest.raises(TransferError) as caught:
        await send_file(near, Outgoing.look_at(source))
    assert caught.value.code is TransferErrorCode.DISK_FULL
    assert caught.value.remote
    with pytest.raises(TransferError):
        await receiving
    monkeypatch.undo()
    sent, _ = await transfer(source, Receiver(inbox))
    assert sent.resumed_at == written


async def test_a_file_that_cannot_fit_is_refused_at_once(inbox: Inbox) -> None:
    near, far = pipe()
    receiving = asyncio.create_task(Receiver(inbox).receive(far, "peer"))
    await near.write(encode_frame(Offer("x.bin", 2**62, "0" * 32).to_body()))
    with pytest.raises(TransferError) as caught:
        Done.from_body(await read_frame(near))
    assert caught.value.code is TransferErrorCode.DISK_FULL
    with pytest.raises(TransferError):
        await receiving
    assert names(inbox) == []


async def test_a_size_limit(source: Path, tmp_path: Path) -> None:
    with pytest.raises(TransferError) as caught:
        await transfer(source, Receiver(Inbox(tmp_path / "small", max_size=1000)))
    assert caught.value.code is TransferErrorCode.TOO_LARGE


async def test_a_file_that_changes_while_it_is_sent(source: Path, inbox: Inbox) -> None:
    near, far = pipe()
    receiving = asyncio.create_task(Receiver(inbox).receive(far, "peer"))

    def touch(done: int) -> None:
        if done > MIB:
            os.utime(source, ns=(1, 1))

    with pytest.raises(TransferError) as caught:
        await send_file(near, Outgoing.look_at(source), progress=touch)
    assert caught.value.code is TransferErrorCode.CHANGED
    with pytest.raises(ConnectionError):
        await receiving
    assert names(inbox) == []


async def test_a_cancelled_sender_leaves_what_arrived(source: Path, inbox: Inbox) -> None:
    near, far = pipe()
    receiving = asyncio.create_task(Receiver(inbox).receive(far, "peer"))
    half = asyncio.Event()

    def progress(done: int) -> None:
        if done >= 2 * MIB:
            half.set()

    sending = asyncio.create_task(send_file(near, Outgoing.look_at(source), progress=progress))
    await half.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    with pytest.raises(ConnectionError):
        await receiving
    sent, _ = await transfer(source, Receiver(inbox))
    assert sent.resumed_at > 0


async def start_and_hold(
    source: Path, receiver: Receiver, who: object
) -> tuple[PipeEnd, asyncio.Task[Received]]:
    """A transfer that got its first bytes and then hears nothing more."""
    outgoing = Outgoing.look_at(source)
    near, far = pipe()
    started = asyncio.Event()
    receiving = asyncio.create_task(receiver.receive(far, who, lambda *_: started.set()))
    offer = Offer(outgoing.name, outgoing.size, outgoing.content_id)
    await near.write(encode_frame(offer.to_body()))
    await read_frame(near)
    await started.wait()
    await near.write(source.read_bytes()[:100_000])
    return near, receiving


async def test_the_same_peer_takes_its_transfer_over(source: Path, inbox: Inbox) -> None:
    receiver = Receiver(inbox)
    _, held = await start_and_hold(source, receiver, "peer")
    sent, _ = await transfer(source, receiver, who="peer")
    with pytest.raises(TransferError) as caught:
        await held
    assert caught.value.retryable
    assert (inbox.directory / sent.name).read_bytes() == source.read_bytes()


async def test_another_peer_waits_until_the_first_one_stalls(source: Path, inbox: Inbox) -> None:
    now = 1000.0
    receiver = Receiver(inbox, clock=lambda: now)
    _, held = await start_and_hold(source, receiver, "first")
    with pytest.raises(TransferError) as caught:
        await transfer(source, receiver, who="second")
    assert caught.value.code is TransferErrorCode.BUSY
    now += 10
    sent, _ = await transfer(source, receiver, who="second")
    assert not sent.existing
    with pytest.raises(TransferError):
        await held


async def test_another_process_with_the_same_folder_is_busy(source: Path, inbox: Inbox) -> None:
    _, held = await start_and_hold(source, Receiver(inbox), "peer")
    with pytest.raises(TransferError) as caught:
        await transfer(source, Receiver(Inbox(inbox.directory)), who="peer")
    assert caught.value.code is TransferErrorCode.BUSY
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held


def test_what_cannot_be_sent_says_why(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"folder.*tar"):
        Outgoing.look_at(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TransferError, match="regular file"):
        Outgoing.look_at(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        Outgoing.look_at(tmp_path / "missing")
    hidden = make_file(tmp_path / ".hidden", 1)
    with pytest.raises(TransferError, match="hidden"):
        Outgoing.look_at(hidden)


def test_stale_partial_files_go_and_others_stay(inbox: Inbox) -> None:
    stale = inbox.directory / ".old.bin.0123456789abcdef.part"
    fresh = inbox.directory / ".new.bin.0123456789abcdef.part"
    other = inbox.directory / ".profile"
    for path in (stale, fresh, other):
        path.write_text("x")
    os.utime(stale, (1, 1))
    os.utime(other, (1, 1))
    assert inbox.remove_stale() == 1
    assert names(inbox) == [".new.bin.0123456789abcdef.part", ".profile"]


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", 1)
    with pytest.raises(OSError, match="exists"):
        Inbox(path)


def test_the_pacer_keeps_its_rate() -> None:
    now = 0.0
    pacer = Pacer(1000, clock=lambda: now)
    data = bytes(5000)
    pieces = list(pacer.pieces(data))
    assert b"".join(pieces) == data
    for piece in pieces:
        now += pacer.delay(len(piece))
    assert 3.9 <= now <= 5.0
    now += 100  # an idle time is not saved up
    assert pacer.delay(1000) == 0
    assert pacer.delay(1000) == pytest.approx(1.0)
