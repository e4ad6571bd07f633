"""A namespace in which programs run: with a home, its own name resolution and environment."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from . import no_af_inet6
from .namespaces import Namespace
from .process import DEFAULT_TIMEOUT, Process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

__all__ = ["Machine"]

_INHERITED_VARIABLES: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "SSLKEYLOGFILE",
)


class Machine(Namespace):
    """A namespace with programs in it. Knows nothing of how it is attached.

    Attributes:
        label: its name within the lab.
        home: its private home directory.
        processes: every program started in it.
        environment: further environment variables of programs started from now on.
        v4, v6: the addresses programs in it have, ``None`` for a family without any.
    """

    def __init__(self, name: str, *, label: str, home: Path, refuse_inet6: bool = False) -> None:
        super().__init__(name)
        self.label = label
        self.home = home
        self.processes: list[Process] = []
        self.environment: dict[str, str] = {}
        self.v4: IPv4Address | None = None
        self.v6: IPv6Address | None = None
        self._refuse_inet6 = refuse_inet6
        home.mkdir()
        self.etc_files({"hosts": _hosts_file({}), "nsswitch.conf": "hosts: files\n"})

    def address(self, version: int) -> IPv4Address | IPv6Address:
        """Its address of IP version 4 or 6.

        Raises:
            ValueError: it has none.
        """
        found = {4: self.v4, 6: self.v6}[version]
        if found is None:
            raise ValueError(f"{self.label} has no IPv{version} address")
        return found

    def unreachable(self, *destinations: IPv4Address | IPv6Address) -> None:
        """Make sends to these addresses fail at once with EHOSTUNREACH."""
        self.ip(*(f"route add unreachable {address}" for address in destinations))

    def resolve(self, names: Mapping[str, Sequence[IPv4Address | IPv6Address]]) -> None:
        """Let programs started from now on resolve these names, and no others."""
        self.etc_files({"hosts": _hosts_file(names)})

    def run(
        self, argv: Sequence[str], *, timeout: float = DEFAULT_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the exit status is the caller's to judge.

        Raises:
            subprocess.TimeoutExpired: it took more than ``timeout`` seconds.
        """
        return subprocess.run(
            self._launch(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment(),
            cwd=self.home,
            timeout=timeout,
            check=False,
        )

    def spawn(self, argv: Sequence[str]) -> Process:
        """Start a command; it is killed with the lab if it still runs then."""
        process = Process(
            self.label, self._launch(argv), env=self._environment(), cwd=str(self.home)
        )
        self.processes.append(process)
        return process

    def python(
        self, *argv: str, timeout: float = DEFAULT_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run the Python of the tests with these arguments (``"-c", source`` or a file)."""
        return self.run([sys.executable, *argv], timeout=timeout)

    def spawn_python(self, *argv: str) -> Process:
        """Start the Python of the tests with these arguments."""
        return self.spawn([sys.executable, *argv])

    def _launch(self, argv: Sequence[str]) -> list[str]:
        if self._refuse_inet6:
            argv = [sys.executable, "-I", "-S", no_af_inet6.__file__, *argv]
        return self.enter(argv)

    def _environment(self) -> dict[str, str]:
        # Nothing of the tester's own (configuration folder, proxies) may leak into a host.
        inherited = {key: os.environ[key] for key in _INHERITED_VARIABLES if key in os.environ}
        own = {"HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        return {**inherited, **own, **self.environment}


def _hosts_file(names: Mapping[str, Sequence[IPv4Address | IPv6Address]]) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    lines += [f"{address} {name}" for name, addresses in names.items() for address in addresses]
    return "\n".join(lines) + "\n"
