"""What relaying costs: throughput, CPU at each of the three nodes, delay, set-up time, memory.

    python benches/relays.py --output docs/benchmarks-relays.md      # about three minutes, as root

Everything runs in network namespaces on this machine, so that one processor carries both ends, the
relay and the lines: the figures compare ways with each other, not with a network.
"""

import argparse
import datetime
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import environment
from netlab import kinds
from netlab.emulation import Quality
from netlab.requirements import missing
from netlab.world import Pair, pair

TICKS = os.sysconf("SC_CLK_TCK")

WAYS = (
    ("direct", kinds.PORT_RESTRICTED, kinds.PUBLIC),
    ("relayed, HTTP/3", kinds.PORT_RESTRICTED, kinds.SYMMETRIC_RANDOM),
    ("relayed, HTTP/2", kinds.PORT_RESTRICTED, kinds.UDP_BLOCKED),
    ("relayed, HTTP/2 through a proxy", kinds.PORT_RESTRICTED, kinds.PROXY_ONLY),
)
"""The near end sends to the relay from its own socket; the carrier is that of the far end."""

DELAY = 0.01  # seconds, one way, on the line of each site and of the relay

HEAD = """\
Made by `python benches/relays.py`, not by hand. Both ends, the relay and the lines share the
processors of one machine, so a relayed byte costs throughput as well as time; between machines it
would not. Median and least of {runs} interleaved runs of {seconds:g} s, one stream, from Python to
Python."""

TABLE = (
    "| way | MB/s median | least | of direct | CPU s/GB near | relay | far | datagrams/s | echo ms"
    " | more than direct |"
)

TIMES = """\
`connect()` by PeerId, of a node that has joined already, on lines with {delay:g} ms each way: 40 ms
there and back between any two hosts, 80 ms through the relay. Needed are a round trip to find the
peer, one for the handshake and one for the hello; after a relayed path is usable, `connect()` gives
a direct one a moment to appear (`direct_grace`), if NATs allow one."""

MEMORY = """\
Memory of a relay for each connected node with a reservation: {memory:.0f} KB resident (two
connections and a socket; {tunnels} at once)."""

NODE_SCRIPT = """
import asyncio, json, sys, time
from anyreach import Node, P2pConfig

async def main():
    known, peer, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    found = []
    for _ in range(runs):
        config = P2pConfig(bind_addr="[::]:0", known_peers=[known], relay_reservations=0)
        async with Node(config) as node:
            events = node.events()
            async for event in events:
                if event.event == "known_peer" and event.state == "connected":
                    break
            begun = time.perf_counter()
            connection = await node.connect(peer)
            took = time.perf_counter() - begun
            async for event in events:
                if event.event == "connected" and str(event.peer_id) == peer:
                    break
            path = connection.path
            found.append((event.ms, took * 1000, path.rtt * 1000, path.method))
    print(json.dumps({"event": "times", "times": found}), flush=True)

asyncio.run(main())
"""

