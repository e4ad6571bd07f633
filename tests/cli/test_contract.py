"""Every command over both families, and the names of its JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .program import Program, port_of, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

METHODS = {"direct", "punched", "relayed"}
GROUPS = {"X25519MLKEM768", "MLKEM768"}
NUMBER = (int, float)

CONNECTED: dict[str, Any] = {
    "peer_id": str,
    "direction": str,
    "method": str,
    "remote": str,
    "ms": NUMBER,
    "rtt_ms": NUMBER,
    "group": str,
}


def check(event: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, kind in fields.items():
        assert name in event, (name, event)
        assert isinstance(event[name], kind), (name, event)
        assert kind is bool or not isinstance(event[name], bool), (name, event)


def address(node: Program, host: str) -> str:
    ready = node.events[0]
    return f"{ready['peer_id']}@{host}:{port_of(ready)}"


def test_ready_comes_at_once_and_first(node: Program) -> None:
    ready = node.events[0]
    check(ready, {"peer_id": str, "udp": list, "tcp": list, "ip_mode": str, "ticket": str})
    assert ready["event"] == "ready"
    assert ready["ip_mode"] in ("dual", "v4", "v6")
    assert len(ready["tcp"]) == 1  # for peers whose networks have no UDP
    assert len(ready["peer_id"]) == 52
    assert port_of(ready) > 0


def test_joining_a_known_peer(node: Program, start: Callable[..., Program], host: str) -> None:
    peer_id = node.events[0]["peer_id"]
    at = f"{host}:{port_of(node.events[0])}"
    joiner = start("node", "--bind", "[::]:0", "--ephemeral", "--known-peer", f"{peer_id}@{at}")
    joiner.wait_for("ready")
    connected = node.wait_for("connected")
    check(connected, CONNECTED)
    assert (connected["direction"], connected["method"]) == ("in", "direct")
    assert connected["peer_id"] == joiner.events[0]["peer_id"]
    for name in ("known_peer", "external_address", "connected"):
        if not any(event["event"] == name for event in joiner.events):
            joiner.wait_for(name)
    told = {event["event"]: event for event in joiner.events}
    known = told["known_peer"]
    assert (known["peer_id"], known["address"], known["state"]) == (peer_id, at, "connected")
    assert known["error"] is None
    assert told["connected"]["direction"] == "out"
    external = told["external_address"]
    check(external, {"address": str, "observers": int})
    assert external["address"] == f"{host}:{port_of(joiner.events[0])}"
    joiner.stop()
    gone = node.wait_for("disconnected")
    assert gone["peer_id"] == connected["peer_id"]
    assert isinstance(gone["reason"], str)


def test_a_known_peer_that_is_not_there(start: Callable[..., Program], tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('bind_addr = "127.0.0.1:0"\nhandshake_timeout = 0.5\n')
    lonely = start("node", "--ephemeral", "--known-peer", "127.0.0.1:9", "--config", config)
    failed = lonely.wait_for("known_peer")
    assert failed["state"] == "failed"
    assert failed["error"]
    lonely.stop()


def test_connect(node: Program, start: Callable[..., Program], host: str) -> None:
    events = start("connect", address(node, host), "--ephemeral", "--timeout", "10").finish()
    assert next(e["event"] for e in events) == "ready"
    check(next(e for e in events if e["event"] == "connected"), CONNECTED)
    result = events[-1]
    assert result["event"] == "result"
    assert result["ok"] is True
    check(result, {"peer_id": str, "method": str, "remote": str, "group": str, "attempts": list})
    check(result, dict.fromkeys(("ms", "ms_first", "ms_direct", "rtt_ms"), NUMBER))
    assert result["error"] is None
    assert result["peer_id"] == node.events[0]["peer_id"]
    assert result["method"] == "direct"
    assert result["remote"] == address(node, host).partition("@")[2]
    assert result["group"] in GROUPS
    (attempt,) = result["attempts"]
    check(attempt, {"address": str, "method": str, "reason": str, "detail": str, "ms": NUMBER})
    assert (attempt["address"], attempt["reason"]) == (result["remote"], "ok")
    assert 0 < result["ms_first"] <= result["ms"] < 10_000


@pytest.mark.parametrize("form", ["ticket", "address only"])
def test_other_ways_to_name_a_peer(node: Program, start: Callable[..., Program], form: str) -> None:
    ready = node.events[0]
    peer = ready["ticket"] if form == "ticket" else f"127.0.0.1:{port_of(ready)}"
    events = start("connect", peer, "--ephemeral", "--require", "direct", "--hold", "0.2").finish()
    assert events[-1]["ok"] is True
    assert events[-1]["peer_id"] == ready["peer_id"]


def test_ping(node: Program, start: Callable[..., Program], host: str) -> None:
    events = start("ping", address(node, host), "--ephemeral", "-c", "5", "-i", "0.05").finish()
    pongs = [e for e in events if e["event"] == "pong"]
    assert [p["seq"] for p in pongs] == [1, 2, 3, 4, 5]
    for pong in pongs:
        check(pong, {"seq": int, "rtt_ms": NUMBER, "method": str, "remote": str})
        assert pong["method"] in METHODS
    summary = events[-1]
    assert summary["event"] == "summary"
    assert (summary["sent"], summary["received"], summary["lost"]) == (5, 5, 0)
    check(summary, dict.fromkeys(("min_ms", "avg_ms", "p50_ms", "max_ms"), NUMBER))
    assert summary["min_ms"] <= summary["p50_ms"] <= summary["max_ms"]


@pytest.mark.parametrize(
    "options",
    [(), ("--reverse",), ("--streams", "4"), ("--streams", "3", "--reverse")],
    ids=lambda options: " ".join(options) or "plain",
)
def test_bench_streams(
    node: Program, start: Callable[..., Program], host: str, options: tuple[str, ...]
) -> None:
    where = address(node, host)
    bench = start("bench", where, "--ephemeral", "--seconds", "0.5", *options).finish()[-1]
    assert bench["event"] == "bench"
    check(bench, {"mb_per_s": NUMBER, "cpu_s_per_gb": NUMBER, "method": str})
    assert bench["datagrams_per_s"] is None
    assert bench["mb_per_s"] > 1
    assert bench["direction"] == ("down" if "--reverse" in options else "up")


@pytest.mark.parametrize("options", [(), ("--reverse",)], ids=["up", "down"])
def test_bench_datagrams(
    node: Program, start: Callable[..., Program], options: tuple[str, ...]
) -> None:
    where = address(node, "127.0.0.1")
    arguments = ("--ephemeral", "--datagrams", "--seconds", "0.5", *options)
    bench = start("bench", where, *arguments).finish()[-1]
    check(bench, {"mb_per_s": NUMBER, "datagrams_per_s": NUMBER, "cpu_s_per_gb": NUMBER})
    assert bench["datagrams_per_s"] > 100


def test_send_and_receive(start: Callable[..., Program], host: str, tmp_path: Path) -> None:
    receiver = start("receive", tmp_path / "in", "--ephemeral", "--bind", "[::]:0")
    receiver.wait_for("ready")
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(range(256)) * 20_000)
    events = start("send", address(receiver, host), path, "--ephemeral").finish()
    sent = events[-1]
    assert sent["event"] == "sent"
    assert (sent["files"], sent["bytes"], sent["method"]) == (1, path.stat().st_size, "direct")
    assert sent["mb_per_s"] > 0
    received = receiver.wait_for("received")
    assert received["name"] == "file.bin"
    assert received["bytes"] == path.stat().st_size
    assert received["sha256"] == next(e for e in events if e["event"] == "file_sent")["sha256"]
    assert (tmp_path / "in" / "file.bin").read_bytes() == path.read_bytes()
    receiver.stop()


def test_id(start: Callable[..., Program], tmp_path: Path) -> None:
    (first,) = start("id").finish()
    assert first["event"] == "id"
    (again,) = start("id", "--show").finish()
    assert again["peer_id"] == first["peer_id"]
    (fresh,) = start("id", "--new").finish()
    assert fresh["peer_id"] != first["peer_id"]
    kept = f"{fresh['file']}.old-1"
    (old,) = start("id", "--identity", kept).finish()
    assert old["peer_id"] == first["peer_id"]
    (other,) = start("id", "--identity", tmp_path / "other.pem").finish()
    assert other["peer_id"] not in (first["peer_id"], fresh["peer_id"])


def test_the_identity_is_kept_and_used(start: Callable[..., Program]) -> None:
    (shown,) = start("id").finish()
    node = start("node", "--bind", "127.0.0.1:0")
    assert node.wait_for("ready")["peer_id"] == shown["peer_id"]
    node.stop()


def test_people_get_sentences(node: Program, tmp_path: Path) -> None:
    where = address(node, "127.0.0.1")
    connect = run("connect", where, "--ephemeral", home=tmp_path)
    assert "direct" in connect.stdout
    assert "X25519MLKEM768" in connect.stdout
    assert "{" not in connect.stdout
    assert "\x1b" not in connect.stdout  # no colours where there is no terminal
    ping = run("ping", where, "-c", "2", "-i", "0.05", "--ephemeral", home=tmp_path)
    assert "2 sent, 2 received, 0 lost" in ping.stdout
    bench = run("bench", where, "--seconds", "0.2", "--ephemeral", home=tmp_path)
    assert "MB/s" in bench.stdout
    assert run("--version", home=tmp_path).stdout.startswith("anyreach ")
    assert "receive" in run("--help", home=tmp_path).stdout
