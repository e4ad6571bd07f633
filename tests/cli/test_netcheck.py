"""``anyreach netcheck`` on one machine: names of its lines, exit codes, what people read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyreach import PeerId

from .program import Program, port_of, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HERE = ("--bind", "127.0.0.1:0", "--ephemeral")


def known(node: Program) -> str:
    """The node as a known peer, over IPv4."""
    ready = node.events[0]
    return f"{ready['peer_id']}@127.0.0.1:{port_of(ready)}"


def test_the_report_has_the_documented_names(start: Callable[..., Program], node: Program) -> None:
    *_, report = start("netcheck", *HERE, "--known-peer", known(node)).finish()
    assert list(report) == [
        "event",
        "peer_id",
        "ip_mode",
        "interfaces",
        "families",
        "udp",
        "nat",
        "port_mapping",
        "peers",
        "outlook",
        "seconds",
        "text",
    ]
    assert report["event"] == "netcheck"
    assert report["udp"] == "works"
    assert report["nat"]["mapping"] == "none"
    (peer,) = report["peers"]
    assert peer["peer_id"] == node.events[0]["peer_id"]
    assert (peer["known"], peer["connected"], peer["method"]) == (True, True, "direct")
    checks: dict[str, Any] = {check["carrier"]: check for check in peer["carriers"]}
    assert checks["h3"]["ok"]
    assert checks["h2"]["ok"]
    assert {entry["peers"] for entry in report["outlook"]} >= {"open", "random", "udp-blocked"}


def test_a_peer_is_explained(start: Callable[..., Program], node: Program) -> None:
    events = start("netcheck", known(node), *HERE).finish()
    names = [event["event"] for event in events]
    assert names[0] == "netcheck"
    assert names[-1] == "explanation"
    told = events[-1]
    assert told["peer_id"] == node.events[0]["peer_id"]
    assert told["method"] == "direct"
    assert told["helps"] == []
    assert {"own_nat", "peer_nat", "plan", "why", "candidates", "attempts"} <= set(told)


def test_without_peers_it_says_what_it_can(start: Callable[..., Program]) -> None:
    program = start("netcheck", *HERE)
    (report,) = program.finish()
    assert report["udp"] == "unknown"
    assert report["peers"] == []
    assert "without known peers" in program.stderr


def test_nobody_there_is_a_failure(start: Callable[..., Program]) -> None:
    program = start("netcheck", *HERE, "--known-peer", "127.0.0.1:9", "--timeout", "2")
    *_, report = program.finish(expected=1)
    assert report["event"] == "netcheck"
    assert not report["peers"][0]["connected"]
    assert "no known peer was reached" in program.stderr
    stranger = str(PeerId(bytes(32)))
    *_, error = start("netcheck", stranger, *HERE).finish(expected=1)
    assert error["event"] == "error"
    assert error["kind"] == "ConnectError"


def test_people_get_sentences(node: Program, tmp_path: Path) -> None:
    told = run("netcheck", known(node), *HERE, "--known-peer", known(node), home=tmp_path).stdout
    for words in (
        "UDP          gets out",
        "HTTP/3 over UDP: works",
        "connections from here will be",
    ):
        assert words in told
    assert "is direct, at 127.0.0.1:" in told
