"""Many nodes on one machine in one overlay: joining, finding and connecting, in time and memory.

    python benches/overlay.py --output docs/benchmarks-overlay.md       # about two minutes
    python benches/overlay.py --nodes 500 --connects 5

A few nodes are known to all others; the others join through them, all in a row, then each connects
to some picked at random by nothing but their PeerId, and talks to them. Everything is one machine:
the figures show what a node costs and that nothing breaks, not what a network adds.
"""

import argparse
import datetime
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import environment
from measure import Program
from overlay_worker import PATIENCE

COMMAND = (sys.executable, str(Path(__file__).with_name("overlay_worker.py")))

HEAD = """\
Made by `python benches/overlay.py`, not by hand. {nodes} nodes in {processes} processes join
through {known} known peers in one more process, {at_once} of each process at once. Then each
connects to {connects} others, picked at random, of which it has nothing but the PeerId, and
exchanges a message with each. All processes share the cores of one machine, so times contain those
of whoever goes on at the same time; CPU seconds do not."""

RELAYED_HEAD = """\
The same with nodes that may use no direct paths (`direct=False`): each holds reservations at known
peers, which carry everything."""


@dataclass(frozen=True, slots=True)
class Step:
    """What all nodes did, one after the other or at once.

    Attributes:
        answers: one for each node, or for each connection.
        seconds: until the last was done.
        cpu: seconds computed meanwhile, known peers included.
        resident: bytes taken more than before, by all but the known peers.
        known_resident: bytes the known peers take more than before.
    """

    answers: list[dict[str, Any]]
    seconds: float
    cpu: float
    resident: int
    known_resident: int

    @property
    def failures(self) -> list[str]:
        """The errors of those that failed."""
        return [answer["error"] for answer in self.answers if "error" in answer]

    def values(self, name: str) -> list[float]:
        """A figure of all that did not fail."""
        return [answer[name] for answer in self.answers if name in answer]


@dataclass(frozen=True, slots=True)
class Overlay:
    """One run.

    Attributes:
        joined: of all nodes but the known peers.
        connected: of all pairs.
        idle_cpu: seconds per second that all of them compute when nobody does anything.
    """

    joined: Step
    connected: Step
    idle_cpu: float


class Overseer:
    """The processes."""

    def __init__(self, stack: ExitStack, workers: int) -> None:
        self._programs = [stack.enter_context(_running()) for _ in range(workers + 1)]

    @property
    def known(self) -> Program:
        """The process of the known peers."""
        return self._programs[0]

    @property
    def workers(self) -> list[Program]:
        """The processes of the others."""
        return self._programs[1:]

    def cpu(self) -> float:
        """Seconds all have computed so far."""
        return sum(program.cpu() for program in self._programs)

    def step(self, commands: Sequence[dict[str, Any]]) -> Step:
        """Give each worker its command, and wait until all are done."""
        before = self._weights()
        cpu = self.cpu()
        began = time.perf_counter()
        for worker, command in zip(self.workers, commands, strict=True):
            worker.write(json.dumps(command))
        answers = [answer for worker in self.workers for answer in _answer(worker)]
        seconds = time.perf_counter() - began
        grown = [now - then for now, then in zip(self._weights(), before, strict=True)]
        return Step(answers, seconds, self.cpu() - cpu, sum(grown[1:]), grown[0])

    def _weights(self) -> list[int]:
        return [program.memory() for program in self._programs]


