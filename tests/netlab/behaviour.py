"""What a NAT or firewall does, measured from behind it with plain sockets (RFC 5780)."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .policies import Dependence, Ports

if TYPE_CHECKING:
    from .lab import Lab
    from .machine import Machine
    from .process import Process

__all__ = ["Behaviour", "Server", "Watch"]

_SCRIPT: Final = str(Path(__file__).with_name("nat_probe.py"))
_TIMEOUT: Final = 30.0  # seconds; where nothing is answered every question is asked three times
_STEP: Final = 8  # ports; a sequential NAT goes on by one per mapping, others use it, too


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What was found.

    Attributes:
        mapping, filtering: in the terms of RFC 4787. An open host is endpoint-independent in both.
        ports: how external ports are chosen.
        external: the address the server saw.
    """

    mapping: Dependence
    filtering: Dependence
    ports: Ports
    external: str


class Server:
    """A server on an internet host that has two addresses of each family."""

    def __init__(self, lab: Lab, label: str = "prober") -> None:
        host = lab.host(label)
        v4, v6_site = lab.internet.allot()
        assert v6_site is not None
        v6 = v6_site[1]
        host.ip(f"address add {v4}/32 dev lo", f"address add {v6}/128 dev lo nodad")
        host.routed += [IPv4Network(v4), v6_site]
        host.line.readdressed()
        self._addresses: dict[int, tuple[IPv4Address | IPv6Address, ...]] = {
            4: (host.address(4), v4),
            6: (host.address(6), v6),
        }
        everything = [str(address) for pair in self._addresses.values() for address in pair]
        host.spawn_python("-I", "-S", _SCRIPT, "serve", *everything).wait_event("serving")

    def address(self, version: int) -> IPv4Address | IPv6Address:
        """Its first address of an IP version."""
        return self._addresses[version][0]

    def classify(self, client: Machine, version: int = 4) -> Behaviour | None:
        """What is between a machine and this server; ``None`` if no UDP gets through."""
        found = self._ask(client, "classify", *map(str, self._addresses[version]))
        if not found["udp"]:
            return None
        own, seen = found["own"], [(address, port) for address, port in found["seen"]]
        return Behaviour(
            Dependence(found["mapping"]),
            Dependence(found["filtering"]),
            _ports(own[0], list(dict.fromkeys(port for _, port in seen))),
            seen[0][0],
        )

    def hairpins(self, one: Machine, other: Machine) -> bool:
        """Whether machines behind one NAT reach each other by their external addresses.

        Raises:
            AssertionError: they do, but not under their external addresses (RFC 4787 REQ-9).
        """
        sockets = [self.watch(machine) for machine in (one, other)]
        addresses = [socket.look() for socket in sockets]
        assert addresses[0] is not None
        assert addresses[1] is not None
        # Each opens its filter for the other first, so that only hairpinning is measured.
        sockets[1].send(addresses[0])
        sockets[0].receive()
        sockets[0].send(addresses[1])
        sender = sockets[1].receive()
        assert sender in (addresses[0], None), "hairpinned with a private source"
        return sender is not None

    def lasts(self, client: Machine, seconds: float, version: int = 4) -> bool:
        """Whether a mapping still lets answers in so long after the last packet out."""
        address = str(self.address(version))
        return bool(self._ask(client, "lasts", address, str(seconds))["works"])

    def watch(self, client: Machine, version: int = 4) -> Watch:
        """One socket of a machine, to ask again and again."""
        process = client.spawn_python("-I", "-S", _SCRIPT, "watch", str(self.address(version)))
        process.wait_event("watching")
        return Watch(process)

    def _ask(self, client: Machine, *argv: str) -> Any:
        done = client.python("-I", "-S", _SCRIPT, *argv, timeout=_TIMEOUT)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


class Watch:
    """One socket behind a NAT, whose external address is looked at again and again."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def look(self) -> tuple[str, int] | None:
        """Its external address now, or ``None`` if no answer comes."""
        return self._ask("look", "seen", "address")

    def send(self, to: tuple[str, int]) -> None:
        """Send one datagram."""
        self._process.send({"do": "send", "to": to})

    def receive(self) -> tuple[str, int] | None:
        """Where the next datagram comes from, or ``None`` if none comes soon."""
        return self._ask("receive", "received", "sender")

    def _ask(self, command: str, event: str, key: str) -> tuple[str, int] | None:
        seen = len(self._process.events)
        self._process.send({"do": command})
        address = self._process.wait_event(event, since=seen)[key]
        return None if address is None else (address[0], address[1])


def _ports(own: int, external: list[int]) -> Ports:
    """How the external ports, in the order they were first seen, were chosen."""
    if external[0] == own:
        return Ports.PRESERVE
    steps = [later - earlier for earlier, later in itertools.pairwise(external)]
    return Ports.SEQUENTIAL if all(0 < step <= _STEP for step in steps) else Ports.RANDOM
