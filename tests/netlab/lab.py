"""A laboratory of network namespaces that always goes away again.

::

    with Lab() as lab:
        a = lab.host("a", DUAL_STACK)
        b = lab.host("b", V4_ONLY)
        a.run(["ping", "-c1", str(b.v4)])

Removal happens at the end of the ``with`` block, else at interpreter exit, else (SIGKILL) by a
watchdog process. Labs of other processes, threads and the same process do not see each other.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from . import reaper
from .topology import DUAL_STACK, Host, HostKind, Internet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from .process import Process

__all__ = ["DEFAULT_MTU", "Lab"]

DEFAULT_MTU: Final = 1500
"""Bytes; Ethernet."""

_counter: Final[Iterator[int]] = itertools.count()
_watched: set[int] = set()  # process ids that have a watchdog; a fork needs its own


class Lab:
    """An internet router and hosts around it, in namespaces of their own."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        if self._owner not in _watched:
            for prefix in reaper.dead_owner_prefixes():
                reaper.remove_prefix(prefix)
            reaper.start_watchdog(self._owner)
            _watched.add(self._owner)
        self.prefix = f"{reaper.owner_prefix(self._owner)}{next(_counter)}-"
        self.scratch = Path(tempfile.gettempdir()) / f"{self.prefix}scratch"
        self.hosts: dict[str, Host] = {}
        atexit.register(self.close)
        self.scratch.mkdir(mode=0o700)
        try:
            self.internet = Internet(f"{self.prefix}internet")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def host(self, label: str, kind: HostKind = DUAL_STACK, *, mtu: int = DEFAULT_MTU) -> Host:
        """Attach one more host.

        Args:
            label: its name within this lab, letters, digits and underscores.
            kind: what kind of line it has.
            mtu: of its line, in bytes.

        Raises:
            ValueError: the label is taken or unfit.
        """
        if not label.isidentifier() or label in self.hosts or label == "internet":
            raise ValueError(f"host label {label!r} is taken or not an identifier")
        host = Host(
            f"{self.prefix}{label}",
            self.internet,
            kind,
            label=label,
            index=len(self.hosts),
            home=self.scratch / label,
            mtu=mtu,
        )
        self.hosts[label] = host
        return host

    @property
    def processes(self) -> list[Process]:
        """Every program started in any host."""
        return [process for host in self.hosts.values() for process in host.processes]

    def transcripts(self) -> str:
        """What all programs printed, for failure reports."""
        return "\n".join(process.transcript() for process in self.processes)

    def close(self) -> None:
        """End all programs and remove all namespaces. Doing it again does nothing."""
        if os.getpid() != self._owner:
            return  # a forked child must not tear down its parent's lab
        atexit.unregister(self.close)
        for process in self.processes:
            process.close()
        reaper.remove(reaper.namespaces(self.prefix))
        shutil.rmtree(self.scratch, ignore_errors=True)
