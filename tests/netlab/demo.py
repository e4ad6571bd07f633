"""``python -m netlab.demo``: two nodes in hostile networks reach each other through others.

The networks are namespaces of this machine with real packet filters, address translation and
proxies; everything is gone when the demonstration ends. Where they cannot be made, it says so.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from . import kinds, nodes
from .process import NoEventError
from .requirements import missing
from .world import World, pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from .process import Event
    from .sites import Site

_FILE: Final = 10_000_000
_LONG_FILE: Final = 60_000_000
_PATIENCE: Final = 60.0  # seconds


class DemoError(Exception):
    """Something did not happen as it should."""


def main() -> int:
    """Run the demonstration; the exit code."""
    reason = missing()
    if reason is not None:
        print(f"\nNo hostile networks shown: they take network namespaces ({reason}).")
        print("As root on Linux with iproute2 and nftables, `make demo` shows them too.")
        return 0
    began = time.monotonic()
    print("\nNow in hostile networks: each site a namespace with a packet filter of its own")
    try:
        _through_a_proxy()
        _past_a_dead_relay()
    except (DemoError, NoEventError, OSError) as error:
        print(f"\nthe demonstration failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    print(f"\nThat took {time.monotonic() - began:.1f} s. All networks are gone.")
    return 0


def _through_a_proxy() -> None:
    with pair(kinds.PROXY_AUTH, kinds.SYMMETRIC_RANDOM) as (world, office, home):
        _step(
            "An office where only an HTTP proxy with a password gets out, and a home behind a NAT"
            " that gives every destination another random port"
        )
        proxy = office.proxy
        assert proxy is not None
        way_out = _redacted(proxy.url)
        _say("office", f"{office.host.v4}; nothing passes but CONNECT through {way_out}")
        _say("home", f"{home.host.v4}, seen as {home.external(4)}")
        relay = world.relays[0]
        _say("both know", f"{relay.node.peer_id[:10]}…, a node at {relay.host.v4}, UDP and TCP 443")
        node = world.start_node(home)
        held = world.carrier_of(node)
        _say("the home holds", f"{held['address']} at that node, over {held['carrier']}")

        _step("The office connects to the home, by its PeerId alone")
        connected = world.run(office, "connect", node.peer_id, timeout=_PATIENCE)
        result = connected.last("result")
        if connected.code != 0:
            raise DemoError(str(result["error"]))
        _say("method", result["method"])
        _say("by way of", result["remote"])
        _say("connected in", f"{result['ms']:.0f} ms, joining included")
        _say("key exchange", f"{result['group']}, from end to end")

        _step(f"And sends it {_FILE // 1_000_000} MB")
        before = world.counters.read()
        sent = _send(world, office, node, _FILE)
        traffic = world.counters.read() - before
        _say("rate", f"{sent:.1f} MB/s, SHA-256 equal at both ends")
        _say("from the office", f"{traffic.sent(office, relay.host).bytes:,} bytes to the relay")
        _say("straight home", f"{traffic.sent(office, home).bytes} bytes")
        _say("tunnels in the proxy", proxy.tunnels)


def _past_a_dead_relay() -> None:
    with pair(kinds.SYMMETRIC_RANDOM, kinds.TCP_443_ONLY, relays=2) as (world, home, hotel):
        _step(
            "A home as before, and a hotel that lets out TCP to port 443 and nothing else; two"
            " nodes relay, and the one that carries the file is killed"
        )
        node = world.start_node(hotel)
        for number in (0, 1):
            relay = world.relays[number].node.peer_id
            held = node.process.wait_event("relay", partial(_is_at, relay), timeout=_PATIENCE)
            _say("the hotel holds", f"{held['address']} over {held['carrier']}")
        before = world.counters.read()

        def carried() -> list[int]:
            traffic = world.counters.read() - before
            return [traffic.sent(home, relay.host).bytes for relay in world.relays]

        def kill() -> None:
            _until(lambda: max(carried()) > _LONG_FILE // 3)
            amounts = carried()
            busiest = amounts.index(max(amounts))
            world.relays[busiest].node.process.kill()
            _say("killed", f"relay {busiest + 1}, after {amounts[busiest]:,} bytes")

        rate = _send(world, home, node, _LONG_FILE, meanwhile=kill)
        _say("the same connection", f"went on: {rate:.1f} MB/s in all, SHA-256 equal at both ends")
        for number, amount in enumerate(carried(), 1):
            _say(f"relay {number} carried", f"{amount:,} bytes")
        ends = node.process.named("disconnected")
        lost = [event for event in ends if event["reason"] not in ("closed", "local")]
        known = {relay.node.peer_id for relay in world.relays}
        if any(event["peer_id"] not in known for event in lost):
            raise DemoError("the connection was lost and made again")


def _send(
    world: World,
    site: Site,
    node: nodes.Node,
    size: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> float:
    """Send a file of random bytes; MB/s."""
    file = nodes.make_file(site.host, f"random{size}.bin", size)
    process = site.host.spawn_python(
        "-m", "anyreach", "send", node.peer_id, str(file), *world.options(site),
        "--ephemeral", "--json",
    )  # fmt: skip
    meanwhile()
    if process.wait(_PATIENCE) != 0:
        raise DemoError(f"the file was not sent\n{process.transcript()}")
    if nodes.sha256(node.inbox / file.name) != nodes.sha256(file):
        raise DemoError("the file was damaged")
    return float(process.named("sent")[-1]["mb_per_s"])


def _is_at(relay: str, event: Event) -> bool:
    return bool(event["peer_id"] == relay)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError("nothing moves")
        time.sleep(0.02)


def _redacted(url: str) -> str:
    scheme, _, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}:***@{place}" if at else url


_steps: Final = iter(range(1, 100))


def _step(title: str) -> None:
    print(f"\n{next(_steps)}. {title}", flush=True)


def _say(what: str, value: object) -> None:
    print(f"   {what:<22}{value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