def main() -> int:
    options = _options()
    load = environment.load()
    overlays = {"direct": run(options, relayed=False)}
    if options.relayed_nodes:
        fewer = argparse.Namespace(**{**vars(options), "nodes": options.relayed_nodes})
        overlays["relayed"] = run(fewer, relayed=True)
    page = _report(overlays, options, load)
    if options.output:
        options.output.write_text(page)
    print(page)
    failures = [
        failure
        for overlay in overlays.values()
        for step in (overlay.joined, overlay.connected)
        for failure in step.failures
    ]
    for failure, times in Counter(failures).most_common(10):
        print(f"failed {times} times: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run(options: argparse.Namespace, *, relayed: bool) -> Overlay:
    """Build an overlay, and let its nodes meet."""
    with ExitStack() as stack:
        overseer = Overseer(stack, options.processes)
        join = {"do": "join", "at_once": options.at_once}
        hub = {"relay_quota": 0, "relay_allow_targets": ["127.0.0.0/8"]}
        hosts = ["127.0.0.1"] * options.known
        overseer.known.write(json.dumps({**join, "hosts": hosts, "options": hub}))
        known = [f"{node['peer_id']}@{node['address']}" for node in _answer(overseer.known)]
        shares = _shares(options.nodes, options.processes)
        config = {"known_peers": known, "direct": not relayed}
        joined = overseer.step(
            [{**join, "hosts": list(hosts), "options": config} for hosts in _hosts(shares)]
        )
        connected = overseer.step(list(_meetings(joined, shares, options)))
        time.sleep(1)  # the last acknowledgements and closed handshakes are not idleness
        cpu = overseer.cpu()
        time.sleep(options.idle)
        idle = (overseer.cpu() - cpu) / options.idle
        return Overlay(joined, connected, idle)


def _meetings(
    joined: Step, shares: Sequence[int], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Who is to connect to whom, for each worker."""
    rng = random.Random(options.seed)
    present = [answer["peer_id"] for answer in joined.answers if "peer_id" in answer]
    answers = iter(joined.answers)
    for share in shares:
        mine = [answer["peer_id"] for answer in islice(answers, share) if "peer_id" in answer]
        pairs = [
            (me, peer)
            for me in mine
            for peer in rng.sample([other for other in present if other != me], options.connects)
        ]
        yield {"do": "connect", "pairs": pairs, "at_once": options.at_once}


def _hosts(shares: Sequence[int]) -> Iterator[Iterator[str]]:
    """Addresses for the nodes of each worker, all of loopback and each in another network.

    What a node does for one network is limited (docs/protocol.md): half a community behind one
    address is not what is to be measured.
    """
    numbers = count(1)
    for share in shares:
        yield (f"127.{number >> 8}.{number & 255}.1" for number in islice(numbers, share))


def _shares(nodes: int, processes: int) -> list[int]:
    return [nodes // processes + (number < nodes % processes) for number in range(processes)]


def _answer(program: Program) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = program.read(timeout=20 * PATIENCE)["answer"]
    return answer


@contextmanager
def _running() -> Iterator[Program]:
    program = Program(COMMAND)
    try:
        yield program
    finally:
        program.stop()


def _report(overlays: dict[str, Overlay], options: argparse.Namespace, load: str) -> str:
    lines = ["# Many nodes on one machine", "", HEAD.format(**vars(options)), ""]
    facts = environment.describe(options.profile)
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, load before {load}",
        "",
    ]
    for way, overlay in overlays.items():
        if way == "relayed":
            lines += ["## Everything relayed", "", RELAYED_HEAD, ""]
        lines += [*_table(overlay, options), ""]
    return "\n".join(lines)


def _table(overlay: Overlay, options: argparse.Namespace) -> list[str]:
    joined, connected = overlay.joined, overlay.connected
    nodes, pairs = len(joined.answers), len(connected.answers)
    methods = Counter(answer.get("method", "failed") for answer in connected.answers)
    shown = ", ".join(f"{times} {method}" for method, times in sorted(methods.items()))
    rows = {
        "nodes joined": f"{nodes - len(joined.failures)} of {nodes}, in {joined.seconds:.1f} s",
        "pairs connected": f"{pairs - len(connected.failures)} of {pairs},"
        f" in {connected.seconds:.1f} s: {shown}",
        "failures": str(len(joined.failures) + len(connected.failures)),
        "starting a node, ms": _spread(joined.values("start_ms")),
        f"joining: connected to all {options.known} known peers, ms": _spread(
            joined.values("join_ms")
        ),
        "`connect()` by PeerId, ms": _spread(connected.values("ms")),
        "CPU of a node that joins, all ends, ms": f"{1e3 * joined.cpu / nodes:.1f}",
        "CPU of a connection, all ends, ms": f"{1e3 * connected.cpu / max(1, pairs):.1f}",
        f"CPU of an idle node with {options.known + 2 * options.connects} connections, %": (
            f"{1e2 * overlay.idle_cpu / nodes:.3f}"
        ),
        "memory of a node that has joined, KB": f"{joined.resident / nodes / 1e3:.0f}",
        "memory of a further connection's end, KB": (
            f"{connected.resident / max(1, 2 * pairs) / 1e3:.0f}"
        ),
        "memory at a known peer for each that joins, KB": (
            f"{joined.known_resident / nodes / options.known / 1e3:.0f}"
        ),
    }
    return ["| what | result |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "none"
    ordered = sorted(values)
    last = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"median {statistics.median(ordered):.1f}, p95 {last:.1f}, most {ordered[-1]:.1f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--known", type=int, default=3, help="known peers of all")
    parser.add_argument("--connects", type=int, default=2, help="by each node, to others")
    parser.add_argument("--processes", type=int, default=2, help="among which the nodes are spread")
    parser.add_argument("--at-once", type=int, default=8, help="of each process")
    parser.add_argument(
        "--relayed-nodes", type=int, default=100, help="in a second overlay without direct paths"
    )
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to watch idle nodes")
    parser.add_argument("--seed", type=int, default=1, help="of who meets whom")
    parser.add_argument("--profile", default="release", help="of the build, for the report")
    parser.add_argument("--output", type=Path, help="Markdown file; standard output as well")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
