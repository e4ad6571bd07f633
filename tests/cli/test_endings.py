"""How the program ends: exit codes, signals, messages that say what to do."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from .program import PATIENCE, Program, environment, port_of, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOMEBODY = "a" * 52


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("node", "--nonsense"),
        ("node", "--tcp", "on"),
        ("node", "--tcp", "127.0.0.1:0", "--ip-mode", "v6"),
        ("node", "--https", "127.0.0.1:0"),
        ("node", "--cert", "cert.pem", "--key", "key.pem"),
        ("node", "--https", "127.0.0.1:0", "--cert", "cert.pem"),
        ("node", "--relay-quota", "fast"),
        ("node", "--relay-allow", "10.0.0.1/8"),
        ("node", "--no-direct", "--no-relay-fallback"),
        ("connect", SOMEBODY, "--proxy", "socks5://127.0.0.1:1080"),
        ("connect",),
        ("connect", "not-a-peer"),
        ("connect", f"{SOMEBODY}@127.0.0.1"),
        ("connect", f"{SOMEBODY}@127.0.0.1:99999"),
        ("connect", "anyr1damaged"),
        ("connect", f"{SOMEBODY}@127.0.0.1:9", "--timeout", "never"),
        ("connect", f"{SOMEBODY}@127.0.0.1:9", "--timeout", "-1"),
        ("ping", SOMEBODY, "-c", "0"),
        ("ping", SOMEBODY, "-i", "nan"),
        ("bench", SOMEBODY, "--streams", "1000"),
        ("send", SOMEBODY),
        ("send", SOMEBODY, "x", "--limit-rate", "fast"),
        ("node", "--bind", "nowhere"),
        ("node", "--bind", "127.0.0.1:0", "--ip-mode", "v6"),
        ("node", "--ip-mode", "v5"),
        ("node", "--known-peer", "missing-port"),
        ("node", "--identity", "a", "--ephemeral"),
        ("node", "--from", SOMEBODY),
        ("receive", "in", "--from", "nobody"),
        ("id", "--show", "--new"),
        ("node", "--conf", "abbreviated.toml"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, home=tmp_path, expected=2)
    assert done.stderr
    assert not done.stdout


def test_no_message_shows_the_password_of_a_proxy(tmp_path: Path) -> None:
    url = "ftp://me:hunter2@127.0.0.1:3128"
    done = run("connect", SOMEBODY, "--proxy", url, "--json", home=tmp_path, expected=2)
    assert "me:***@127.0.0.1:3128" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "contents",
    [
        b"\xff\xfe\x00garbage",
        b"bind_addr = ",
        b"bind_addr = 7",
        b'bind_adr = "[::]:0"',
        b"known_peers = [1, 2]",
        b'ip_mode = "v5"',
        b"idle_timeout = 'soon'",
        b"tcp = 443",
        b'relay_allow_targets = "everything"',
        b'https = "[::]:443"',
        b"[section]\nx = 1",
    ],
    ids=repr,
)
def test_a_damaged_configuration_is_2_and_says_where(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(contents)
    done = run("node", "--config", path, home=tmp_path, expected=2)
    assert "error:" in done.stderr


def test_options_override_the_configuration(start: Callable[..., Program], tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('bind_addr = "127.0.0.1:1"\nip_mode = "v4"\nidentity = "key.pem"\n')
    node = start("node", "--config", path, "--bind", "127.0.0.1:0")
    ready = node.wait_for("ready")
    assert ready["ip_mode"] == "v4"
    assert port_of(ready) > 1
    assert (tmp_path / "key.pem").exists()
    node.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["node", "receive"])
def test_a_service_told_to_stop_ends_well(
    start: Callable[..., Program], tmp_path: Path, command: str, number: int
) -> None:
    where = (tmp_path / "in",) if command == "receive" else ()
    service = start(command, *where, "--bind", "127.0.0.1:0", "--ephemeral")
    ready = service.wait_for("ready")
    watcher = start("node", "--bind", "127.0.0.1:0", "--ephemeral",
                    "--known-peer", f"127.0.0.1:{port_of(ready)}")  # fmt: skip
    watcher.wait_for("connected")
    service.stop(number, expected=0)
    assert "Traceback" not in service.stderr
    # Its peers learn at once, not after an idle timeout.
    assert watcher.wait_for("disconnected")["reason"] == "closed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_and_its_echo_are_one(start: Callable[..., Program], number: int) -> None:
    service = start("node", "--bind", "127.0.0.1:0", "--ephemeral")
    service.wait_for("ready")
    with contextlib.suppress(ProcessLookupError):
        for _ in range(50):
            service.process.send_signal(number)
            time.sleep(0.002)
    service.finish(expected=0)
    assert "Traceback" not in service.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_client_told_to_stop_says_so(
    node: Program, start: Callable[..., Program], number: int, code: int
) -> None:
    client = start("connect", node.events[0]["ticket"], "--hold", "60", "--ephemeral")
    client.wait_for("connected")
    client.stop(number, expected=code)
    node.wait_for("disconnected", reason="closed")


def test_ping_told_to_stop_sums_up(node: Program, start: Callable[..., Program]) -> None:
    ping = start("ping", node.events[0]["ticket"], "-i", "0.05", "--ephemeral")
    ping.wait_for("pong", seq=3)
    summary = ping.stop(signal.SIGINT, expected=0)[-1]
    assert summary["event"] == "summary"
    assert summary["received"] >= 3


def test_somebody_else_answers(node: Program, start: Callable[..., Program], host: str) -> None:
    where = f"{SOMEBODY}@{host}:{port_of(node.events[0])}"
    connect = start("connect", where, "--ephemeral", "--timeout", "10")
    result = connect.finish(expected=1)[-1]
    assert (result["ok"], result["peer_id"], result["method"]) == (False, SOMEBODY, None)
    assert node.events[0]["peer_id"] in result["error"]
    assert SOMEBODY in result["error"]
    (attempt,) = result["attempts"]
    assert attempt["reason"] == "peer-id-mismatch"
    assert node.events[0]["peer_id"] in connect.stderr
    for command in (("ping",), ("bench",), ("send", __file__)):
        peer = (command[0], where, *command[1:])
        failed = run(*peer, "--ephemeral", home=connect.home, expected=1)
        assert node.events[0]["peer_id"] in failed.stderr


def test_every_command_lists_its_attempts(node: Program, start: Callable[..., Program]) -> None:
    where = f"{SOMEBODY}@127.0.0.1:{port_of(node.events[0])}"
    for command in (("ping", where), ("bench", where), ("send", where, __file__)):
        error = start(*command, "--ephemeral").finish(expected=1)[-1]
        assert (error["event"], error["kind"]) == ("error", "PeerIdMismatch")
        assert [attempt["reason"] for attempt in error["attempts"]] == ["peer-id-mismatch"]


def test_nobody_answers(start: Callable[..., Program], host: str) -> None:
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as silent:
        silent.bind((host.strip("[]"), 0))
        where = f"{SOMEBODY}@{host}:{silent.getsockname()[1]}"
        began = time.monotonic()
        connect = start("connect", where, "--ephemeral", "--timeout", "1")
        result = connect.finish(expected=1)[-1]
        assert time.monotonic() - began < 10
    assert (result["ok"], result["ms_first"], result["ms_direct"]) == (False, None, None)
    attempt, over_tcp = result["attempts"]
    assert set(attempt) >= {"address", "method", "reason", "detail", "ms"}
    assert over_tcp["method"] == "relayed"
    assert over_tcp["reason"] in ("refused", "handshake-timeout")  # the time is short
    assert attempt["address"] == where.partition("@")[2]
    assert attempt["method"] == "direct"
    assert attempt["address"] in connect.stderr


def test_an_unknown_id_without_address(start: Callable[..., Program]) -> None:
    connect = start("connect", SOMEBODY, "--ephemeral", "--timeout", "2")
    result = connect.finish(expected=1)[-1]
    assert result["error"]


def test_dialing_oneself_is_explained(start: Callable[..., Program], tmp_path: Path) -> None:
    key, copy = tmp_path / "key.pem", tmp_path / "copy.pem"
    node = start("node", "--bind", "127.0.0.1:0", "--identity", key)
    ticket = node.wait_for("ready")["ticket"]
    shutil.copy(key, copy)
    connect = start("connect", ticket, "--identity", copy)
    result = connect.finish(expected=1)[-1]
    assert "--ephemeral" in result["error"]
    node.stop()


def test_a_port_in_use(node: Program, tmp_path: Path) -> None:
    port = port_of(node.events[0])
    done = run("node", "--bind", f"127.0.0.1:{port}", "--ephemeral", home=tmp_path, expected=1)
    assert str(port) in done.stderr
    assert "in use" in done.stderr


def test_an_address_of_somebody_else(tmp_path: Path) -> None:
    done = run("node", "--bind", "192.0.2.77:0", "--ephemeral", home=tmp_path, expected=1)
    assert "192.0.2.77" in done.stderr


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_key_others_can_read(tmp_path: Path, mode: int) -> None:
    run("id", "--identity", tmp_path / "key.pem", home=tmp_path)
    (tmp_path / "key.pem").chmod(mode)
    done = run("node", "--identity", tmp_path / "key.pem", home=tmp_path, expected=1)
    assert "chmod 600" in done.stderr


def test_a_damaged_key(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)
    assert str(path) in run("node", "--identity", path, home=tmp_path, expected=1).stderr


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """As in ``anyreach node | head -1``: quiet, and at once even if there is nothing to say."""
    arguments = ("node", "--json", "--bind", "127.0.0.1:0", "--ephemeral")
    with subprocess.Popen(
        [sys.executable, "-m", "anyreach", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


def test_without_standard_output(node: Program, tmp_path: Path) -> None:
    command = f'exec "{sys.executable}" -m anyreach ping "$TICKET" -c 1 --ephemeral >&- 2>&-'
    env = environment(tmp_path, {"TICKET": node.events[0]["ticket"]})
    done = subprocess.run(["sh", "-c", command], env=env, timeout=PATIENCE, check=False)
    assert done.returncode == 0


def test_a_c_locale(node: Program, tmp_path: Path) -> None:
    env = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    path = tmp_path / "日本語.txt"
    path.write_text("text")
    run("send", node.events[0]["ticket"], path, "--ephemeral", "--progress", home=tmp_path, env=env)
    assert node.wait_for("received")["name"] == path.name


def test_key_logging_warns(node: Program, tmp_path: Path) -> None:
    path = tmp_path / "keys.log"
    done = run(
        "connect", node.events[0]["ticket"], "--ephemeral",
        home=tmp_path, env={"SSLKEYLOGFILE": str(path)},
    )  # fmt: skip
    assert "SSLKEYLOGFILE" in done.stderr
    labels = {line.split()[0] for line in path.read_text().splitlines()}
    assert "CLIENT_TRAFFIC_SECRET_0" in labels


def test_colours_on_a_terminal_only_if_wanted(node: Program, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        leader, follower = pty.openpty()
        env = environment(tmp_path, {"TERM": "xterm", **extra})
        process = subprocess.Popen(
            [sys.executable, "-m", "anyreach", "connect", node.events[0]["ticket"], "--ephemeral"],
            stdout=follower,
            stderr=subprocess.DEVNULL,
            env=env,
        )
        os.close(follower)
        shown = b""
        try:
            while chunk := os.read(leader, 4096):
                shown += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(leader)
        assert process.wait(PATIENCE) == 0
        assert (b"\x1b[" in shown) is coloured, shown
