"""Relayed connections in bad times: relays die, lines fail, large packets vanish, spies look."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from . import kinds, nodes
from .agent import Agent
from .capture import capture
from .world import World, pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from .kinds import SiteKind
    from .lab import Lab
    from .machine import Machine
    from .process import Event
    from .sites import Site
    from .traffic import Traffic


_FILE_SIZE: Final = 5_000_000
_BULK: Final = 40_000_000
"""Bytes; takes long enough that something can happen meanwhile."""
_OUTAGE: Final = 2.0
"""Seconds; the length of the outage is what is tested."""
_COMMAND: Final = 60.0
"""Seconds; a bound on liveness."""


def _agents(world: World, *sites: Site) -> list[Agent[Machine]]:
    """Connected nodes at two sites that have an address at every relay."""
    agents: list[Agent[Machine]] = [
        Agent(site.host, known_peers=world.known_peers(site)) for site in sites
    ]
    for agent, relay in itertools.product(agents, world.relays):
        agent.process.wait_event("relay", partial(_reserved_at, relay.node.peer_id), timeout=30)
    agents[0].connect_by_id(agents[1])
    return agents


def _reserved_at(peer_id: str, event: Event) -> bool:
    return bool(event["peer_id"] == peer_id and event["state"] == "reserved")


def _until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


@pytest.mark.usefixtures("netlab")
@pytest.mark.parametrize("dead", ["killed", "vanished"])
@pytest.mark.parametrize("kind", [kinds.SYMMETRIC_RANDOM, kinds.TCP_443_ONLY], ids=str)
def test_the_transfer_goes_on_when_the_relay_that_carries_it_dies(
    kind: SiteKind, dead: str
) -> None:
    with pair(kinds.SYMMETRIC_RANDOM, kind, relays=2) as (world, near, far):
        a, b = _agents(world, near, far)
        before = world.counters.read()

        def carried() -> list[int]:
            traffic: Traffic = world.counters.read() - before
            return [traffic.sent(relay.host, far).bytes for relay in world.relays]

        finished = a.start_transfer(_BULK)
        _until(lambda: max(carried()) > _FILE_SIZE)
        first, second = carried()
        relay, spare = world.relays if first > second else world.relays[::-1]
        if dead == "killed":
            relay.node.process.kill()
        else:
            relay.host.line.unplug()
        finished(timeout=_COMMAND)
        assert not a.process.named("lost"), "a new connection, not the old one"
        assert not b.process.named("lost")
        traffic = world.counters.read() - before
        assert traffic.sent(spare.host, far).bytes > _FILE_SIZE
        assert traffic.between(near, far).bytes < _FILE_SIZE / 10


@pytest.mark.usefixtures("netlab")
@pytest.mark.parametrize("whose", ["near", "far", "relay"])
@pytest.mark.parametrize("kind", [kinds.SYMMETRIC_RANDOM, kinds.UDP_BLOCKED], ids=str)
def test_a_relayed_transfer_survives_two_seconds_without_a_line(kind: SiteKind, whose: str) -> None:
    with pair(kinds.SYMMETRIC_RANDOM, kind) as (world, near, far):
        a, b = _agents(world, near, far)
        before = world.counters.read()
        finished = a.start_transfer(_BULK)
        relay = world.relays[0].host
        _until(lambda: (world.counters.read() - before).sent(relay, far).bytes > _FILE_SIZE)
        line = {"near": near.line, "far": far.line, "relay": relay.line}[whose]
        line.unplug()
        time.sleep(_OUTAGE)
        assert not a.process.named("transferred"), "the line was not down"
        line.plug()
        finished(timeout=_COMMAND)
        assert not a.process.named("lost")
        assert not b.process.named("lost")


@pytest.mark.usefixtures("netlab")
@pytest.mark.parametrize("size", [1300, 1400])
@pytest.mark.parametrize("whose", ["near", "far", "relay"])
@pytest.mark.parametrize(
    "kind", [kinds.SYMMETRIC_RANDOM, kinds.TCP_443_ONLY, kinds.V6_FIREWALLED], ids=str
)
def test_a_line_that_drops_large_packets_carries_relayed_bulk_data(
    kind: SiteKind, whose: str, size: int
) -> None:
    near_kind = kinds.V6_FIREWALLED if kind is kinds.V6_FIREWALLED else kinds.SYMMETRIC_RANDOM
    with pair(near_kind, kind) as (world, near, far):
        line = {"near": near.line, "far": far.line, "relay": world.relays[0].host.line}[whose]
        line.drop_larger_than(size)
        node = world.start_node(far)
        file = nodes.make_file(near.host, "data", _FILE_SIZE)
        sent = world.run(near, "send", node.peer_id, str(file), timeout=_COMMAND)
        assert sent.code == 0, sent.stderr
        assert sent.last("sent")["method"] in {"relayed", "punched"}
        assert nodes.sha256(node.inbox / "data") == nodes.sha256(file)


@pytest.mark.usefixtures("netlab")
@pytest.mark.parametrize(
    "kind", [kinds.SYMMETRIC_RANDOM, kinds.TCP_443_ONLY, kinds.PROXY_ONLY], ids=str
)
def test_the_relay_sees_no_plaintext(kind: SiteKind) -> None:
    marker = b"a sentence that must not be seen on the way. "
    with pair(kinds.SYMMETRIC_RANDOM, kind) as (world, near, far):
        node = world.start_node(far)
        file = near.host.home / "secret"
        file.write_bytes(marker * 20_000)
        relay = world.relays[0].host
        with capture(relay, world.lab.scratch / "relay.pcap") as seen:
            sent = world.run(near, "send", node.peer_id, str(file), timeout=_COMMAND)
        assert sent.code == 0, sent.stderr
        assert sent.last("sent")["method"] == "relayed"
        assert sum(map(len, seen.packets())) > 2 * file.stat().st_size, "not all was captured"
        assert marker not in seen
        assert file.name.encode() not in seen


def test_nodes_at_hosts_of_one_carrier_reach_each_other(lab: Lab) -> None:
    """Two subscribers of one carrier that does not hairpin have the relay in common only."""
    assert kinds.CGNAT_PORT_RESTRICTED.carrier is not None
    carrier = lab.carrier("carrier", kinds.CGNAT_PORT_RESTRICTED.carrier)
    near, far = (
        lab.site(label, kinds.CGNAT_PORT_RESTRICTED, carrier=carrier) for label in ("a", "b")
    )
    world = World(lab)
    node = world.start_node(far)
    outcome = world.run(near, "connect", node.peer_id, timeout=_COMMAND)
    assert outcome.code == 0, outcome.stderr
    assert outcome.last("result")["method"] == "relayed"


@pytest.mark.usefixtures("netlab")
@pytest.mark.parametrize("kind", [kinds.PROXY_ONLY, kinds.PROXY_AUTH], ids=str)
def test_the_name_of_the_relay_is_resolved_by_the_proxy(kind: SiteKind) -> None:
    with pair(kind, kinds.PUBLIC) as (world, near, far):
        relay = world.relays[0]
        assert relay.host.v4 is not None
        near.resolve({"relay.example": [relay.host.v4]})
        node = world.start_node(far)
        known = f"{relay.node.peer_id}@relay.example:443"
        outcome = nodes.run(
            near.host, "connect", node.peer_id, "--known-peer", known, timeout=_COMMAND
        )
        assert outcome.code == 0, outcome.stderr
        assert outcome.last("result")["method"] == "relayed"
