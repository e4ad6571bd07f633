"""What direct paths through NATs cost and give: times to connect, gaps when paths change, upkeep.

    python benches/punching.py --output docs/benchmarks-paths.md    # about ten minutes, as root

Everything runs in network namespaces on this machine, with lines of known delay between them. The
gaps are those a receiver of a bulk transfer sees between two pieces of data.
"""

import argparse
import contextlib
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import environment
from netlab import kinds
from netlab.emulation import Quality
from netlab.kinds import SiteKind
from netlab.lab import Lab
from netlab.process import NoEventError, Process
from netlab.requirements import missing
from netlab.sites import Site
from netlab.world import World, is_open

ROOT = Path(__file__).parents[1]
NODE = str(Path(__file__).with_name("punching_node.py"))

PATIENCE = 60.0  # seconds; a bound on liveness
STRAIGHT = {"direct", "punched"}

# Seconds, one way. Between any two hosts twice the first: 40 ms there and back.
LINE = 0.01
# Between the two sites 2 ms one way, over the relay 20 ms.
SHORT_LINE, RELAY_LINE = 0.001, 0.009

CELLS = (
    ("direct dial", kinds.PORT_RESTRICTED, kinds.PUBLIC),
    ("simultaneous punching", kinds.PORT_RESTRICTED, kinds.PORT_RESTRICTED),
    ("port prediction", kinds.SYMMETRIC_SEQUENTIAL, kinds.PORT_RESTRICTED),
    ("birthday, the near end has random ports", kinds.SYMMETRIC_RANDOM, kinds.PORT_RESTRICTED),
    ("birthday, the far end has random ports", kinds.PORT_RESTRICTED, kinds.SYMMETRIC_RANDOM),
    ("relay, nothing else is possible", kinds.SYMMETRIC_RANDOM, kinds.SYMMETRIC_RANDOM),
)

WATCHED = 3.0  # seconds for which a pair that stays relayed is watched, and a gap may come late
BEFORE = 1.5  # seconds of undisturbed flow before something happens
CUT = 3.0  # seconds for which the path is cut, after data flows again

HEAD = """\
Made by `python benches/punching.py`, not by hand. Both ends, the relay, the NATs and the lines
share the processors of one machine. Medians of {runs} runs, the worst in brackets."""

TIMES = """\
A node that knows only a relay connects by PeerId, on lines with {line:g} ms each way: 40 ms there
and back between any two hosts, 80 ms over the relay. Milliseconds from the call of `connect()`."""

GAPS = """\
Two nodes behind port-restricted NATs, 2 ms one way between them and 20 ms over the relay, with a
bulk transfer from the one that dialed (client) to the other (server) or back. *Upgrade*: the direct
path becomes possible while data flows over the relay. *Failover*: the direct path is cut. *Direct
again*: {cut:g} s later the cut ends; seconds until data goes straight. *New address*: the client's
site gets another public address. *NAT reboot*: its NAT forgets all mappings. Gaps in milliseconds,
as the receiver sees them between two pieces of data."""

UPKEEP = """\
One idle connection through two port-restricted NATs, with what belongs to it, over {seconds:g} s;
bytes with IP and UDP headers."""

LAYER = """\
Cost per packet of what stands between the engine and packet protection (`cargo bench -p
anyreach-quic --bench packets`): *bare* is the key of the TLS library alone, *session* is ours,
*after a round* is ours once the peer has asked to punch. *Bulk* is a full packet of 1400 bytes,
*ack* one with nothing but an acknowledgement. Nanoseconds, median."""


class Node:
    """One node at a site."""

    def __init__(self, world: World, site: Site, **options: object) -> None:
        self.site = site
        self.process: Process = site.host.spawn_python(NODE)
        config = {"bind_addr": "[::]:0", "known_peers": world.known_peers(site), **options}
        self.process.send(config)
        self.peer_id = str(self.process.wait_event("ready")["peer_id"])

    def join(self) -> "Node":
        """Wait until it can be found and reached."""
        wait = self.process.wait_event
        wait("known_peer", lambda e: e["state"] == "connected", timeout=PATIENCE)
        state = "lost" if is_open(self.site.kind) else "reserved"
        wait("relay", lambda e: e["state"] == state, timeout=PATIENCE)
        return self

    def connect(self, other: "Node") -> dict[str, float]:
        """Connect to another node; when connect() returned, and with the first path."""
        self.process.send({"do": "connect", "peer": other.peer_id})
        returned = self.process.wait_event("connected", timeout=PATIENCE)["ms"]
        first = self.process.wait_event("first", lambda e: e["peer_id"] == other.peer_id)["ms"]
        return {"returned": returned, "first": first}

    def moved(self, methods: set[str], since: int = 0, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until it sends on a path of such a method."""
        return self.process.wait_event(
            "moved", lambda e: e["method"] in methods, since=since, timeout=timeout
        )

    def ask(self, command: str, answer: str) -> dict[str, Any]:
        """Send a command that is answered."""
        seen = len(self.process.events)
        self.process.send({"do": command})
        return self.process.wait_event(answer, since=seen)

    def resident(self) -> int:
        """Bytes of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])


