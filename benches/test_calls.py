"""What a call costs: the awaits of a user's inner loop, the start of a node, the import.

    pytest benches/test_calls.py

A round of a call's benchmark is 1,000 calls inside a running event loop: milliseconds of a round
are microseconds of a call. Both ends of the connection are in this process.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from anyreach import Connection, Node, P2pConfig, Stream

CONFIG = P2pConfig(bind_addr="127.0.0.1:0")

CALLS = 1000
ROUNDS = 30

# A round of reads, 1 MB, fits the window of a stream: all of it can wait to be read.
READ_BYTES = 1000

# Datagrams of a round that fit the queue on both sides.
DATAGRAM = bytes(100)


@dataclass(frozen=True, slots=True)
class Ends:
    """A connection within this process, seen from its two nodes."""

    here: Connection
    there: Connection

    async def stream(self) -> tuple[Stream, Stream]:
        """Both ends of a new stream."""
        near = await self.here.open_stream()
        await near.write(b"!")
        far = await self.there.accept_stream()
        await far.readexactly(1)
        return near, far

    async def waiting(self, size: int) -> Stream:
        """A stream with so many bytes in its buffer."""
        near, far = await self.stream()
        await near.write(bytes(size))
        await near.finish()
        await near.wait_acked()
        return far


@asynccontextmanager
async def two_nodes() -> AsyncIterator[Ends]:
    async with Node(CONFIG) as dialer, Node(CONFIG) as other:
        incoming = other.incoming()
        here = await dialer.connect(f"{other.peer_id}@{other.addresses[0]}")
        yield Ends(here, await anext(incoming))


class Calls:
    """Runs rounds of calls on one event loop and one connection."""

    def __init__(self, benchmark: BenchmarkFixture, runner: asyncio.Runner, ends: Ends) -> None:
        self._benchmark = benchmark
        self._runner = runner
        self.ends = ends

    def time(
        self,
        calls: Callable[..., Coroutine[Any, Any, None]],
        prepare: Callable[[], Coroutine[Any, Any, tuple[object, ...]]] | None = None,
    ) -> None:
        """Time `calls`, given what `prepare` returned before each round."""

        def setup() -> tuple[tuple[object, ...], dict[str, object]]:
            return (self._runner.run(prepare()) if prepare else ()), {}

        self._benchmark.pedantic(  # type: ignore[no-untyped-call]  # the library has no types
            lambda *arguments: self._runner.run(calls(*arguments)),
            setup=setup,
            rounds=ROUNDS,
            warmup_rounds=2,
        )


@pytest.fixture
def calls(benchmark: BenchmarkFixture) -> Iterator[Calls]:
    with asyncio.Runner() as runner:
        nodes = two_nodes()
        ends = runner.run(nodes.__aenter__())
        yield Calls(benchmark, runner, ends)
        runner.run(nodes.__aexit__(None, None, None))


async def nothing() -> None:
    """The least an await can cost."""


def test_await_of_nothing(calls: Calls) -> None:
    async def await_all() -> None:
        for _ in range(CALLS):
            await nothing()

    calls.time(await_all)


def test_read_of_waiting_data(calls: Calls) -> None:
    async def prepare() -> tuple[Stream]:
        return (await calls.ends.waiting(CALLS * READ_BYTES),)

    async def read(stream: Stream) -> None:
        for _ in range(CALLS):
            await stream.read(READ_BYTES)

    calls.time(read, prepare)


def test_readexactly_of_waiting_data(calls: Calls) -> None:
    async def prepare() -> tuple[Stream]:
        return (await calls.ends.waiting(CALLS * READ_BYTES),)

    async def read(stream: Stream) -> None:
        for _ in range(CALLS):
            await stream.readexactly(READ_BYTES)

    calls.time(read, prepare)


def test_readinto_of_waiting_data(calls: Calls) -> None:
    buffer = memoryview(bytearray(READ_BYTES))

    async def prepare() -> tuple[Stream]:
        return (await calls.ends.waiting(CALLS * READ_BYTES),)

    async def read(stream: Stream) -> None:
        for _ in range(CALLS):
            await stream.readinto(buffer)

    calls.time(read, prepare)


@pytest.mark.parametrize("size", [64, 1024])
def test_write_with_room(calls: Calls, size: int) -> None:
    data = bytes(size)

    async def prepare() -> tuple[Stream, Stream]:
        return await calls.ends.stream()

    async def write(near: Stream, _far: Stream) -> None:
        for _ in range(CALLS):
            await near.write(data)

    calls.time(write, prepare)


def test_send_of_a_datagram(calls: Calls) -> None:
    async def send() -> None:
        for _ in range(CALLS):
            calls.ends.here.send_datagram(DATAGRAM)

    calls.time(send)


def test_send_of_datagrams_in_a_list(calls: Calls) -> None:
    """All datagrams of a round in ten calls."""
    batch = [DATAGRAM] * (CALLS // 10)

    async def send() -> None:
        for _ in range(10):
            calls.ends.here.send_datagrams(batch)

    calls.time(send)


def test_round_trip(calls: Calls) -> None:
    """A hundred to a round: these wait for packets."""

    async def prepare() -> tuple[Stream, Stream]:
        return await calls.ends.stream()

    async def exchange(near: Stream, far: Stream) -> None:
        for _ in range(CALLS // 10):
            await near.write(b"ping")
            await far.readexactly(4)
            await far.write(b"pong")
            await near.readexactly(4)

    calls.time(exchange, prepare)


def test_node_start(benchmark: BenchmarkFixture) -> None:
    """With a fresh identity, in a process that started one before."""
    with asyncio.Runner() as runner:
        started: list[Node] = []

        def start() -> None:
            started.append(runner.run(Node(CONFIG).start()))

        benchmark.pedantic(start, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]  # the library has no types
        for node in started:
            runner.run(node.close())


@pytest.mark.parametrize("what", ["pass", "import asyncio", "import anyreach"])
def test_import(benchmark: BenchmarkFixture, what: str) -> None:
    """Of the whole process: compare with the others."""
    command = [sys.executable, "-c", what]
    benchmark.pedantic(  # type: ignore[no-untyped-call]  # the library has no types
        lambda: subprocess.run(command, check=True), rounds=7, warmup_rounds=1
    )
