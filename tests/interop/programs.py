"""The peer programs of `tests/interop/peers`: built, started, and read line by line."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

_SOURCES = Path(__file__).parent / "peers"
_ROOT = Path(__file__).parents[2]
_NAMES = ("quinn-peer", "noq-peer")

# A debug build of the peers starts in milliseconds; a machine under load may need seconds.
LINE_TIMEOUT = 20.0
EXIT_TIMEOUT = 10.0


class ProgramsMissingError(Exception):
    """The programs are not built and cannot be built here."""


@cache
def folder() -> Path:
    """Where the peer programs are: ``ANYREACH_PEERS``, or built by cargo.

    Raises:
        ProgramsMissingError: there is no cargo.
        subprocess.CalledProcessError: they do not build.
    """
    given = os.environ.get("ANYREACH_PEERS")
    if given:
        return Path(given)
    built = Path(os.environ.get("CARGO_TARGET_DIR", _ROOT / "target")) / "debug"
    # Cargo would find out as well, but waits for any other build that is going on.
    if not _up_to_date(built):
        cargo = shutil.which("cargo")
        if cargo is None:
            raise ProgramsMissingError("no cargo to build tests/interop/peers; set ANYREACH_PEERS")
        manifest = str(_SOURCES / "Cargo.toml")
        subprocess.run(
            [cargo, "build", "--quiet", "--bins", "--manifest-path", manifest], check=True
        )
    return built


def _up_to_date(built: Path) -> bool:
    sources = [_ROOT / "Cargo.lock", _SOURCES / "Cargo.toml", *_SOURCES.glob("src/**/*.rs")]
    newest = max(path.stat().st_mtime for path in sources)
    programs = [built / name for name in _NAMES]
    return all(path.exists() and path.stat().st_mtime >= newest for path in programs)


class Program:
    """A running peer program. Its standard input is kept open: it ends when that does."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.seen: list[dict[str, Any]] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self, timeout: float = LINE_TIMEOUT) -> dict[str, Any] | None:
        """The next line, or None when there will be no more."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout):
            text = await self._process.stdout.readline()
        if not text:
            return None
        line: dict[str, Any] = json.loads(text)
        self.seen.append(line)
        return line

    async def event(self, *names: str, timeout: float = LINE_TIMEOUT) -> dict[str, Any]:
        """The next line with one of these events; others are kept in `seen`.

        Raises:
            AssertionError: the program ended without it.
            TimeoutError: it did not come in time.
        """
        async with asyncio.timeout(timeout):
            while (line := await self.line()) is not None:
                if line["event"] in names:
                    return line
        raise AssertionError(f"no {' or '.join(names)} event, but {self.seen}")

    def kill(self) -> None:
        """End the program without letting it say goodbye."""
        self._process.kill()

    async def stop(self) -> int:
        """Let the program end by closing its input; its exit code."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        return await self.exit()

    async def exit(self) -> int:
        """Wait for the end; the exit code."""
        try:
            async with asyncio.timeout(EXIT_TIMEOUT):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise


@contextlib.asynccontextmanager
async def program(name: str, role: str, **options: object) -> AsyncIterator[Program]:
    """Run a peer program: ``program("quinn-peer", "server", group="mlkem768")``."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    process = await asyncio.create_subprocess_exec(
        folder() / name,
        role,
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    running = Program(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            await running.stop()
