"""``python -m tests.netlab KIND_A KIND_B``: what becomes of a pair, to look at.

Builds sites ``a`` and ``b`` and public nodes that both know, runs ``anyreach node`` at b and
``anyreach connect`` to it at a, and shows the result and who sent how much to whom.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from . import kinds, truth
from .emulation import Quality
from .process import NoEventError
from .requirements import missing
from .routers import Engine
from .world import Pair, pair

if TYPE_CHECKING:
    from .nodes import Node
    from .traffic import Located, Traffic

_TIMEOUT: Final = 60.0  # seconds


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parse(argv)
    reason = missing()
    if reason is not None:
        print(f"no network lab here: {reason}", file=sys.stderr)
        return 2
    kind_a, kind_b = (kinds.ALL[name] for name in (options.kind_a, options.kind_b))
    with pair(kind_a, kind_b, relays=options.relays, engine=Engine(options.engine)) as built:
        quality = Quality(
            delay=options.delay / 1000,
            jitter=options.jitter / 1000,
            loss=options.loss / 100,
            rate=options.rate * 125_000 if options.rate else None,
        )
        if quality != Quality():
            for site in (built.a, built.b):
                site.line.emulate(quality)
        if options.drop:
            built.b.line.drop_larger_than(options.drop)
        _describe(built)
        try:
            node = built.world.start_node(built.b, *options.node_option)
        except NoEventError as error:
            print(error)
            node = None
        if options.shell:
            return _shell(built, node)
        if node is None:
            return 1
        return _run(built, node, options.command)


def _parse(argv: list[str]) -> argparse.Namespace:
    command: list[str] = []
    if "--" in argv:
        at = argv.index("--")
        argv, command = argv[:at], argv[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m tests.netlab",
        description=__doc__,
        epilog="After -- comes an anyreach command to run at a instead, with PEER for the node"
        " at b: -- send PEER /etc/services",
    )
    parser.add_argument("kind_a", choices=kinds.ALL, metavar="KIND_A", help="what site a is like")
    parser.add_argument("kind_b", choices=kinds.ALL, metavar="KIND_B", help="what site b is like")
    parser.add_argument(
        "--delay", type=float, default=0, metavar="MS", help="of each line, one way"
    )
    parser.add_argument("--jitter", type=float, default=0, metavar="MS", help="of each line")
    parser.add_argument("--loss", type=float, default=0, metavar="PCT", help="on each line")
    parser.add_argument("--rate", type=float, default=0, metavar="MBIT", help="of each line, per s")
    parser.add_argument(
        "--drop", type=int, metavar="BYTES", help="b's line silently drops larger packets"
    )
    parser.add_argument(
        "--relays", type=int, default=1, metavar="N", help="public nodes (default 1)"
    )
    parser.add_argument(
        "--engine",
        choices=[engine.value for engine in Engine],
        default=Engine.KERNEL.value,
        help="what translates addresses (default kernel)",
    )
    parser.add_argument(
        "--node-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="for the node at b, like --node-option=--log-level=debug; may be repeated",
    )
    parser.add_argument("--shell", action="store_true", help="open a shell at a instead")
    options = parser.parse_args(argv)
    options.command = command or ["connect", "PEER"]
    return options


def _describe(built: Pair) -> None:
    for site in (built.a, built.b):
        own = ", ".join(str(x) for x in (site.host.v4, site.host.v6) if x is not None)
        seen = ", ".join(
            str(site.external(version))
            for version in (4, 6)
            if (site.host.v4, site.host.v6)[version == 6] is not None
        )
        proxy = f", proxy {site.proxy.url}" if site.proxy else ""
        print(f"{site.label}: {site.kind}, addresses {own}, seen as {seen}{proxy}")
    for relay in built.world.relays:
        print(f"{relay.host.label}: {relay.host.v4}, {relay.host.v6}, {relay.node.peer_id}")
    cheapest = truth.cheapest(built.a.kind, built.b.kind)
    print(f"cheapest way by the laws of packets: {cheapest.name.lower().replace('_', ' ')}")


def _run(built: Pair, node: Node, command: list[str]) -> int:
    argv = [node.peer_id if word == "PEER" else word for word in command]
    before = built.world.counters.read()
    outcome = built.world.run(built.a, argv[0], *argv[1:], timeout=_TIMEOUT)
    traffic = built.world.counters.read() - before
    print(f"\nat a: anyreach {' '.join(argv)}")
    for event in outcome.events:
        print(f"  {json.dumps(event)}")
    print(outcome.stderr, end="")
    print("\nat b:")
    for event in node.process.events:
        print(f"  {json.dumps(event)}")
    print(node.process.stderr, end="")
    print(f"\nexit status {outcome.code} after {outcome.seconds:.2f} s; bytes meanwhile:")
    _show(built, traffic)
    return outcome.code


def _show(built: Pair, traffic: Traffic) -> None:
    places = {"a": built.a, "b": built.b}
    nodes = {relay.host.label: relay.host for relay in built.world.relays}
    everybody: dict[str, Located] = {**places, **nodes}
    for near, one in everybody.items():
        for far, other in everybody.items():
            udp, tcp = (traffic.sent(one, other, protocol).bytes for protocol in ("udp", "tcp"))
            if udp or tcp:
                print(f"  {near} to {far}: {udp:,} UDP, {tcp:,} TCP")


def _shell(built: Pair, node: Node | None) -> int:
    print("\nto look around (the lab goes away with this shell):")
    for label, machine in built.world.lab.machines.items():
        print(f"  {label:12} ip netns exec {machine.name} COMMAND")
    options = " ".join(built.world.options(built.a))
    print(
        f"  at a: {sys.executable} -m anyreach connect {node.peer_id if node else 'PEER'} {options}"
    )
    host = built.a.host
    environment = {**os.environ, **host.environment, "HOME": str(host.home)}
    shell = os.environ.get("SHELL", "/bin/sh")
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(host.enter([shell]), env=environment, check=False)
    return 0
