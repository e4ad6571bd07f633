"""What every contender speaks, so that all are driven and measured alike.

A contender is two programs. The server prints ``{"event": "ready", "target": ...}``. The client
gets that target, connects, prints ``{"event": "ready"}``, and then answers each command line with
one JSON line. Both end when their standard input does. Commands:

=================================  ===========================================================
``bulk up|down STREAMS BYTES``     BYTES in all over STREAMS streams, in writes of 64 KiB; gives
                                   ``bytes`` and ``seconds`` until the receiver has everything
``datagrams SIZE SECONDS``         as many as go; gives ``sent``, and of those ``received`` by the
                                   server the ``seconds`` between first and last
``echo SIZE SECONDS``              one after the other on a stream; gives ``p50`` and ``p99`` of
                                   the round trip in seconds, and ``count``
``handshakes PARALLEL SECONDS``    connect and close, PARALLEL at a time; gives ``count``,
                                   ``seconds`` and ``p50`` of the time to connect
``idle COUNT``                     make COUNT connections and keep them
=================================  ===========================================================

The first byte of a stream tells the server what it is for: ``U`` upload, answered with the count
of bytes; ``D`` download of the 8-byte count that follows; ``E`` echo; ``C`` the count of datagrams
since the last question and the nanoseconds between first and last. Integers are big-endian.
"""

import asyncio
import json
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The same for all, as far as they let it be set.
STREAM_WINDOW = 2 << 20
CONNECTION_WINDOW = 8 << 20
SOCKET_BUFFER = 8 << 20
DATAGRAM_BUFFER = 1 << 20
WRITE_BYTES = 64 * 1024

HOST = "127.0.0.1"
ALPN = "bench"

# Silence after which no more datagrams are expected.
QUIET = 0.1

UPLOAD, DOWNLOAD, ECHO, COUNT = b"U", b"D", b"E", b"C"

INTEGER = struct.Struct("!Q")

BLOCK = b"\x5a" * WRITE_BYTES


@dataclass(frozen=True, slots=True)
class Contender:
    """How to run one contender, and what is to be known about its figures.

    Attributes:
        name: as in the report.
        server: command line of the server.
        client: command line of the client; the server's target is appended.
        description: version and configuration, for the report.
        bulk_bytes: size of a bulk transfer that takes about a second.
        handshakes_only: takes part in the handshake rows only.
    """

    name: str
    server: tuple[str, ...]
    client: tuple[str, ...]
    description: str
    bulk_bytes: int
    handshakes_only: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """What contenders may need to run.

    Attributes:
        programs: folder of the Rust programs.
        certificate: PEM file of a certificate for ``localhost``.
        key: PEM file of its key.
        profile: how the Rust programs were built, ``release`` or ``debug``.
    """

    programs: Path
    certificate: Path
    key: Path
    profile: str


def python_program(module: str, role: str, *arguments: object) -> tuple[str, ...]:
    """The command line of a module of this package."""
    return (sys.executable, "-m", f"contenders.{module}", role, *map(str, arguments))


class Arrivals:
    """Datagrams since the last question for them."""

    def __init__(self) -> None:
        self.count = 0
        self._first = self._last = 0

    def add(self, count: int) -> None:
        self._last = time.perf_counter_ns()
        if not self.count:
            self._first = self._last
        self.count += count

    async def report(self) -> bytes:
        """The answer to ``C``, once no more come."""
        seen = -1
        while seen != self.count:
            seen = self.count
            await asyncio.sleep(QUIET)
        self.count = 0
        return INTEGER.pack(seen) + INTEGER.pack(self._last - self._first)


class Client:
    """The commands, to be implemented for a contender."""

    async def bulk(self, up: bool, streams: int, size: int) -> int:
        """Transfer `size` bytes over `streams` streams; how many arrived."""
        raise NotImplementedError

    async def send_datagrams(self, size: int, seconds: float) -> int:
        """Send datagrams for `seconds`; how many."""
        raise NotImplementedError

    async def count_datagrams(self) -> bytes:
        """Ask ``C``."""
        raise NotImplementedError

    async def echo_stream(self) -> Callable[[bytes], Awaitable[object]]:
        """Open an echo stream; the result sends a message and waits for its echo."""
        raise NotImplementedError

    async def handshakes(self, parallel: int, seconds: float) -> list[float]:
        """Connect and close for `seconds`; the time each took to connect."""
        raise NotImplementedError

    async def idle(self, count: int) -> None:
        """Make connections and keep them."""
        raise NotImplementedError

    async def run(self, command: str) -> dict[str, Any]:
        """Carry out one command line."""
        name, *words = command.split()
        start = time.perf_counter()
        if name == "bulk":
            count = await self.bulk(words[0] == "up", int(words[1]), int(words[2]))
            return {"bytes": count, "seconds": time.perf_counter() - start}
        if name == "datagrams":
            sent = await self.send_datagrams(int(words[0]), float(words[1]))
            received, span = struct.unpack("!QQ", await self.count_datagrams())
            return {"sent": sent, "received": received, "seconds": span / 1e9}
        if name == "echo":
            return await self._echo(bytes(int(words[0])), float(words[1]))
        if name == "handshakes":
            times = await self.handshakes(int(words[0]), float(words[1]))
            seconds = time.perf_counter() - start
            return {"count": len(times), "seconds": seconds, "p50": quantile(times, 50)}
        if name == "idle":
            await self.idle(int(words[0]))
            return {"count": int(words[0])}
        raise ValueError(f"unknown command {command!r}")

    async def _echo(self, message: bytes, seconds: float) -> dict[str, Any]:
        exchange = await self.echo_stream()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            await exchange(message)
            times.append(time.perf_counter() - begun)
        return {"count": len(times), "p50": quantile(times, 50), "p99": quantile(times, 99)}


async def handshake_loop(
    parallel: int, seconds: float, once: Callable[[int], Awaitable[float]]
) -> list[float]:
    """Run `once(worker)` over and over in `parallel` tasks; the results of all."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def worker(number: int) -> None:
        while time.perf_counter() < end:
            times.append(await once(number))

    async with asyncio.TaskGroup() as tasks:
        for number in range(parallel):
            tasks.create_task(worker(number))
    return times


def quantile(times: list[float], percent: int) -> float:
    """0 of nothing."""
    if not times:
        return 0.0
    return sorted(times)[min(len(times) * percent // 100, len(times) - 1)]


def emit(event: str, **values: object) -> None:
    """Print one JSON line."""
    print(json.dumps({"event": event, **values}), flush=True)


async def input_lines() -> asyncio.StreamReader:
    """Standard input, without blocking the loop."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def serve_until_end(target: str) -> None:
    """Say that the server is ready, and return when standard input ends."""
    emit("ready", target=target)
    await (await input_lines()).read()


async def obey(client: Client) -> None:
    """Say that the client is ready, and carry out commands until standard input ends."""
    emit("ready")
    lines = await input_lines()
    while line := (await lines.readline()).decode():
        try:
            emit("result", **await client.run(line))
        except Exception as error:
            emit("error", error=f"{type(error).__name__}: {error}")
