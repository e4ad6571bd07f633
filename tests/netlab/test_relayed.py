"""Every pair of ten kinds of sites connects through one common known peer; one test per cell.

One lab holds two sites of each kind: commands run at the near ones, nodes at the far ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from . import kinds, nodes, truth
from .kinds import Egress
from .lab import Lab
from .process import NoEventError
from .requirements import netlab_required
from .world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .kinds import SiteKind
    from .sites import Site

pytestmark = [
    # One lab for all cells: they must not be spread over workers.
    pytest.mark.xdist_group("relayed"),
]

_KINDS: Final = (
    kinds.PUBLIC,
    kinds.PORT_RESTRICTED,
    kinds.SYMMETRIC_RANDOM,
    kinds.CGNAT_PORT_RESTRICTED,
    kinds.UDP_BLOCKED,
    kinds.TCP_443_ONLY,
    kinds.PROXY_ONLY,
    kinds.PROXY_AUTH,
    kinds.V4_ONLY,
    kinds.V6_ONLY,
)

_CARRIERS: Final = {
    Egress.ANY: "h3",
    Egress.NO_UDP: "h2",
    Egress.TCP_443: "h2",
    Egress.PROXY: "h2-proxy",
    Egress.PROXY_AUTH: "h2-proxy",
}

_FILE_SIZE: Final = 5_000_000
_COMMAND: Final = 40.0
"""Seconds; a bound on liveness."""


@dataclass(frozen=True, slots=True)
class _Matrix:
    world: World
    near: dict[SiteKind, Site]
    far: dict[SiteKind, Site]
    launched: dict[SiteKind, Callable[[], nodes.Node]]

    def node(self, kind: SiteKind) -> nodes.Node:
        """The node at a far site. One that does not get ready fails its own cells only."""
        return self.launched[kind]()


@pytest.fixture(scope="module")
def matrix() -> Iterator[_Matrix]:
    """All sites, and a node that can be reached at each of the far ones."""
    netlab_required()
    with Lab() as lab:
        near, far = (
            {kind: lab.site(f"{end}_{kind.name.replace('-', '_')}", kind) for kind in _KINDS}
            for end in ("near", "far")
        )
        world = World(lab)
        launched = {kind: _once(world.launch_node(site)) for kind, site in far.items()}
        yield _Matrix(world, near, far, launched)


def _once(ready: Callable[[], nodes.Node]) -> Callable[[], nodes.Node]:
    """Waits at the first call only, also if it is in vain."""
    results: list[nodes.Node | NoEventError] = []

    def wait() -> nodes.Node:
        if not results:
            try:
                results.append(ready())
            except NoEventError as error:
                results.append(error)
        if isinstance(results[0], NoEventError):
            raise results[0]
        return results[0]

    return wait


def _cell(cell: tuple[SiteKind, SiteKind]) -> str:
    return f"{cell[0]}_to_{cell[1]}"


@pytest.mark.parametrize("cell", [(a, b) for a in _KINDS for b in _KINDS], ids=_cell)
def test_pair_connects_and_carries_a_file(matrix: _Matrix, cell: tuple[SiteKind, SiteKind]) -> None:
    world, node = matrix.world, matrix.node(cell[1])
    near, far = matrix.near[cell[0]], matrix.far[cell[1]]

    connected = world.run(near, "connect", node.peer_id, timeout=_COMMAND)
    assert connected.code == 0, _story(world, connected, node)
    result = connected.last("result")
    assert result["ok"] is True
    assert result["peer_id"] == node.peer_id
    assert result["group"] == "X25519MLKEM768"
    assert result["method"] in truth.acceptable(*cell), _story(world, connected, node)

    file = nodes.make_file(near.host, f"{near.kind}_to_{far.kind}", _FILE_SIZE)
    before = world.counters.read()
    sent = world.run(near, "send", node.peer_id, str(file), timeout=_COMMAND)
    traffic = world.counters.read() - before
    assert sent.code == 0, _story(world, sent, node)
    assert sent.last("sent")["bytes"] == _FILE_SIZE
    assert nodes.sha256(node.inbox / file.name) == nodes.sha256(file)

    # What the routers saw agrees with what was claimed.
    relay = world.relays[0].host
    relayed = min(traffic.sent(near, relay).bytes, traffic.sent(relay, far).bytes)
    straight = traffic.sent(near, far).bytes
    if sent.last("sent")["method"] != "relayed":
        # The way may have opened in the middle of the file.
        assert straight > 10_000
        assert straight + relayed > _FILE_SIZE
    elif truth.cheapest(*cell) is not truth.Cheapest.TCP:  # there the far end may relay for itself
        assert relayed > _FILE_SIZE
        assert straight < _FILE_SIZE / 10, "bulk data bypassed the relay"


def _story(world: World, outcome: nodes.Outcome, node: nodes.Node) -> str:
    """What everybody concerned had to say."""
    told = [node.process, world.relays[0].node.process]
    events = "\n".join(map(str, outcome.events))
    return "\n".join([events, outcome.stderr, *(process.transcript() for process in told)])


@pytest.mark.parametrize("kind", [kind for kind in _KINDS if kind.has_router], ids=str)
def test_the_address_at_the_relay_is_held_over_what_the_network_allows(
    matrix: _Matrix, kind: SiteKind
) -> None:
    relay = matrix.world.relays[0]
    reserved = matrix.world.carrier_of(matrix.node(kind))
    assert reserved["peer_id"] == relay.node.peer_id
    assert reserved["carrier"] == _CARRIERS[kind.egress]
    host = reserved["address"].rpartition(":")[0].strip("[]")
    assert host in {str(relay.host.v4), str(relay.host.v6)}


def test_a_public_node_gives_its_reservation_back(matrix: _Matrix) -> None:
    for kind in (kinds.PUBLIC, kinds.V4_ONLY, kinds.V6_ONLY):
        process = matrix.node(kind).process
        # It needed one to send itself something from outside.
        process.wait_event("relay", lambda event: event["state"] == "lost")
        assert process.named("relay")[-1]["state"] == "lost"


def test_a_node_behind_a_proxy_sends_nothing_but_to_the_proxy(matrix: _Matrix) -> None:
    traffic = matrix.world.counters.read()
    relay = matrix.world.relays[0].host
    for kind in (kinds.PROXY_ONLY, kinds.PROXY_AUTH):
        site = matrix.far[kind]
        assert traffic.sent(site, relay, "udp").packets == 0
        assert traffic.sent(site, relay, "tcp").packets > 0
        assert site.proxy is not None
        assert site.proxy.tunnels > 0


def test_a_proxy_that_wants_credentials_got_them_and_leaked_none(matrix: _Matrix) -> None:
    site = matrix.far[kinds.PROXY_AUTH]
    assert site.proxy is not None
    assert site.proxy.tunnels > 0
    printed = matrix.node(kinds.PROXY_AUTH).process.transcript()
    assert "correct" not in printed.split("\n", 1)[1]
