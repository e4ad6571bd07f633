"""How many round trips things take, on lines so long that nothing else matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import kinds, nodes
from .emulation import Quality
from .world import World

if TYPE_CHECKING:
    from .lab import Lab

_DELAY: Final = 0.1
"""Seconds, one way, on each of two lines."""
_ROUND_TRIP: Final = 4 * _DELAY

_SCRIPT: Final = """
import asyncio, json, sys, time
from anyreach import Node, P2pConfig

async def main():
    async with Node(P2pConfig(bind_addr="[::]:0", relay_reservations=0)) as node:
        begun = time.monotonic()
        connection = await node.connect(sys.argv[1])
        took = time.monotonic() - begun
        print(json.dumps({
            "event": "times", "connect": took, "handshake": connection.handshake_time,
        }), flush=True)

asyncio.run(main())
"""


def test_a_post_quantum_handshake_takes_one_round_trip_and_the_hello_another(lab: Lab) -> None:
    near, far = (lab.site(label, kinds.PUBLIC) for label in ("near", "far"))
    world = World(lab)
    node = world.start_node(far)
    for site in (near, far):
        site.line.emulate(Quality(delay=_DELAY))
    address = nodes.endpoint(far.host.address(4))
    process = near.host.spawn_python("-c", _SCRIPT, f"{node.peer_id}@{address}")
    times = process.wait_event("times")
    # The first flights of both sides have several packets. Paced as if nothing were known of the
    # line, each would cost a round trip more.
    assert _ROUND_TRIP <= times["handshake"] < 1.8 * _ROUND_TRIP
    assert 2 * _ROUND_TRIP <= times["connect"] < 2.8 * _ROUND_TRIP
