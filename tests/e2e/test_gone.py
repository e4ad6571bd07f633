"""Peers that vanish without a word, and callers that lose interest: neither leaves a trace."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import anyreach
from anyreach import ConnectTimeout, Identity, liveness
from anyreach.addresses import HostPort
from anyreach.events import Connected, Disconnected
from anyreach.peer import PeerAddress

from .support import DUAL, V4, Watch, at, exchange, jobs, nodes, port_of, soon, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PROGRAM = """
import asyncio, sys
from anyreach import Identity, Node, P2pConfig

async def main():
    config = P2pConfig(bind_addr="127.0.0.1:0", ip_mode="v4", identity=Identity.load(sys.argv[1]))
    async with Node(config) as node:
        print(node.addresses[0], flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def process(identity: Identity, folder: Path) -> AsyncIterator[tuple[int, PeerAddress]]:
    """A node in a process that can be killed: its process id, and where it is."""
    file = folder / f"{identity.peer_id.short}.pem"
    identity.save(file)
    package = str(Path(anyreach.__file__).resolve().parents[1])
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", PROGRAM, str(file)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": package},
    )
    try:
        assert program.stdout is not None
        line = await soon(program.stdout.readline())
        yield program.pid, PeerAddress(identity.peer_id, (HostPort.parse(line.decode().strip()),))
    finally:
        with suppress(ProcessLookupError):
            program.kill()
        await program.communicate()


@pytest.fixture
def suspicious(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sign of life is recent enough."""
    monkeypatch.setattr(liveness, "FRESH", -1.0)


async def test_a_peer_that_came_back_elsewhere_is_reached_at_once(tmp_path: Path) -> None:
    identity = Identity.generate()
    async with nodes(V4) as (node,):
        async with process(identity, tmp_path) as (pid, address):
            old = await node.connect(address)
            os.kill(pid, signal.SIGKILL)
        async with nodes({**V4, "identity": identity}) as (again,):
            assert not old.closed
            begun = time.monotonic()
            new = await node.connect(at(again, "127.0.0.1"))
            assert time.monotonic() - begun < 2.0
            assert new != old
            assert old.closed
            await until(lambda: len(again.connections) == 1)
            await exchange(new, again.connections[0])
            assert [attempt.reason for attempt in new.attempts] == ["no-answer", "ok"]


@pytest.mark.usefixtures("suspicious")
async def test_a_peer_that_is_gone_is_not_said_to_be_connected(tmp_path: Path) -> None:
    identity = Identity.generate()
    async with nodes({**V4, "handshake_timeout": 0.5}) as (node,):
        async with process(identity, tmp_path) as (pid, address):
            await node.connect(address)
            os.kill(pid, signal.SIGKILL)
        (connection,) = node.connections
        assert not connection.closed  # nobody has told that the peer is gone
        # By its id alone: the address it was at is remembered, and tried.
        with pytest.raises(ConnectTimeout) as caught:
            await node.connect(identity.peer_id)
        assert [a.reason for a in caught.value.attempts] == ["no-answer", "handshake-timeout"]


@pytest.mark.usefixtures("suspicious")
async def test_a_healthy_connection_costs_a_question_at_most() -> None:
    async with nodes(V4, V4) as (alice, bob):
        connection = await alice.connect(at(bob, "127.0.0.1"))
        before = connection.stats()
        begun = time.monotonic()
        again = await asyncio.gather(*(alice.connect(bob.peer_id) for _ in range(50)))
        assert time.monotonic() - begun < 1.0
        assert set(again) == {connection}
        assert connection.stats().sent_packets - before.sent_packets < 10
        assert connection.attempts[-1].reason == "ok"


async def test_cancelled_calls_leave_nothing_behind() -> None:
    async with nodes(DUAL, DUAL) as (alice, bob):
        rng = random.Random(7)
        port = port_of(bob)
        await alice.connect(at(bob, "::1"))  # how long it takes here
        span = max(attempt.ms for attempt in alice.connections[0].attempts) / 1000
        alice.connections[0].close()
        watch = Watch(alice)
        places = [
            PeerAddress(bob.peer_id, (HostPort("::1", port), HostPort("127.0.0.1", port))),
            PeerAddress(None, (HostPort("127.0.0.1", port),)),
        ]
        delivered = 0
        for number in range(200):
            calls = [
                asyncio.create_task(alice.connect(rng.choice(places)))
                for _ in range(rng.randint(1, 3))
            ]
            await asyncio.sleep(rng.uniform(0, span * 1.5) if number % 4 else 0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            for call in calls:
                if not call.cancelled():
                    delivered += 1
                    call.result().close()
        await until(lambda: not alice.connections and not bob.connections)
        assert [jobs(kind) for kind in ("dial", "connect", "resolve", "ask")] == [0] * 4
        # Whatever was told of had its end told as well.
        await alice.close()
        events = [*watch.seen, *await watch.rest()]
        made = sum(isinstance(event, Connected) for event in events)
        ended = sum(isinstance(event, Disconnected) for event in events)
        assert ended - 1 <= made <= ended  # the first one may have been told before
        assert delivered < 600


async def test_a_name_of_two_peers_leaves_one_connection() -> None:
    async with nodes({**DUAL, "attempt_delay": 0.01}, V4) as (node, four):
        six_at = {"bind_addr": f"[::1]:{port_of(four)}", "ip_mode": "v6"}
        async with nodes(six_at) as (six,):
            name = PeerAddress(None, (HostPort("localhost", port_of(four)),))
            for _ in range(30):
                connection = await node.connect(name)
                assert connection.peer_id in (six.peer_id, four.peer_id)
                await until(lambda: len(node.connections) == 1)
                connection.close()
                await until(lambda: not (six.connections or four.connections))


async def test_a_call_that_is_cancelled_twice_leaves_nothing() -> None:
    async with nodes(V4, V4) as (alice, bob):
        for steps in range(40):
            call = asyncio.create_task(alice.connect(at(bob, "127.0.0.1")))
            await asyncio.sleep(steps / 4000)
            call.cancel()
            await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                (await call).close()
        await until(lambda: not alice.connections and not bob.connections)
        await until(lambda: jobs("connect") == jobs("dial") == 0)