class Figures(dict[str, list[float]]):
    """Measured values by name."""

    def add(self, name: str, value: float) -> None:
        """One more."""
        self.setdefault(name, []).append(value)

    def show(self, name: str, form: str = "{:.0f}") -> str:
        """Median and worst; a dash if there is none."""
        values = self.get(name)
        if not values:
            return "-"
        return f"{form.format(statistics.median(values))} ({form.format(max(values))})"


def main() -> int:
    options = _options()
    reason = missing()
    if reason is not None:
        print(f"no figures of paths: they take network namespaces ({reason})", file=sys.stderr)
        return 0
    load = environment.load()
    times = {name: _times(name, near, far, options.runs) for name, near, far in CELLS}
    gaps = {}
    for way, sends_client in (("client to server", True), ("server to client", False)):
        gaps[way] = Figures()
        for number in range(options.runs):
            print(f"gaps, {way}, run {number + 1}", file=sys.stderr)
            _gaps(gaps[way], sends_client=sends_client)
    upkeep = _upkeep(options.idle, options.crowd)
    page = _report(times, gaps, upkeep, options, load)
    if options.output:
        options.output.write_text(page)
    print(page)
    return 0


def _times(name: str, near: SiteKind, far: SiteKind, runs: int) -> Figures:
    """How long it takes to connect, with a new node for each time."""
    found = Figures()
    with _lab(near, far, LINE, LINE) as (world, a, b):
        server = Node(world, b).join()
        for _ in range(runs):
            client = Node(world, a).join()
            for kind, ms in client.connect(server).items():
                found.add(kind, ms)
            # Where nothing else is possible there is nothing to wait for.
            patience = WATCHED if near is far is kinds.SYMMETRIC_RANDOM else PATIENCE
            try:
                found.add("direct", client.moved(STRAIGHT, timeout=patience)["ms"])
            except NoEventError:
                found.add("relayed", 1)
            client.process.end_input()
            client.process.wait()
    print(f"{name}: {dict(found)}", file=sys.stderr)
    return found


def _gaps(found: Figures, *, sends_client: bool) -> None:
    """What a bulk transfer sees of changes of its path, in one run."""
    kind = kinds.PORT_RESTRICTED
    with _lab(kind, kind, SHORT_LINE, RELAY_LINE) as (world, a, b):
        client, server = Node(world, a), Node(world, b)
        client.join()
        server.join()
        sender, receiver = (client, server) if sends_client else (server, client)

        with world.lab.cut(a, b):
            client.connect(server)
            server.moved({"relayed"})
            sender.process.send({"do": "flow"})
            began = _undisturbed(sender, receiver)
        sender.moved(STRAIGHT, since=began)
        found.add("upgrade", _gap(receiver))

        began = _undisturbed(sender, receiver)
        with world.lab.cut(a, b):
            sender.moved({"relayed"}, since=began)
            found.add("failover", _gap(receiver))
            time.sleep(CUT)
            began, healed = _seen(sender), time.monotonic()
        found.add("again", sender.moved(STRAIGHT, since=began)["at"] - healed)
        time.sleep(WATCHED)

        for name, disturb in (("address", a.readdress), ("reboot", a.reboot_router)):
            _undisturbed(sender, receiver)
            disturb()
            found.add(name, _gap(receiver))
            time.sleep(WATCHED)
        sender.process.send({"do": "stop"})


def _undisturbed(sender: Node, receiver: Node) -> int:
    """Let data flow, then look at it from now on; how many events the sender has told."""
    time.sleep(BEFORE)
    receiver.ask("mark", "marked")
    return _seen(sender)


def _seen(node: Node) -> int:
    return len(node.process.events)


def _gap(receiver: Node) -> float:
    """The longest gap in milliseconds, once data flows again."""
    deadline = time.monotonic() + PATIENCE
    before = receiver.ask("gap", "gap")
    while time.monotonic() < deadline:
        time.sleep(WATCHED)
        gap = receiver.ask("gap", "gap")
        if gap["bytes"] > before["bytes"]:
            return float(gap["seconds"] * 1000)
        before = gap
    raise NoEventError("data does not flow again")


