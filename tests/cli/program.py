"""Runs the program and talks to it through its JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Seconds any single thing may take; far above what it needs on a busy machine.
PATIENCE = 30.0

Event = dict[str, Any]


class Program:
    """A running ``anyreach`` with ``--json``.

    Use as a context manager: the process never outlives the block.
    """

    def __init__(
        self, *arguments: str | Path, home: Path, env: dict[str, str] | None = None
    ) -> None:
        self.home = home
        self.events: list[Event] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "anyreach", *map(str, arguments), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(home, env),
            text=True,
            encoding="utf-8",
        )
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()

    @property
    def stderr(self) -> str:
        """What it said on standard error; complete once it ended."""
        return "".join(self._errors)

    def wait_for(self, event: str, **fields: object) -> Event:
        """The next event of this name whose fields have these values.

        Fails when the program ends before, or takes too long.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                raise AssertionError(self._report(f"no {event} in time")) from None
            if line is None:
                self._lines.put(None)
                raise AssertionError(self._report(f"ended without {event}"))
            got = self._parse(line)
            if got["event"] == event and all(got.get(k) == v for k, v in fields.items()):
                return got

    def finish(self, expected: int | None = 0) -> list[Event]:
        """Waits for the end, checks the exit code, returns all events."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._report("does not end")) from None
        for thread in self._threads:
            thread.join(PATIENCE)
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            self._parse(line)
        if expected is not None:
            assert code == expected, self._report(f"exit code {code}")
        return self.events

    def stop(self, number: int = signal.SIGTERM, expected: int = 0) -> list[Event]:
        """Asks it to end and waits until it did."""
        self.process.send_signal(number)
        return self.finish(expected)

    def kill(self) -> None:
        """Ends it at once, as a power cut would."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def _parse(self, line: str) -> Event:
        event = json.loads(line)
        assert isinstance(event, dict)
        self.events.append(event)
        return event

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self.process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):
            for line in self.process.stderr:
                self._errors.append(line)

    def _report(self, problem: str) -> str:
        code = self.process.poll()
        return f"{problem} (exit code {code})\nevents: {self.events}\nstderr: {self.stderr}"


def environment(home: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a program whose user has ``home``."""
    env = {k: v for k, v in os.environ.items() if k not in ("SSLKEYLOGFILE", "NO_COLOR")}
    return {**env, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), **(extra or {})}


def run(
    *arguments: str | Path,
    home: Path,
    expected: int = 0,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs the program to its end, without ``--json``."""
    done = subprocess.run(
        [sys.executable, "-m", "anyreach", *map(str, arguments)],
        capture_output=True,
        env=environment(home, env),
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == expected, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Waits until ``condition()`` is true."""
    for _ in _ticks():
        if condition():
            return
    raise AssertionError(f"never happened: {what}")


def _ticks() -> Iterator[None]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
        time.sleep(0.005)


def port_of(ready: Event) -> int:
    """The port a node said it is bound to."""
    return int(ready["udp"][0].rpartition(":")[2])