TUNNELS_SCRIPT = """
import asyncio, json, sys
from contextlib import AsyncExitStack
from anyreach import Node, P2pConfig

async def main():
    async with AsyncExitStack() as stack:
        for _ in range(int(sys.argv[2])):
            config = P2pConfig(bind_addr="[::]:0", known_peers=[sys.argv[1]], max_connections=8)
            node = await stack.enter_async_context(Node(config))
            async for event in node.events():
                if event.event == "relay" and event.state == "reserved":
                    break
        print(json.dumps({"event": "held"}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@dataclass
class Bulk:
    """One way, measured several times."""

    rates: list[float]
    near: list[float]
    relay: list[float]
    far: list[float]
    pings: list[float]
    datagrams: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="Markdown file; standard output if none")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--tunnels", type=int, default=24, help="held at once, for their memory")
    options = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(f"no figures of relays: they take network namespaces ({reason})", file=sys.stderr)
        return 0
    load = environment.load()
    results = {name: Bulk([], [], [], [], [], []) for name, _, _ in WAYS}
    for _ in range(options.runs):
        for name, near, far in WAYS:  # interleaved: what disturbs, disturbs all
            with pair(near, far) as built:
                _measure(built, results[name], options.seconds, _only(name))
            print(f"{name}: {results[name].rates[-1]:.1f} MB/s", file=sys.stderr)
    times = {name: _times(near, far) for name, near, far in WAYS}
    memory = _memory(options.tunnels)
    text = _report(results, times, memory, options, load)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text)
    return 0


def _only(way: str) -> tuple[str, ...]:
    """Options that keep a pair on the way that is measured: most could be punched."""
    return () if way == "direct" else ("--no-punch",)


def _measure(built: Pair, bulk: Bulk, seconds: float, only: tuple[str, ...]) -> None:
    world = built.world
    node = world.start_node(built.b, *only)
    relay = world.relays[0].node.process
    before = _cpu(relay.pid)
    run = world.run(
        built.a, "bench", node.peer_id, "--seconds", str(seconds), *only, timeout=seconds + 40
    ).last("bench")
    gigabytes = run["bytes"] / 1e9
    bulk.rates.append(run["mb_per_s"])
    bulk.near.append(run["cpu_s_per_gb"])
    bulk.far.append(run["peer_cpu_s_per_gb"])
    bulk.relay.append((_cpu(relay.pid) - before) / gigabytes)
    pings = world.run(built.a, "ping", node.peer_id, "-c", "50", "-i", "0.01", *only).last(
        "summary"
    )
    bulk.pings.append(pings["p50_ms"])
    datagrams = world.run(
        built.a, "bench", node.peer_id, "--datagrams", "--seconds", str(seconds), *only, timeout=60
    ).last("bench")
    bulk.datagrams.append(datagrams["datagrams_per_s"])


def _cpu(pid: int) -> float:
    """Seconds a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _times(near: kinds.SiteKind, far: kinds.SiteKind) -> list[tuple[float, float, float, str]]:
    """connect() of a node that has joined already, on lines with delay."""
    with pair(near, far) as built:
        node = built.world.start_node(built.b)
        for line in (built.a.line, built.b.line, built.world.relays[0].host.line):
            line.emulate(Quality(delay=DELAY))
        known = built.world.known_peers(built.a)[0]
        process = built.a.host.spawn_python("-c", NODE_SCRIPT, known, node.peer_id, "7")
        event = process.wait_event("times", timeout=60)
        return [tuple(entry) for entry in event["times"]]


def _memory(count: int) -> float:
    """Bytes a relay needs for one more reservation."""
    with pair(kinds.PORT_RESTRICTED, kinds.PUBLIC) as built:
        relay = built.world.relays[0]
        known = built.world.known_peers(built.a)[0]
        few = built.a.host.spawn_python("-c", TUNNELS_SCRIPT, known, "2")
        few.wait_event("held", timeout=60)
        before = _rss(relay.node.process.pid)
        many = built.a.host.spawn_python("-c", TUNNELS_SCRIPT, known, str(count))
        many.wait_event("held", timeout=120)
        time.sleep(0.5)
        return (_rss(relay.node.process.pid) - before) / count


def _rss(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def _report(
    results: dict[str, Bulk],
    times: dict[str, list[tuple[float, float, float, str]]],
    memory: float,
    options: argparse.Namespace,
    load: object,
) -> str:
    direct = statistics.median(results["direct"].rates)
    echo = statistics.median(results["direct"].pings)
    lines = [
        "# What relaying costs",
        "",
        HEAD.format(runs=options.runs, seconds=options.seconds),
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, load before {load}",
        "",
        TABLE,
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, bulk in results.items():
        median = statistics.median(bulk.rates)
        relay = f"{statistics.median(bulk.relay):.2f}" if name != "direct" else ""
        ping = statistics.median(bulk.pings)
        lines.append(
            f"| {name} | {median:.1f} | {min(bulk.rates):.1f} | {median / direct:.0%} |"
            f" {statistics.median(bulk.near):.2f} | {relay} | {statistics.median(bulk.far):.2f} |"
            f" {statistics.median(bulk.datagrams):,.0f} | {ping:.2f} | {ping - echo:+.2f} |"
        )
    lines += [
        "",
        TIMES.format(delay=DELAY * 1000),
        "",
        "| way | first path usable, ms | connect() returned, ms | path |",
        "|---|---|---|---|",
    ]
    for name, entries in times.items():
        first, took, rtt = (statistics.median(entry[i] for entry in entries) for i in range(3))
        lines.append(
            f"| {name} | {first:.0f} | {took:.0f} | {entries[0][3]}, round trip {rtt:.0f} ms |"
        )
    lines += ["", MEMORY.format(memory=memory / 1000, tunnels=options.tunnels), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
