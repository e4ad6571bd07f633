"""Two nodes that dial each other at the same moment end with one connection."""

from __future__ import annotations

import asyncio

import pytest

from .support import DUAL, at, exchange, nodes, soon, until

ROUNDS = 50


@pytest.mark.parametrize(("there", "back"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "::1")])
async def test_simultaneous_dials_end_in_one_connection(there: str, back: str) -> None:
    async with nodes(DUAL, DUAL) as (alice, bob):
        for _ in range(ROUNDS):
            ours, theirs = await soon(
                asyncio.gather(alice.connect(at(bob, there)), bob.connect(at(alice, back)))
            )
            assert ours.direction != theirs.direction
            assert alice.connections == (ours,)
            assert bob.connections == (theirs,)
            await exchange(ours, theirs)
            await exchange(theirs, ours)
            ours.close()
            await soon(theirs.wait_closed())
            await until(lambda: not alice.connections and not bob.connections)


async def test_many_nodes_dialing_each_other() -> None:
    async with nodes(*[DUAL] * 6) as everybody:
        await soon(
            asyncio.gather(
                *(a.connect(at(b, "::1")) for a in everybody for b in everybody if a is not b)
            )
        )
        await until(lambda: all(len(node.connections) == 5 for node in everybody))
        for node in everybody:
            assert {c.peer_id for c in node.connections} == {
                other.peer_id for other in everybody if other is not node
            }
