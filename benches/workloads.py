"""What is measured of each contender, and in which figures."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from contenders.protocol import Contender
from measure import Pair

PARALLEL_HANDSHAKES = 16
DATAGRAM_BYTES = 1000
ECHO_BYTES = 64

# Memory of fresh connections settles when their handshakes are confirmed and acknowledged.
SETTLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Scale:
    """How long things are done.

    Attributes:
        bulk: fraction of the contender's `bulk_bytes`.
        seconds: duration of the other measurements.
        idle: connections to weigh.
    """

    bulk: float
    seconds: float
    idle: int


FULL = Scale(bulk=1.0, seconds=1.0, idle=100)
QUICK = Scale(bulk=0.25, seconds=0.3, idle=30)

BULK = [(direction, streams) for streams in (1, 8) for direction in ("up", "down")]


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the report.

    Attributes:
        key: its name in the results.
        title: in the report.
        unit: of its values.
        digits: after the decimal point.
    """

    key: str
    title: str
    unit: str
    digits: int


def _bulk_figures() -> Iterator[Figure]:
    for direction, streams in BULK:
        what = f"bulk {direction}load, {streams} stream{'s' if streams > 1 else ''}"
        yield Figure(f"bulk_{direction}_{streams}", what, "MB/s", 0)
        yield Figure(f"bulk_{direction}_{streams}_cpu", f"{what}, CPU", "s/GB", 2)


FIGURES = [
    *_bulk_figures(),
    Figure("datagrams", f"datagrams of {DATAGRAM_BYTES} B received", "1/s", 0),
    Figure("datagrams_lost", "datagrams lost", "%", 1),
    Figure("datagrams_cpu", "CPU per datagram received", "µs", 2),
    Figure("echo", f"{ECHO_BYTES} B echo round trip, p50", "µs", 0),
    Figure("echo_p99", f"{ECHO_BYTES} B echo round trip, p99", "µs", 0),
    Figure("handshakes", f"handshakes, {PARALLEL_HANDSHAKES} at a time", "1/s", 0),
    Figure("handshakes_cpu", "CPU per handshake", "ms", 2),
    Figure("connect", "time to connect, one at a time, p50", "ms", 2),
    Figure("idle", "memory of an idle connection, server end", "KB", 0),
]


def measure(pair: Pair, contender: Contender, scale: Scale) -> Iterator[tuple[str, float]]:
    """The figures of one contender in one run, except the memory.

    Args:
        pair: its two ends.
        contender: which it is.
        scale: how long to measure.
    """
    # One after the other before those in parallel, whose closed connections linger.
    one = pair.run(f"handshakes 1 {scale.seconds}")
    yield "connect", one.values["p50"] * 1e3
    if not contender.handshakes_only:
        yield from _transfers(pair, contender, scale)
    many = pair.run(f"handshakes {PARALLEL_HANDSHAKES} {scale.seconds}")
    yield "handshakes", many.values["count"] / many.values["seconds"]
    yield "handshakes_cpu", many.cpu / many.values["count"] * 1e3


def weigh(pair: Pair, scale: Scale) -> Iterator[tuple[str, float]]:
    """The memory of idle connections; of fresh processes, which have no freed memory to reuse."""
    time.sleep(SETTLE_SECONDS)
    before = pair.server.memory()
    count = pair.run(f"idle {scale.idle}").values["count"]
    time.sleep(SETTLE_SECONDS)
    yield "idle", (pair.server.memory() - before) / count / 1e3


def _transfers(pair: Pair, contender: Contender, scale: Scale) -> Iterator[tuple[str, float]]:
    size = int(contender.bulk_bytes * scale.bulk)
    for direction, streams in BULK:
        done = pair.run(f"bulk {direction} {streams} {size}")
        count = done.values["bytes"]
        if count != size:
            raise ValueError(f"{count} of {size} bytes arrived")
        yield f"bulk_{direction}_{streams}", count / done.values["seconds"] / 1e6
        yield f"bulk_{direction}_{streams}_cpu", done.cpu / count * 1e9
    sent = pair.run(f"datagrams {DATAGRAM_BYTES} {scale.seconds}")
    received = max(1, sent.values["received"])
    yield "datagrams", received / max(sent.values["seconds"], 1e-9)
    yield "datagrams_lost", (1 - received / sent.values["sent"]) * 100
    yield "datagrams_cpu", sent.cpu / received * 1e6
    echo = pair.run(f"echo {ECHO_BYTES} {scale.seconds}")
    yield "echo", echo.values["p50"] * 1e6
    yield "echo_p99", echo.values["p99"] * 1e6
