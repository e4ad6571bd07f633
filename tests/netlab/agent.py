"""Nodes under remote control of a test, for what the command line does not do.

A test can start a transfer, change the network, and then ask how the transfer ended; and it can
set every configuration field. The other half, ``node_agent``, uses the public Python interface.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from . import nodes
from .process import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from .lab import Lab
    from .machine import Machine
    from .process import Event, Process
    from .topology import Host

__all__ = ["Agent", "Finished", "pair"]

_SCRIPT: Final = str(Path(__file__).with_name("node_agent.py"))


class Finished(Protocol):
    """Waits for the end of a transfer and checks that it arrived intact."""

    def __call__(self, *, timeout: float) -> Event: ...


_HostT_co = TypeVar("_HostT_co", bound="Machine", covariant=True)


class Agent(Generic[_HostT_co]):
    """One node in a process of its own."""

    def __init__(self, host: _HostT_co, **config: object) -> None:
        self.host = host
        self.process: Process = host.spawn_python(_SCRIPT)
        self.process.send(config)
        self.peer_id = str(self.process.wait_event("ready")["peer_id"])
        self._tags = itertools.count()

    def connect(self, other: Agent[Machine], version: int) -> None:
        """Connect to another agent by its id and address of that IP version."""
        peer = f"{other.peer_id}@{nodes.endpoint(other.host.address(version))}"
        self.process.send({"do": "connect", "peer": peer})
        self.process.wait_event("connected")
        other.process.wait_event("accepted")

    def connect_by_id(self, other: Agent[Machine]) -> None:
        """Connect to another agent that the known peers of both tell of."""
        self.process.send({"do": "connect", "peer": other.peer_id})
        self.process.wait_event("connected")
        other.process.wait_event("accepted")

    def close(self) -> None:
        """Close the connection in an orderly way."""
        self.process.send({"do": "close"})

    def start_transfer(self, size: int) -> Finished:
        """Start sending bytes on a new stream; the result waits until they arrived."""
        tag = next(self._tags)
        self.process.send({"do": "transfer", "bytes": size, "tag": tag})

        def finished(*, timeout: float) -> Event:
            event = self.process.wait_event(
                "transferred", lambda e: e["tag"] == tag, timeout=timeout
            )
            assert event["intact"], "the receiver got other bytes"
            return event

        return finished

    def transfer(self, size: int, *, timeout: float = DEFAULT_TIMEOUT) -> Event:
        """Send bytes on a new stream and wait until the other end got them intact."""
        return self.start_transfer(size)(timeout=timeout)

    def mtu(self) -> int:
        """Largest UDP payload in bytes that the path in use is known to carry."""
        seen = len(self.process.events)
        self.process.send({"do": "path"})
        return int(self.process.wait_event("path", since=seen)["mtu"])

    def lost(self) -> list[Event]:
        """Connections that ended so far."""
        return self.process.named("lost")


def pair(lab: Lab, version: int, **config: object) -> tuple[Agent[Host], Agent[Host]]:
    """Two agents on new hosts ``a`` and ``b``, connected by ``a``, both with this configuration."""
    a, b = (Agent(lab.host(name), **config) for name in ("a", "b"))
    a.connect(b, version)
    return a, b
