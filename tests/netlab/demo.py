"""``python -m netlab.demo``: two nodes in hostile networks reach each other through others.

The networks are namespaces of this machine with real packet filters, address translation and
proxies; everything is gone when the demonstration ends. Where they cannot be made, it says so.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from . import kinds, middlebox, nodes
from .emulation import Quality
from .live_table import DemoError, LiveTable
from .process import NoEventError
from .requirements import missing
from .world import World, pair

if TYPE_CHECKING:
    from .sites import Site
    from .topology import Host

_FILE: Final = 10_000_000
_LONG_FILE: Final = 45_000_000
_LINE: Final = Quality(delay=0.01, rate=4_000_000)
"""Of either site and of the relay: 40 ms there and back between any two."""

_CALM: Final = 3.0
"""Seconds to watch what has been reached."""

_PATIENCE: Final = 60.0  # seconds


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
        _past_two_nats()
        _through_a_proxy()
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


def _past_two_nats() -> None:
    with pair(kinds.CGNAT_PORT_RESTRICTED, kinds.SYMMETRIC_SEQUENTIAL) as (world, phone, flat):
        _step(
            "A phone behind its carrier's NAT, and a flat behind a NAT that gives every destination"
            " the next port; the relay carries data only until there is a way without it"
        )
        _emulate(phone, flat, world.relays[0].host)
        _say("phone", f"{phone.host.v4}, seen as {phone.external(4)}")
        _say("flat", f"{flat.host.v4}, seen as {flat.external(4)}")
        node = world.start_node(flat)
        _step(f"The phone sends the flat {_LONG_FILE // 1_000_000} MB, by its PeerId alone")
        file = nodes.make_file(phone.host, "film.bin", _LONG_FILE)
        process = phone.host.spawn_python(
            "-m", "anyreach", "send", node.peer_id, str(file), *world.options(phone),
            "--ephemeral", "--json",
        )  # fmt: skip
        table = LiveTable(process, node.peer_id, world, phone, flat)
        table.until(lambda: table.is_direct, _PATIENCE)
        table.during(_CALM)
        with world.lab.cut(phone, flat):
            table.say("the way between the two is cut; both keep the internet")
            table.until(lambda: not table.is_direct, _PATIENCE)
            table.during(_CALM)
        table.say("the way is back")
        table.until(lambda: table.is_direct, _PATIENCE)
        table.until(lambda: process.returncode is not None, _PATIENCE)
        if process.wait() != 0:
            raise DemoError(f"the file was not sent\n{process.transcript()}")
        if nodes.sha256(node.inbox / file.name) != nodes.sha256(file):
            raise DemoError("the file was damaged")
        if len([e for e in process.named("connected") if e["peer_id"] == node.peer_id]) != 1:
            raise DemoError("the connection was lost and made again")
        _say("the same connection", "from beginning to end; SHA-256 equal at both ends")
        _say("direct at first after", f"{table.first_direct:.1f} s")


def _emulate(*places: Site | Host) -> None:
    """Give the lines delay and a rate, where the program for that can be built."""
    try:
        middlebox.program()
    except middlebox.MiddleboxMissingError as missing:
        _say("lines without delay", missing)
        return
    for place in places:
        place.line.emulate(_LINE)


def _send(
    world: World,
    site: Site,
    node: nodes.Node,
    size: int,
) -> float:
    """Send a file of random bytes; MB/s."""
    file = nodes.make_file(site.host, f"random{size}.bin", size)
    process = site.host.spawn_python(
        "-m", "anyreach", "send", node.peer_id, str(file), *world.options(site),
        "--ephemeral", "--json",
    )  # fmt: skip
    if process.wait(_PATIENCE) != 0:
        raise DemoError(f"the file was not sent\n{process.transcript()}")
    if nodes.sha256(node.inbox / file.name) != nodes.sha256(file):
        raise DemoError("the file was damaged")
    return float(process.named("sent")[-1]["mb_per_s"])


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
