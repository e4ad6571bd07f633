"""When a connection ends, when it must not, and how soon the other side learns it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from . import agent, nodes

if TYPE_CHECKING:
    from .lab import Lab

_IDLE = 2.0  # seconds; short, so that its end can be awaited
_AT_ONCE = 5.0  # seconds; a bound on liveness, far below the default idle timeout of 50 s


@pytest.mark.parametrize("version", [4, 6])
def test_a_killed_peer_is_noticed_by_the_idle_timeout(lab: Lab, version: int) -> None:
    host = lab.host("b")
    b = nodes.start(host)
    config = f"idle_timeout = {_IDLE}\nkeep_alive_interval = 0.5\n"
    a = nodes.start(lab.host("a"), "--known-peer", b.at(version), config=config)
    a.process.wait_event("connected", lambda e: e["peer_id"] == b.peer_id)
    # The kernel of a killed program answers packets with "port unreachable". Only a machine
    # that vanishes as a whole is silent, so its line goes as well.
    b.process.kill()
    host.line.unplug()
    gone = a.process.wait_event("disconnected", lambda e: e["peer_id"] == b.peer_id)
    assert gone["reason"] == "timeout"


def test_a_killed_process_on_a_living_host_is_noticed_no_later(lab: Lab) -> None:
    b = nodes.start(lab.host("b"))
    config = f"idle_timeout = {_IDLE}\nkeep_alive_interval = 0.5\n"
    a = nodes.start(lab.host("a"), "--known-peer", b.at(4), config=config)
    a.process.wait_event("connected")
    b.process.kill()
    a.process.wait_event("disconnected", lambda e: e["peer_id"] == b.peer_id)


@pytest.mark.parametrize("role", ["dialer", "acceptor"])
def test_a_clean_end_is_noticed_at_once(lab: Lab, role: str) -> None:
    b = nodes.start(lab.host("b"))
    a = nodes.start(lab.host("a"), "--known-peer", b.at(6))
    a.process.wait_event("connected")
    b.process.wait_event("connected")
    ending, other = (a, b) if role == "dialer" else (b, a)
    ending.process.terminate()
    gone = other.process.wait_event(
        "disconnected", lambda e: e["peer_id"] == ending.peer_id, timeout=_AT_ONCE
    )
    assert gone["reason"] == "closed"
    assert ending.process.wait() == 0


def test_a_known_peer_that_comes_back_is_connected_again(lab: Lab) -> None:
    host = lab.host("b")
    identity = ["--identity", str(host.home / "key")]
    first = nodes.start(host, *identity, ephemeral=False)
    a = nodes.start(lab.host("a"), "--known-peer", first.at(4))
    a.process.wait_event("connected")
    first.process.terminate()
    assert first.process.wait() == 0
    a.process.wait_event("disconnected")
    seen = len(a.process.events)
    second = nodes.start(host, *identity, ephemeral=False)
    assert second.peer_id == first.peer_id
    a.process.wait_event("connected", lambda e: e["peer_id"] == first.peer_id, since=seen)


def test_keep_alives_hold_an_idle_connection_beyond_the_idle_timeout(lab: Lab) -> None:
    a, b = agent.pair(lab, 4, idle_timeout=_IDLE, keep_alive_interval=0.5)
    time.sleep(2.5 * _IDLE)  # being idle for that long is what is tested
    assert a.lost() == b.lost() == []
    a.transfer(100_000)


def test_without_keep_alives_an_idle_connection_ends(lab: Lab) -> None:
    a, b = agent.pair(lab, 4, idle_timeout=_IDLE, keep_alive_interval=0)
    for end in (a, b):
        assert end.process.wait_event("lost")["reason"] == "timeout"


def test_the_shorter_idle_timeout_of_both_ends_counts(lab: Lab) -> None:
    a = agent.Agent(lab.host("a"), idle_timeout=60, keep_alive_interval=0)
    b = agent.Agent(lab.host("b"), idle_timeout=_IDLE, keep_alive_interval=0)
    a.connect(b, 6)
    assert a.process.wait_event("lost")["reason"] == "timeout"


def test_an_outage_longer_than_the_idle_timeout_ends_the_connection_on_both_sides(
    lab: Lab,
) -> None:
    a, b = agent.pair(lab, 4, idle_timeout=_IDLE, keep_alive_interval=0.5)
    b.host.line.unplug()
    for end in (a, b):
        assert end.process.wait_event("lost")["reason"] == "timeout"


def test_two_nodes_that_dial_each_other_over_both_families_end_with_one_connection(
    lab: Lab,
) -> None:
    a, b = lab.host("a"), lab.host("b")
    launched = [
        nodes.launch(near, "--known-peer", nodes.endpoint(far.address(version)))
        for near, far, version in ((a, b, 4), (b, a, 6))
    ]
    both = [ready() for ready in launched]
    for node in both:
        node.process.wait_event("known_peer", lambda e: e["state"] == "connected")
    _settles_on_one_connection(both[0], both[1])


def _settles_on_one_connection(a: nodes.Node, b: nodes.Node) -> None:
    """Wait until both ends count one live connection, and it carries data."""

    def live(node: nodes.Node) -> int:
        return len(node.process.named("connected")) - len(node.process.named("disconnected"))

    deadline = time.monotonic() + 20
    while live(a) != 1 or live(b) != 1:
        assert time.monotonic() < deadline, f"{a.process.events}\n{b.process.events}"
        time.sleep(0.05)
    pinged = nodes.run(a.host, "ping", b.at(4), "-c", "3", "-i", "0.1")
    assert pinged.code == 0
    assert len([event for event in pinged.events if event["event"] == "pong"]) == 3
    assert {event["reason"] for event in a.process.named("disconnected")} <= {"closed", "replaced"}
