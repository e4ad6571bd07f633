"""Nodes under remote control of a test, for what the command line does not do.

A test can start a transfer, change the network, and then ask how the transfer ended; and it can
set every configuration field. The other half, ``node_agent``, uses the public Python interface.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from . import nodes
from .process import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Collection

    from .lab import Lab
    from .machine import Machine
    from .process import Event, Process
    from .topology import Host

__all__ = ["STRAIGHT", "Agent", "ConnectFailedError", "Finished", "pair"]

_SCRIPT: Final = str(Path(__file__).with_name("node_agent.py"))

STRAIGHT: Final = frozenset({"direct", "punched"})
"""Methods of paths that go through no relay."""


class Finished(Protocol):
    """Waits for the end of a transfer and checks that it arrived intact."""

    def __call__(self, *, timeout: float) -> Event: ...


_HostT_co = TypeVar("_HostT_co", bound="Machine", covariant=True)

_CONNECTING: Final = 45.0
"""Seconds; more than a node itself allows, so that it is the node that says why not."""


class ConnectFailedError(AssertionError):
    """A node could not connect; says why."""


class Agent(Generic[_HostT_co]):
    """One node in a process of its own."""

    def __init__(self, host: _HostT_co, **config: object) -> None:
        self.host = host
        self.process: Process = host.spawn_python(_SCRIPT)
        self.process.send(config)
        self._tags = itertools.count()

    @functools.cached_property
    def peer_id(self) -> str:
        """Text form of its PeerId, once it is ready."""
        return str(self.process.wait_event("ready")["peer_id"])

    def wait_reserved(self, relay: str, *, timeout: float = 30.0) -> None:
        """Wait until it holds an address at the relay with that PeerId."""
        self.process.wait_event(
            "relay",
            lambda event: event["peer_id"] == relay and event["state"] == "reserved",
            timeout=timeout,
        )

    def connect(self, other: Agent[Machine], version: int) -> Event:
        """Connect to another agent by its id and address of that IP version."""
        peer = f"{other.peer_id}@{nodes.endpoint(other.host.address(version))}"
        return self._connect(other, peer)

    def connect_by_id(self, other: Agent[Machine]) -> Event:
        """Connect to another agent that the known peers of both tell of.

        Raises:
            ConnectFailedError: it says that it cannot.
        """
        return self._connect(other, other.peer_id)

    def _connect(self, other: Agent[Machine], peer: str) -> Event:
        ours, theirs = len(self.process.events), len(other.process.events)
        self.process.send({"do": "connect", "peer": peer})
        ended = self.process.wait_any(
            ("connected", "not_connected"), since=ours, timeout=_CONNECTING
        )
        if ended["event"] == "not_connected":
            raise ConnectFailedError(f"{ended['error']}\n{self.process.transcript()}")
        other.process.wait_event(
            "accepted", lambda event: event["peer_id"] == self.peer_id, since=theirs
        )
        return ended

    def ways(self, other: Agent[Machine], *, since: int = 0) -> list[Event]:
        """The paths that data to another agent took, in order of time.

        Args:
            other: the agent.
            since: ignore that many events from the start.
        """
        events = self.process.events[since:]
        return [e for e in events if e.get("event") == "moved" and e["peer_id"] == other.peer_id]

    def way(self, other: Agent[Machine]) -> Event:
        """The path that data to another agent takes now."""
        return self.ways(other)[-1]

    def wait_way(
        self,
        other: Agent[Machine],
        methods: Collection[str] = STRAIGHT,
        *,
        since: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Event:
        """Wait until data to another agent takes a path of one of these methods.

        Raises:
            NoEventError: it does not in time.
        """
        return self.process.wait_event(
            "moved",
            lambda event: event["peer_id"] == other.peer_id and event["method"] in methods,
            since=since,
            timeout=timeout,
        )

    def explain(self, other: Agent[Machine]) -> str:
        """What the node says about a connection, for failure reports."""
        seen = len(self.process.events)
        self.process.send({"do": "explain", "to": other.peer_id})
        return str(self.process.wait_event("explained", since=seen)["text"])

    def close(self, other: Agent[Machine] | None = None) -> None:
        """Close a connection in an orderly way, by default the latest."""
        self.process.send({"do": "close", **_to(other)})

    def start_transfer(self, size: int, other: Agent[Machine] | None = None) -> Finished:
        """Start sending bytes on a new stream; the result waits until they arrived.

        Args:
            size: how many.
            other: to whom; by default on the latest connection.
        """
        tag = next(self._tags)
        self.process.send({"do": "transfer", "bytes": size, "tag": tag, **_to(other)})
        return functools.partial(self._finished, tag)

    def transfer(self, size: int, *, timeout: float = DEFAULT_TIMEOUT) -> Event:
        """Send bytes on a new stream and wait until the other end got them intact."""
        return self.start_transfer(size)(timeout=timeout)

    def start_flow(self, other: Agent[Machine], rate: float) -> Finished:
        """Send to another agent at a steady rate in bytes per second, on a new stream.

        The result ends that and waits until everything arrived.
        """
        tag = next(self._tags)
        self.process.send({"do": "flow", "to": other.peer_id, "rate": rate, "tag": tag})

        def finished(*, timeout: float) -> Event:
            self.process.send({"do": "end", "tag": tag})
            return self._finished(tag, timeout=timeout)

        return finished

    def pauses(self, *, since: int = 0) -> list[Event]:
        """When incoming streams paused, and for how long."""
        return [e for e in self.process.events[since:] if e.get("event") == "paused"]

    def method(self, other: Agent[Machine]) -> str:
        """What the node says now of the path that data to another agent takes.

        One that was dialed learns a little later that it was so through a relay of the other.
        """
        seen = len(self.process.events)
        self.process.send({"do": "path", "to": other.peer_id})
        return str(self.process.wait_event("path", since=seen)["method"])

    def mtu(self) -> int:
        """Largest UDP payload in bytes that the path in use is known to carry."""
        seen = len(self.process.events)
        self.process.send({"do": "path"})
        return int(self.process.wait_event("path", since=seen)["mtu"])

    def lost(self) -> list[Event]:
        """Connections that ended so far."""
        return self.process.named("lost")

    def _finished(self, tag: int, *, timeout: float) -> Event:
        ended = self.process.wait_any(
            ("transferred", "transfer_failed"), lambda e: e["tag"] == tag, timeout=timeout
        )
        assert ended["event"] == "transferred", ended["error"]
        assert ended["intact"], "the receiver got other bytes"
        return ended


def _to(other: Agent[Machine] | None) -> dict[str, str]:
    return {} if other is None else {"to": other.peer_id}


def pair(lab: Lab, version: int, **config: object) -> tuple[Agent[Host], Agent[Host]]:
    """Two agents on new hosts ``a`` and ``b``, connected by ``a``, both with this configuration."""
    a, b = (Agent(lab.host(name), **config) for name in ("a", "b"))
    a.connect(b, version)
    return a, b
