"""``--metrics``: a Prometheus endpoint that bears junk."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from anyreach.cli.metrics_server import serve_metrics

from .program import PATIENCE, Program, eventually

if TYPE_CHECKING:
    from collections.abc import Callable


async def ask(port: int, request: bytes) -> tuple[str, bytes]:
    """Status line and body of the answer."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body


async def test_a_node_serves_its_metrics(start: Callable[..., Program]) -> None:
    node = start("node", "--bind", "127.0.0.1:0", "--ephemeral", "--metrics", "127.0.0.1:0")
    node.wait_for("ready")
    eventually(lambda: "/metrics" in node.stderr, "the address is said")
    match = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", node.stderr)
    assert match
    port = int(match[1])
    status, body = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert b"anyreach_connections" in body
    node.stop()


async def test_what_a_relay_carries_is_served(start: Callable[..., Program]) -> None:
    local = ("--bind", "127.0.0.1:0", "--ephemeral")
    hub = start("node", *local, "--metrics", "127.0.0.1:0", "--relay-allow", "127.0.0.0/8")
    ready = hub.wait_for("ready")
    known = ("--known-peer", f"{ready['peer_id']}@{ready['udp'][0]}", "--no-direct")
    node = start("node", *local, *known)
    peer = node.wait_for("ready")["peer_id"]
    node.wait_for("relay", state="reserved")
    ping = start("ping", peer, "-c", "3", "-i", "0.05", *local, *known)
    events = await asyncio.to_thread(ping.finish)
    pongs = [event for event in events if event["event"] == "pong"]
    assert len(pongs) == 3
    assert {(pong["method"], pong["relay"]) for pong in pongs} == {("relayed", ready["peer_id"])}
    eventually(lambda: "/metrics" in hub.stderr, "the address is said")
    match = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", hub.stderr)
    assert match
    _, body = await ask(int(match[1]), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    counted = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if line[0] != "#")
    for direction in ("sent", "received"):
        series = f'anyreach_relay_bytes_total{{role="relay",direction="{direction}"}}'
        assert int(counted[series]) > 1000
    assert int(counted["anyreach_relay_sessions"]) >= 1
    for program in (node, hub):
        await asyncio.to_thread(program.stop)


async def test_a_taken_port_is_an_error(start: Callable[..., Program]) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    node = start("node", "--bind", "127.0.0.1:0", "--ephemeral", "--metrics", f"127.0.0.1:{port}")
    await asyncio.to_thread(node.finish, 1)
    assert str(port) in node.stderr
    server.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics HTTP/1.0\r\n\r\n", "200"),
        (b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", "200"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200"),
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"nonsense\r\n\r\n", "400"),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", "400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", "400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", "431"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_requests(request_bytes: bytes, status: str) -> None:
    async with serve_metrics("127.0.0.1", 0, lambda: "metric 1\n", "text/plain") as (_, port):
        line, body = await ask(port, request_bytes)
        assert line.startswith(f"HTTP/1.1 {status} ")
        if status == "200":
            assert body == (b"" if request_bytes.startswith(b"HEAD") else b"metric 1\n")


async def test_clients_that_hang_are_bounded_and_do_not_stop_the_end() -> None:
    async with serve_metrics("127.0.0.1", 0, lambda: "metric 1\n", "text/plain") as (_, port):
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(16)]
        for _, writer in clients:
            writer.write(b"GET ")
            await writer.drain()
        async with asyncio.timeout(PATIENCE):
            reader, extra = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
    for _, writer in [*clients, (None, extra)]:
        writer.close()
