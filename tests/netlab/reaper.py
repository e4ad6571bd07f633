"""Who owns a namespace, and how namespaces of an owner that is gone are removed.

Every namespace name starts with the owner's process id and start time, so anybody can tell
whether the owner still lives, even after its id was reused. Run as a script this file is the
watchdog: it outlives its owner (also a SIGKILL of it) and then removes what the owner left.
It uses the standard library only and no sibling module, so that it starts quickly and cannot
fail because of the code under test.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "NETNS_CONFIG",
    "NETNS_RUN",
    "dead_owner_prefixes",
    "namespaces",
    "owner_prefix",
    "remove",
    "remove_prefix",
    "start_watchdog",
]

NETNS_RUN = Path("/run/netns")
"""Where iproute2 pins named network namespaces."""

NETNS_CONFIG = Path("/etc/netns")
"""Files in ``NETNS_CONFIG/<name>`` replace those of /etc inside ``ip netns exec <name>``."""

_PREFIX = "anyreach"
_REMOVE_ROUNDS = 5  # a process may fork while we kill; five looks are plenty for test programs


def owner_prefix(pid: int) -> str:
    """Prefix of all names that belong to process ``pid``.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return f"{_PREFIX}-{pid}-{_start_time(pid)}-"


def namespaces(prefix: str = f"{_PREFIX}-") -> list[str]:
    """Names of the existing namespaces that start with ``prefix``, sorted."""
    try:
        return sorted(entry.name for entry in NETNS_RUN.iterdir() if entry.name.startswith(prefix))
    except FileNotFoundError:
        return []


def dead_owner_prefixes() -> set[str]:
    """Prefixes whose owner is no longer running, of namespaces and of scratch directories."""
    names = [*namespaces(), *(path.name for path in _scratch(f"{_PREFIX}-"))]
    prefixes = {prefix for name in names if (prefix := _prefix_of(name)) is not None}
    return {prefix for prefix in prefixes if not _is_alive(prefix)}


def remove(names: Iterable[str]) -> None:
    """Kill every process inside the named namespaces, then delete these. Missing ones are fine."""
    wanted = [name for name in names if (NETNS_RUN / name).exists()]
    for _ in range(_REMOVE_ROUNDS):
        if not _kill_inhabitants(wanted):
            break
        time.sleep(0.01)
    if wanted:
        # -force: go on when another reaper was faster.
        subprocess.run(
            ["ip", "-force", "-batch", "-"],
            input="".join(f"netns delete {name}\n" for name in wanted),
            text=True,
            capture_output=True,
            check=False,
        )
    for name in wanted:
        shutil.rmtree(NETNS_CONFIG / name, ignore_errors=True)


def remove_prefix(prefix: str) -> list[str]:
    """Remove all namespaces and scratch directories of ``prefix``; returns the namespaces."""
    names = namespaces(prefix)
    remove(names)
    for path in _scratch(prefix):
        shutil.rmtree(path, ignore_errors=True)
    return names


def start_watchdog(pid: int) -> None:
    """Start the process that cleans up once ``pid`` is gone; returns when it is watching."""
    prefix = owner_prefix(pid)
    subprocess.run(
        [sys.executable, "-I", "-S", __file__, str(pid), prefix],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=30,
    )


def _start_time(pid: int) -> int:
    """Start of ``pid`` in clock ticks since boot (field 22 of proc(5) ``stat``)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    # The second field is the command in parentheses and may itself contain both.
    return int(stat.rpartition(")")[2].split()[19])


def _prefix_of(name: str) -> str | None:
    parts = name.split("-", 3)
    if len(parts) < 4 or not (parts[1].isdigit() and parts[2].isdigit()):
        return None
    return "-".join(parts[:3]) + "-"


def _is_alive(prefix: str) -> bool:
    pid = int(prefix.split("-")[1])
    try:
        return owner_prefix(pid) == prefix
    except ProcessLookupError:
        return False


def _scratch(prefix: str) -> list[Path]:
    return [path for path in Path(tempfile.gettempdir()).glob(f"{prefix}*") if path.is_dir()]


def _kill_inhabitants(names: Sequence[str]) -> bool:
    """Kill what runs inside the namespaces; true if there was anything."""
    inodes = set()
    for name in names:
        try:
            inodes.add((NETNS_RUN / name).stat().st_ino)
        except OSError:
            continue
    found = False
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if (entry / "ns/net").stat().st_ino in inodes:
                os.kill(int(entry.name), signal.SIGKILL)
                found = True
        except OSError:  # gone meanwhile, or already a zombie
            continue
    return found


def _watch(pid: int, prefix: str) -> None:
    try:
        owner = os.pidfd_open(pid)
    except ProcessLookupError:
        remove_prefix(prefix)
        return
    if not _is_alive(prefix):
        remove_prefix(prefix)
        return
    if os.fork() > 0:
        os._exit(0)  # tells start_watchdog() that the owner is being watched
    os.setsid()  # out of reach of Ctrl-C and of signals to the owner's process group
    poll = select.poll()
    poll.register(owner, select.POLLIN)
    poll.poll()
    while remove_prefix(prefix):
        time.sleep(0.05)  # a command the owner had started may still have created one


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
