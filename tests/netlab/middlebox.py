"""The programs of ``middlebox/``: built by cargo where needed, started in a machine of the lab."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .machine import Machine
    from .process import Process

__all__ = ["MiddleboxMissingError", "add_tun", "command", "program", "start"]

_SOURCES: Final = Path(__file__).parent / "middlebox"
_ROOT: Final = Path(__file__).parents[2]
_PROGRAM_VARIABLE: Final = "ANYREACH_MIDDLEBOX"

_QUEUE: Final = 10_000
"""Packets a TUN device holds while its program is not running; the default of 500 is less than
one congestion window of a fast line."""

_building = threading.Lock()


class MiddleboxMissingError(Exception):
    """The program is not built and cannot be built here."""


@cache
def _program() -> Path:
    given = os.environ.get(_PROGRAM_VARIABLE)
    if given:
        return Path(given)
    built = Path(os.environ.get("CARGO_TARGET_DIR", _ROOT / "target")) / "debug/middlebox"
    # Cargo would find out as well, but waits for any other build that is going on.
    if not _up_to_date(built):
        cargo = shutil.which("cargo")
        if cargo is None:
            raise MiddleboxMissingError(f"no cargo to build {_SOURCES}; set {_PROGRAM_VARIABLE}")
        manifest = str(_SOURCES / "Cargo.toml")
        subprocess.run([cargo, "build", "--quiet", "--manifest-path", manifest], check=True)
        # Cargo leaves a program alone that would come out the same.
        built.touch()
    return built


def _up_to_date(built: Path) -> bool:
    sources = [_SOURCES / "Cargo.toml", *_SOURCES.glob("src/**/*.rs")]
    newest = max(path.stat().st_mtime for path in sources)
    return built.exists() and built.stat().st_mtime >= newest


def program() -> Path:
    """The program: ``ANYREACH_MIDDLEBOX``, or built by cargo.

    Raises:
        MiddleboxMissingError: there is no cargo.
        subprocess.CalledProcessError: it does not build.
    """
    with _building:
        return _program()


def add_tun(machine: Machine, *names: str) -> None:
    """Make TUN interfaces for the program to attach to."""
    lines = [
        line
        for name in names
        for line in (
            f"tuntap add dev {name} mode tun",
            f"link set {name} txqueuelen {_QUEUE} up",
        )
    ]
    machine.ip(*lines)


def start(machine: Machine, role: str, **words: object) -> Process:
    """Start the program in a machine; returns when it works. Skips the test if it cannot be had."""
    try:
        path = program()
    except MiddleboxMissingError as missing:
        import pytest  # noqa: PLC0415 (the demonstration runs without it)

        pytest.skip(str(missing))
    process = machine.spawn([str(path), role, *(f"{key}={value}" for key, value in words.items())])
    process.wait_event("ready")
    return process


def command(process: Process, line: str) -> None:
    """Give a running program a command; returns when it is in force."""
    seen = len(process.events)
    process.write(line)
    process.wait_event("set", since=seen)
