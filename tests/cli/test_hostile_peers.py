"""Peers that do not keep to the protocol, written against the public interface."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from anyreach import Connection, Node, P2pConfig, Stream, StreamReset
from anyreach.cli import session
from anyreach.cli.header import BAD_HEADER, BAD_VERSION, MAGIC, encode_header
from anyreach.transfer import TransferError, TransferErrorCode
from anyreach.transfer.frames import encode_frame, read_frame
from anyreach.transfer.messages import parse_reply

from .program import PATIENCE, Program, port_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
async def connection(node: Program) -> AsyncIterator[Connection]:
    """A connection of a peer under control of the test to a node that takes files."""
    async with Node(P2pConfig(bind_addr="127.0.0.1:0")) as hostile, asyncio.timeout(PATIENCE):
        yield await hostile.connect(address(node))


def address(node: Program) -> str:
    ready = node.events[0]
    return f"{ready['peer_id']}@127.0.0.1:{port_of(ready)}"


def files(tmp_path: Path) -> list[str]:
    return sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())


async def offer(connection: Connection, name: str, size: int, content_id: str = "0" * 32) -> Stream:
    stream = await connection.open_stream()
    frame = encode_frame({"name": name, "size": size, "id": content_id})
    await stream.write(encode_header("send") + frame)
    parse_reply(await read_frame(stream))
    return stream


async def send_well(connection: Connection, name: str, data: bytes) -> None:
    """What an honest sender does: proof that the node still works."""
    stream = await offer(connection, name, len(data))
    assert parse_reply(await read_frame(stream))["offset"] == 0
    trailer = encode_frame({"sha256": hashlib.sha256(data).hexdigest()})
    await stream.write(data + trailer)
    await stream.finish()
    assert parse_reply(await read_frame(stream))["name"] == name


@pytest.mark.parametrize(
    "name",
    [
        "../escape",
        "../../escape",
        "..",
        ".",
        "",
        "/tmp/anyreach-escape",
        "sub/escape",
        "..\\escape",
        "C:\\escape",
        "nul\0byte",
        "NUL",
        "com1.txt",
        ".bashrc",
        ".x.0000000000000000.part",
        "line\nbreak",
        "\x1b]0;title\x07",
        "gpj.\u202eexe",
        "x" * 256,
        "\ud800",
    ],
    ids=lambda name: ascii(name)[:30],
)
async def test_names_that_leave_the_folder(
    connection: Connection, tmp_path: Path, name: str
) -> None:
    before = files(tmp_path)
    stream = await offer(connection, name, 3)
    with pytest.raises(TransferError) as caught:
        parse_reply(await read_frame(stream))
    assert caught.value.code is TransferErrorCode.BAD_NAME
    assert files(tmp_path) == before
    await send_well(connection, "good.txt", b"good")
    assert (tmp_path / "inbox" / "good.txt").read_bytes() == b"good"


async def test_links_in_the_folder_are_not_followed(connection: Connection, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "inbox" / "link").symlink_to(victim)
    (tmp_path / "inbox" / f".trap.{'0' * 16}.part").symlink_to(victim)
    stream = await offer(connection, "trap", 4)
    with pytest.raises(TransferError):
        parse_reply(await read_frame(stream))
    stream = await offer(connection, "link", 4, "1" * 32)
    assert parse_reply(await read_frame(stream))["offset"] == 0
    await stream.write(b"evil" + encode_frame({"sha256": hashlib.sha256(b"evil").hexdigest()}))
    assert parse_reply(await read_frame(stream))["name"] == "link (1)"
    assert victim.read_text() == "precious"


async def test_damaged_data_is_refused_and_removed(connection: Connection, tmp_path: Path) -> None:
    stream = await offer(connection, "x.bin", 3)
    await read_frame(stream)
    await stream.write(b"abc" + encode_frame({"sha256": hashlib.sha256(b"abd").hexdigest()}))
    with pytest.raises(TransferError) as caught:
        parse_reply(await read_frame(stream))
    assert caught.value.code is TransferErrorCode.HASH_MISMATCH
    assert list((tmp_path / "inbox").iterdir()) == []


async def test_the_prefix_of_another_file_does_not_resume(
    connection: Connection, tmp_path: Path
) -> None:
    first = await offer(connection, "x.bin", 10)
    await read_frame(first)
    await first.write(b"abcde")
    await first.finish()
    with pytest.raises((StreamReset, EOFError)):
        await read_frame(first)
    second = await offer(connection, "x.bin", 10)
    assert parse_reply(await read_frame(second))["offset"] == 5
    await second.write(encode_frame({"prefix_sha256": "0" * 64}))
    assert parse_reply(await read_frame(second))["offset"] == 0
    data = b"0123456789"
    await second.write(data + encode_frame({"sha256": hashlib.sha256(data).hexdigest()}))
    parse_reply(await read_frame(second))
    assert (tmp_path / "inbox" / "x.bin").read_bytes() == data


@pytest.mark.parametrize(
    ("first_bytes", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", BAD_HEADER),
        (b"\0" * 64, BAD_HEADER),
        (MAGIC + b"\x02\0\x02{}", BAD_VERSION),
        (MAGIC + b"\x01\0\0", BAD_HEADER),
        (MAGIC + b"\x01\xff\xff" + b"x" * 200, BAD_HEADER),
        (MAGIC + b"\x01\0\x02[]", BAD_HEADER),
        (MAGIC + b"\x01\0\x02{}", BAD_HEADER),
        (MAGIC + b"\x01\0\x04\xff\xff\xff\xff", BAD_HEADER),
        (MAGIC + b"\x01\x0f\xa0" + b"[" * 4000, BAD_HEADER),
        (MAGIC + b"\x01" + encode_frame({"service": "../ping"}), BAD_HEADER),
        (MAGIC + b"\x01" + encode_frame({"service": 7}), BAD_HEADER),
    ],
    ids=[
        "http",
        "zeros",
        "next version",
        "empty frame",
        "long frame",
        "no object",
        "no service",
        "no text",
        "deep",
        "bad service name",
        "number as service",
    ],
)
async def test_streams_without_a_good_header(
    connection: Connection, first_bytes: bytes, code: int
) -> None:
    stream = await connection.open_stream()
    await stream.write(first_bytes)
    with pytest.raises(StreamReset) as caught:
        await stream.read()
    assert caught.value.code == code
    await send_well(connection, "good.txt", b"good")


@pytest.mark.parametrize(
    "first_bytes", [b"", b"a", MAGIC, MAGIC + b"\x01", MAGIC + b"\x01\0\x40half"]
)
async def test_streams_that_end_in_the_header(connection: Connection, first_bytes: bytes) -> None:
    stream = await connection.open_stream()
    await stream.write(first_bytes)
    await stream.finish()
    with pytest.raises(StreamReset):
        await stream.read()


async def test_one_way_streams_are_stopped(connection: Connection) -> None:
    stream = await connection.open_stream(bidirectional=False)

    async def write_on() -> None:
        while True:
            await stream.write(bytes(10_000))

    with pytest.raises(StreamReset) as caught:
        await write_on()
    assert caught.value.code == BAD_HEADER


async def test_an_unknown_service_is_refused_by_name(connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.write(encode_header("netcheck", depth=3))
    with pytest.raises(TransferError) as caught:
        parse_reply(await read_frame(stream))
    assert caught.value.code is TransferErrorCode.UNSUPPORTED
    assert "netcheck" in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {"direction": "sideways", "ms": 1000},
        {"direction": "up", "ms": 0},
        {"direction": "up", "ms": 10**12},
        {"direction": "up", "ms": "1000"},
        {"direction": "down", "ms": 1000, "datagrams": True, "size": 10**6},
        {"direction": "down", "ms": 1000, "datagrams": "yes"},
        {},
    ],
    ids=json.dumps,
)
async def test_bench_parameters_are_checked(
    connection: Connection, body: dict[str, object]
) -> None:
    stream = await connection.open_stream()
    await stream.write(encode_header("bench", **body))
    with pytest.raises(TransferError) as caught:
        parse_reply(await read_frame(stream))
    assert caught.value.code is TransferErrorCode.PROTOCOL


async def test_a_bench_stream_of_no_run_is_refused(connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.write(encode_header("bench-data", run=12345))
    with pytest.raises(TransferError):
        parse_reply(await read_frame(stream))


async def test_many_idle_streams_do_not_stop_the_node(
    connection: Connection, node: Program
) -> None:
    idle = []
    for _ in range(90):
        stream = await connection.open_stream()
        await stream.write(MAGIC)
        idle.append(stream)
    await send_well(connection, "good.txt", b"good")
    # Another peer is not concerned at all.
    async with Node(P2pConfig(bind_addr="127.0.0.1:0")) as other:
        theirs = await other.connect(address(node))
        await send_well(theirs, "better.txt", b"better")


async def test_datagrams_of_nobody_are_ignored(connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.write(encode_header("ping"))
    assert parse_reply(await read_frame(stream))["datagrams"] is True
    for junk in (b"", b"\xc0", b"\xff" * 8, bytes(1000), bytes([stream.id]), b"\x3f" * 100):
        connection.send_datagram(junk)
    prefix = bytes([stream.id])
    connection.send_datagram(prefix + b"\x00\x00\x00\x00\x07")
    while True:
        for datagram in await connection.receive_datagrams():
            assert datagram.startswith(prefix)
            assert datagram[1:] == b"\x01\x00\x00\x00\x07"
            return


async def test_nothing_is_left_running(connection: Connection, node: Program) -> None:
    for name in ("a.bin", "b.bin"):
        stream = await offer(connection, name, 10**6, name[0] * 32)
        await read_frame(stream)
        await stream.write(bytes(1000))
    connection.close()
    for _ in range(2):
        assert node.wait_for("interrupted")["bytes"] == 0
    node.stop()
    assert "Traceback" not in node.stderr


async def test_peers_that_offer_nothing_are_noticed(
    start: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that uses the library for something else never answers a service header."""
    monkeypatch.setattr(session, "_SERVICE_SECONDS", 0.2)
    async with Node(P2pConfig(bind_addr="127.0.0.1:0")) as silent, asyncio.timeout(PATIENCE):
        async with Node(P2pConfig(bind_addr="127.0.0.1:0")) as asking:
            connection = await asking.connect(silent.ticket())
            with pytest.raises(TransferError) as caught:
                await session.open_service(connection, "ping")
            assert caught.value.code is TransferErrorCode.UNSUPPORTED
        # The clients of the command line say so at once.
        client = start("connect", str(silent.ticket()), "--hold", "60", "--ephemeral")
        await asyncio.to_thread(client.wait_for, "connected")
        async for connection in silent.incoming():
            if str(connection.peer_id) == client.events[0]["peer_id"]:
                break
        with pytest.raises(TransferError, match="no 'bench' service here"):
            await session.open_service(connection, "bench", direction="up", ms=1)