def _upkeep(seconds: float, crowd: int) -> Figures:
    """What an idle punched connection sends, and what it takes in memory."""
    found = Figures()
    kind = kinds.PORT_RESTRICTED
    with _lab(kind, kind, LINE, LINE) as (world, a, b):
        client, server = Node(world, a).join(), Node(world, b).join()
        client.connect(server)
        client.moved(STRAIGHT)
        server.moved(STRAIGHT)
        print(f"idle for {WATCHED + seconds:g} s", file=sys.stderr)
        time.sleep(WATCHED)
        before = world.counters.read()
        time.sleep(seconds)
        sent = world.counters.read() - before
        relay = world.relays[0].host
        for name, site in (("client", a), ("server", b)):
            other = b if site is a else a
            found.add(f"{name} straight", sent.sent(site, other).bytes / seconds)
            found.add(f"{name} relay", sent.sent(site, relay).bytes / seconds)
        resident = server.resident()
        options = {
            "bind_addr": "[::]:0",
            "known_peers": world.known_peers(a),
            "relay_reservations": 0,
            "max_connections": 8,
        }
        client.process.send(
            {"do": "crowd", "peer": server.peer_id, "count": crowd, "options": options}
        )
        client.process.wait_event("crowded", timeout=PATIENCE + 2 * crowd)
        found.add("memory", (server.resident() - resident) / crowd)
    return found


@contextlib.contextmanager
def _lab(
    near: SiteKind, far: SiteKind, line: float, relay_line: float
) -> Iterator[tuple[World, Site, Site]]:
    with Lab() as lab:
        a, b = lab.site("a", near), lab.site("b", far)
        world = World(lab)
        for place in (a, b):
            place.line.emulate(Quality(delay=line))
        world.relays[0].host.line.emulate(Quality(delay=relay_line))
        try:
            yield world, a, b
        except Exception as error:
            error.add_note(lab.transcripts())
            raise


def _report(
    times: dict[str, Figures],
    gaps: dict[str, Figures],
    upkeep: Figures,
    options: argparse.Namespace,
    load: str,
) -> str:
    lines = ["# Paths: what they take, and what changing them costs", ""]
    lines += [HEAD.format(runs=options.runs), ""]
    facts = environment.describe(options.profile)
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, load before {load}", ""]

    lines += ["## Connecting", "", TIMES.format(line=LINE * 1000), ""]
    lines += ["| way | first path usable | connect() returned | data goes straight |"]
    lines += ["|---|---|---|---|"]
    for name, found in times.items():
        straight = found.show("direct")
        if "relayed" in found:
            straight += f", {len(found['relayed'])} stayed relayed"
        lines.append(f"| {name} | {found.show('first')} | {found.show('returned')} | {straight} |")

    lines += ["", "## Gaps under load", "", GAPS.format(cut=CUT + WATCHED), ""]
    lines += ["| data goes | upgrade | failover | direct again, s | new address | NAT reboot |"]
    lines += ["|---|---|---|---|---|---|"]
    for way, found in gaps.items():
        cells = [found.show(name) for name in ("upgrade", "failover")]
        cells.append(found.show("again", "{:.2f}"))
        cells += [found.show(name) for name in ("address", "reboot")]
        lines.append(f"| {way} | {' | '.join(cells)} |")

    lines += ["", "## Upkeep", "", UPKEEP.format(seconds=options.idle), ""]
    lines += ["| end | to the peer, B/s | to the relay, B/s |", "|---|---|---|"]
    for name in ("client", "server"):
        one, other = (upkeep[f"{name} {to}"][0] for to in ("straight", "relay"))
        lines.append(f"| {name} | {one:.1f} | {other:.1f} |")
    lines += ["", f"Memory of a punched connection's end: {upkeep['memory'][0] / 1000:.0f} KB"]
    lines += [f"({options.crowd} at once, resident)."]

    lines += ["", "## Seeing packets in clear", "", LAYER, "", *_layer(), ""]
    return "\n".join(lines)


def _layer() -> Sequence[str]:
    """The table of the criterion benchmark, if it was run."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "criterion"
    lines = ["| packet | bare | session | after a round |", "|---|---|---|---|"]
    for action, kind in (("seal", "bulk"), ("seal", "ack"), ("open", "bulk"), ("open", "ack")):
        cells = []
        for who in ("bare", "session", "punching"):
            path = target / action / who / kind / "new" / "estimates.json"
            if not path.exists():
                return ["Not measured in this run."]
            estimates = json.loads(path.read_text())
            cells.append(f"{estimates['median']['point_estimate']:.0f}")
        lines.append(f"| {action}, {kind} | {' | '.join(cells)} |")
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="Markdown file; standard output as well")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--idle", type=float, default=90.0, help="seconds to watch an idle pair")
    parser.add_argument("--crowd", type=int, default=24, help="connections held for their memory")
    parser.add_argument("--profile", default="release", help="of the build, for the report")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
