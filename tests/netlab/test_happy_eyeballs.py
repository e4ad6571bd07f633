"""Several addresses of which some are dead: the live one is found, soon (RFC 8305)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import nodes

if TYPE_CHECKING:
    from .lab import Lab
    from .process import Event
    from .topology import Host

_SOON_MS = 2_000
"""One attempt delay is 250 ms. A bound on liveness, far below any handshake timeout."""

_SOURCE = """
import sys
from anyreach.addresses import HostPort
from anyreach.peer import PeerId, Ticket
print(Ticket(PeerId.parse(sys.argv[1]), tuple(map(HostPort.parse_peer, sys.argv[2:]))))
"""


def _ticket(host: Host, peer_id: str, *addresses: str) -> str:
    done = host.python("-c", _SOURCE, peer_id, *addresses)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _dialled(result: Event) -> list[Event]:
    """The attempts to dial an address. Asking the same peer by TCP to relay to itself is none."""
    return [attempt for attempt in result["attempts"] if attempt["method"] == "direct"]


@pytest.mark.parametrize("dead", [4, 6])
def test_a_name_with_one_dead_family(lab: Lab, dead: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    node = nodes.start(b)
    live = 10 - dead
    a.resolve({"b.example": [b.address(dead), b.address(live)]})
    lab.internet.black_hole(b.address(dead))

    outcome = nodes.run(a, "connect", f"{node.peer_id}@b.example:{nodes.PORT}")
    result = outcome.last("result")
    assert outcome.code == 0
    assert result["remote"] == nodes.endpoint(b.address(live))
    assert result["ms"] < _SOON_MS
    if dead == 6:
        assert result["ms"] > 200, "IPv6 goes first (RFC 8305 4), so this was no dead address"


@pytest.mark.parametrize("dead", [4, 6])
def test_a_nodes_own_ticket_with_one_dead_family(lab: Lab, dead: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    node = nodes.start(b)
    lab.internet.black_hole(b.address(dead))

    outcome = nodes.run(a, "connect", node.ticket)
    result = outcome.last("result")
    assert outcome.code == 0
    assert result["remote"] == nodes.endpoint(b.address(10 - dead))
    assert result["ms"] < _SOON_MS


def test_a_ticket_of_four_dead_addresses_and_a_live_one(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    node = nodes.start(b)
    dead = [lab.host(f"dead{number}") for number in range(2)]
    addresses = [host.address(version) for host in dead for version in (6, 4)]
    lab.internet.black_hole(*addresses)
    ticket = _ticket(a, node.peer_id, *map(nodes.endpoint, addresses), nodes.endpoint(b.address(4)))

    outcome = nodes.run(a, "connect", ticket)
    result = outcome.last("result")
    assert outcome.code == 0
    assert result["remote"] == nodes.endpoint(b.address(4))
    assert result["ms"] < 4 * 250 + _SOON_MS


@pytest.mark.parametrize("bad", [4, 6])
def test_an_address_that_gives_ehostunreach_does_not_hurt_the_good_one(lab: Lab, bad: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    node = nodes.start(b)
    a.unreachable(b.address(bad))

    outcome = nodes.run(a, "connect", node.ticket)
    result = outcome.last("result")
    assert outcome.code == 0
    assert result["remote"] == nodes.endpoint(b.address(10 - bad))
    assert result["ms"] < _SOON_MS


@pytest.mark.parametrize("family", [4, 6])
def test_an_address_without_a_route_fails_at_once_and_says_so(lab: Lab, family: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    node = nodes.start(b)
    a.unreachable(b.address(family))

    target = nodes.endpoint(b.address(family))
    outcome = nodes.run(a, "connect", f"{node.peer_id}@{target}")
    assert outcome.code == 1
    (attempt,) = _dialled(outcome.last("result"))
    assert attempt["reason"] == "unreachable"
    assert attempt["ms"] < _SOON_MS


def test_two_live_addresses_make_one_connection(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    node = nodes.start(b)
    outcome = nodes.run(a, "connect", node.ticket, "--hold", "1")
    assert outcome.code == 0
    node.process.wait_event("disconnected")
    assert len(node.process.named("connected")) == 1


def test_when_all_addresses_are_dead_every_attempt_is_listed(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    node = nodes.start(b)
    addresses = [b.address(6), b.address(4)]
    lab.internet.black_hole(*addresses)

    outcome = nodes.run(
        a,
        "connect",
        _ticket(a, node.peer_id, *map(nodes.endpoint, addresses)),
        "--timeout",
        "2",
    )
    result = outcome.last("result")
    assert outcome.code == 1
    attempts = _dialled(result)
    assert {x["address"] for x in attempts} == set(map(nodes.endpoint, addresses))
    assert all(x["reason"] == "handshake-timeout" for x in attempts)


@pytest.mark.parametrize("version", [4, 6])
def test_a_port_nobody_listens_on_fails_within_the_timeout(lab: Lab, version: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    closed = nodes.endpoint(b.address(version), 9999)
    outcome = nodes.run(a, "connect", f"{nodes.start(b).peer_id}@{closed}", "--timeout", "2")
    assert outcome.code == 1
    (attempt,) = _dialled(outcome.last("result"))
    assert attempt["address"] == closed
    assert attempt["reason"] in {"handshake-timeout", "refused", "unreachable"}
