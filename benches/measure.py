"""Programs under measurement: started, spoken to, and weighed from outside.

CPU time and memory are those the system accounts to the process, so that every contender is
weighed on the same scale.
"""

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from contenders.protocol import Contender

FOLDER = Path(__file__).parent

# Far beyond what any command takes; a contender that hangs must not hold up the run.
ANSWER_TIMEOUT = 60.0
EXIT_TIMEOUT = 5.0


class ContenderError(Exception):
    """A contender failed, ended, or fell silent."""


class Program:
    """One process of a contender."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._weight = psutil.Process(self._process.pid)
        self._pending = b""

    def read(self, timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
        """The next line.

        Raises:
            ContenderError: it is an error, there is none, or not in time.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            remaining = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], remaining)[0]:
                raise ContenderError(f"no answer within {timeout:.0f} s")
            data = os.read(descriptor, 65536)
            if not data:
                raise ContenderError(f"ended with exit code {self._process.wait()}")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if message["event"] == "error":
            raise ContenderError(message["error"])
        return message

    def write(self, command: str) -> None:
        """Send a command line."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    def cpu(self) -> float:
        """CPU seconds used so far, in user and kernel mode."""
        times = self._weight.cpu_times()
        return float(times.user + times.system)

    def memory(self) -> int:
        """Resident bytes."""
        return int(self._weight.memory_info().rss)

    def stop(self) -> None:
        """Close its input, and insist if it does not end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True, slots=True)
class Measured:
    """What a command gave.

    Attributes:
        values: the client's answer.
        cpu: CPU seconds both processes used for it.
    """

    values: dict[str, Any]
    cpu: float


class Pair:
    """Both ends of a contender."""

    def __init__(self, server: Program, client: Program) -> None:
        self.server = server
        self._client = client

    def run(self, command: str) -> Measured:
        """Carry out a command."""
        before = self.server.cpu() + self._client.cpu()
        self._client.write(command)
        values = self._client.read()
        return Measured(values, self.server.cpu() + self._client.cpu() - before)


@contextmanager
def running(contender: Contender) -> Iterator[Pair]:
    """Both ends, connected."""
    server = Program(contender.server)
    try:
        target = server.read()["target"]
        client = Program((*contender.client, target))
        try:
            client.read()
            yield Pair(server, client)
        finally:
            client.stop()
    finally:
        server.stop()
