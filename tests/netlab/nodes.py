"""anyreach in the lab: long-running nodes and one-shot commands of the real command line.

Everything runs as ``python -m anyreach ... --json`` in a process of its own inside a host, with
a fresh identity, as a user would run it.
"""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .process import DEFAULT_TIMEOUT, Event, Process

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from .machine import Machine

__all__ = ["PORT", "Node", "Outcome", "endpoint", "launch", "make_file", "run", "sha256", "start"]

PORT: Final = 9000
"""Default port of ``anyreach node``."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running ``anyreach node``.

    Attributes:
        host: where it runs.
        process: its process, for events and signals.
        ready: its ready event.
        inbox: the folder it receives files into.
    """

    host: Machine
    process: Process
    ready: Event
    inbox: Path

    @property
    def peer_id(self) -> str:
        """Text form of its PeerId."""
        return str(self.ready["peer_id"])

    @property
    def ticket(self) -> str:
        """The ticket it printed."""
        return str(self.ready["ticket"])

    def at(self, version: int) -> str:
        """``ID@HOST:PORT`` with its public address of that IP version."""
        return f"{self.peer_id}@{endpoint(self.host.address(version))}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a one-shot command ended.

    Attributes:
        code: exit status.
        events: the JSON lines it printed.
        stderr: what it told people.
        seconds: how long the process lived, the interpreter's start included.
    """

    code: int
    events: tuple[Event, ...]
    stderr: str
    seconds: float

    def last(self, event: str) -> Event:
        """The last event of that name.

        Raises:
            AssertionError: there is none.
        """
        found = [item for item in self.events if item.get("event") == event]
        assert found, f"no {event!r} event: exit status {self.code}, {self.events}\n{self.stderr}"
        return found[-1]


def endpoint(address: IPv4Address | IPv6Address, port: int = PORT) -> str:
    """``HOST:PORT`` as anyreach writes it."""
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def start(host: Machine, *options: str, config: str = "", ephemeral: bool = True) -> Node:
    """Start a node on the default address and port; returns when it is ready.

    Args:
        host: where.
        options: further command line options.
        config: contents of a configuration file, if any.
        ephemeral: with a fresh identity.
    """
    return launch(host, *options, config=config, ephemeral=ephemeral)()


def launch(
    host: Machine, *options: str, config: str = "", ephemeral: bool = True
) -> Callable[[], Node]:
    """As :func:`start` without waiting: the result waits until the node is ready."""
    inbox = host.home / f"inbox{len(host.processes)}"
    argv = ["node", "--receive", str(inbox), *options]
    if config:
        path = host.home / f"config{len(host.processes)}.toml"
        path.write_text(config)
        argv += ["--config", str(path)]
    if ephemeral:
        argv.append("--ephemeral")
    process = host.spawn_python("-m", "anyreach", *argv, "--json")
    return lambda: Node(host, process, process.wait_event("ready"), inbox)


def run(host: Machine, *argv: str, timeout: float = DEFAULT_TIMEOUT) -> Outcome:
    """Run a command to its end, which must come within ``timeout`` seconds."""
    began = time.monotonic()
    process = host.spawn_python("-m", "anyreach", *argv, "--ephemeral", "--json")
    try:
        code = process.wait(timeout)
    finally:
        process.close()
    return Outcome(code, tuple(process.events), process.stderr, time.monotonic() - began)


def make_file(host: Machine, name: str, size: int) -> Path:
    """A file of incompressible bytes in the host's home; the same for the same name and size."""
    path = host.home / name
    path.write_bytes(random.Random(f"{name} {size}").randbytes(size))
    return path


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
