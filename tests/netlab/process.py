"""A program running in a host of the lab, read line by line as JSON events."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

__all__ = ["DEFAULT_TIMEOUT", "Event", "NoEventError", "Process"]

Event = dict[str, Any]

DEFAULT_TIMEOUT: Final = 20.0
"""Seconds. A bound on liveness only: a busy two-core machine needs at most a few of them."""

_TRANSCRIPT_LINES: Final = 60


class NoEventError(AssertionError):
    """The awaited event did not come: the time was up, or the program ended without it."""


class Process:
    """A started program. Its standard output is collected; JSON objects become events.

    Events are kept from the start, so waiting for one that already came returns at once.
    """

    def __init__(self, name: str, argv: Sequence[str], *, env: dict[str, str], cwd: str) -> None:
        self.name = name
        self.argv = tuple(argv)
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._output: list[str] = []
        self._errors: list[str] = []
        self._reading = 2
        self._popen = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=env,
            cwd=cwd,
            # Ctrl-C is for the tests; they end their programs themselves.
            start_new_session=True,
        )
        self._threads = [
            threading.Thread(target=self._read, args=(stream, keep), daemon=True)
            for stream, keep in (
                (self._popen.stdout, self._take_output),
                (self._popen.stderr, self._errors.append),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Process id (of the program itself: the launchers replace themselves by it)."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal, ``None`` while running."""
        return self._popen.poll()

    @property
    def events(self) -> list[Event]:
        """All events so far."""
        with self._changed:
            return list(self._events)

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        with self._changed:
            return "".join(self._errors)

    def named(self, event: str) -> list[Event]:
        """All events of one name so far."""
        return [item for item in self.events if item.get("event") == event]

    def wait_event(
        self,
        event: str,
        where: Callable[[Event], bool] = lambda _: True,
        *,
        since: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Event:
        """The first event of that name for which ``where`` holds, waiting for it if need be.

        Args:
            event: its name (key ``"event"``).
            where: further condition.
            since: ignore that many events from the start (``len(process.events)`` before the
                action whose consequence is awaited).
            timeout: seconds.

        Raises:
            NoEventError: it did not come in time, or the program ended; tells what was printed.
        """
        return self.wait_any((event,), where, since=since, timeout=timeout)

    def wait_any(
        self,
        names: Collection[str],
        where: Callable[[Event], bool] = lambda _: True,
        *,
        since: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Event:
        """As :meth:`wait_event` for the first event with one of these names."""
        deadline = time.monotonic() + timeout
        with self._changed:
            seen = since
            while True:
                for item in self._events[seen:]:
                    if item.get("event") in names and where(item):
                        return item
                seen = max(seen, len(self._events))
                remaining = deadline - time.monotonic()
                if self._reading == 0:
                    break
                if remaining <= 0 or not self._changed.wait(remaining):
                    break
        wanted = " or ".join(map(repr, names))
        raise NoEventError(f"no {wanted} event within {timeout} s\n{self.transcript()}")

    def send(self, message: Event) -> None:
        """Write one JSON line to the program's standard input."""
        self.write(json.dumps(message))

    def write(self, line: str) -> None:
        """Write one line to the program's standard input."""
        stdin = self._popen.stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()

    def end_input(self) -> None:
        """Close the program's standard input."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM: ask it to end."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: it ends without a word to anybody."""
        self.signal(signal.SIGKILL)

    def wait(self, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Wait for the end and for the last line of output; returns the exit status.

        Raises:
            NoEventError: still running after ``timeout`` seconds.
        """
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            message = f"still running after {timeout} s\n{self.transcript()}"
            raise NoEventError(message) from None
        for thread in self._threads:
            thread.join(timeout)
        return code

    def close(self) -> None:
        """Kill it if it still runs and release everything."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        for thread in self._threads:
            thread.join(DEFAULT_TIMEOUT)
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()

    def transcript(self) -> str:
        """Command, status and the last lines of both outputs, for failure messages."""
        with self._changed:
            output, errors = self._output[-_TRANSCRIPT_LINES:], self._errors[-_TRANSCRIPT_LINES:]
        head = f"[{self.name}] {shlex.join(self.argv)} (exit status {self.returncode})\n"
        return head + "".join(["  out| " + x for x in output] + ["  err| " + x for x in errors])

    def _read(self, stream: Any, keep: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    keep(line)
                    self._changed.notify_all()
        with self._changed:
            self._reading -= 1
            self._changed.notify_all()

    def _take_output(self, line: str) -> None:
        self._output.append(line)
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                self._events.append(json.loads(line))
