"""anyreach among sites: public relay nodes that everybody knows, and a node at each site.

::

    with pair(PORT_RESTRICTED, SYMMETRIC_RANDOM) as (world, a, b):
        node = world.start_node(b)
        outcome = world.run(a, "connect", node.peer_id)
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

from . import nodes
from .kinds import Attachment, Egress
from .lab import Lab
from .process import DEFAULT_TIMEOUT
from .routers import Engine
from .traffic import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .kinds import SiteKind
    from .process import Event
    from .sites import Site
    from .topology import Host

__all__ = ["RELAY_PORT", "Pair", "Relay", "World", "is_open", "pair"]

RELAY_PORT: Final = 443
"""Of the relays, UDP and TCP: the one port that hostile networks let out."""

_RELAY_OPTIONS: Final = (
    *("--bind", f"[::]:{RELAY_PORT}"),
    # The tests measure who carries what, not how fairly a relay shares itself among clients.
    *("--relay-quota", "0"),
)

_NODE_TIMEOUT: Final = 30.0
"""Seconds for a node to find out where it is and to get an address at a relay."""


def is_open(kind: SiteKind) -> bool:
    """Whether the hosts of a site can be reached from outside, so that they need no relay."""
    return kind.egress is Egress.ANY and Attachment.OPEN in (kind.v4, kind.v6)


class Relay(NamedTuple):
    """A public node that all others know.

    Attributes:
        host: where it runs, dual stack.
        node: the node.
    """

    host: Host
    node: nodes.Node

    def known_peer(self, version: int) -> str:
        """Its id and address of an IP version."""
        return f"{self.node.peer_id}@{nodes.endpoint(self.host.address(version), RELAY_PORT)}"


class World:
    """A lab with relays and traffic counters.

    Attributes:
        relays: the public nodes, in the order in which the others are told of them.
        counters: of all traffic between sites and relays.
    """

    def __init__(self, lab: Lab, *, relays: int = 1) -> None:
        self.lab = lab
        self.counters = Counters(lab.internet)
        self.relays: list[Relay] = []
        for number in range(relays):
            host = lab.host(f"relay{number}" if number else "relay")
            self.relays.append(Relay(host, nodes.start(host, *_RELAY_OPTIONS)))

    def known_peers(self, site: Site) -> list[str]:
        """The relays, at addresses of a family that the site has."""
        version = 6 if site.kind.v4 is Attachment.NONE else 4
        return [relay.known_peer(version) for relay in self.relays]

    def options(self, site: Site) -> list[str]:
        """Options that every command at a site gets."""
        return [word for peer in self.known_peers(site) for word in ("--known-peer", peer)]

    def launch_node(self, site: Site, *options: str) -> Callable[[], nodes.Node]:
        """Start a node at a site; the result waits until others can reach it."""
        launched = nodes.launch(site.host, *self.options(site), *options)

        def ready() -> nodes.Node:
            node = launched()
            wait = node.process.wait_event
            wait("known_peer", lambda e: e["state"] == "connected", timeout=_NODE_TIMEOUT)
            if not is_open(site.kind):
                wait("relay", lambda e: e["state"] == "reserved", timeout=_NODE_TIMEOUT)
            return node

        return ready

    def start_node(self, site: Site, *options: str) -> nodes.Node:
        """Start a node at a site; returns when others can reach it."""
        return self.launch_node(site, *options)()

    def run(
        self, site: Site, command: str, *argv: str, timeout: float = DEFAULT_TIMEOUT
    ) -> nodes.Outcome:
        """Run a command that knows the relays at a site, to its end."""
        return nodes.run(site.host, command, *argv, *self.options(site), timeout=timeout)

    def carrier_of(self, node: nodes.Node) -> Event:
        """The relay event of the address that a node got last."""
        return [e for e in node.process.named("relay") if e["state"] == "reserved"][-1]


class Pair(NamedTuple):
    """Two sites in a world of their own."""

    world: World
    a: Site
    b: Site


@contextlib.contextmanager
def pair(
    kind_a: SiteKind, kind_b: SiteKind, *, relays: int = 1, engine: Engine = Engine.KERNEL
) -> Iterator[Pair]:
    """Sites ``a`` and ``b`` of these kinds, and relays. What goes wrong gets their story.

    Args:
        kind_a, kind_b: what the sites are like.
        relays: how many public nodes there are.
        engine: what translates addresses.
    """
    with Lab() as lab:
        a, b = (
            lab.site(label, kind, engine=engine) for label, kind in (("a", kind_a), ("b", kind_b))
        )
        try:
            yield Pair(World(lab, relays=relays), a, b)
        except Exception as error:
            error.add_note(lab.transcripts())
            raise
