"""``python -m anyreach.cli.demo``: the main job on this machine, in separate processes.

Two nodes find each other, a third process dials one of them by its PeerId, and a file of random
bytes goes over. Everything runs through the command line a user has; processes and files of the
demonstration are gone when it ends, however it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .options import count
from .output import Style
from .words import bytes_text, rate_text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

#: Seconds any step may take; on an idle machine each takes less than one.
_PATIENCE: Final = 60.0

#: Seconds a process gets to end before it is killed.
_ENDING: Final = 5.0

Event = dict[str, Any]


class DemoError(Exception):
    """Something did not happen as it should."""


class Program:
    """One ``anyreach`` process and the events it prints."""

    def __init__(self, process: Process, arguments: Sequence[str]) -> None:
        self._process = process
        self._arguments = arguments

    async def event(self, *names: str) -> Event:
        """The next event with one of these names.

        Raises:
            DemoError: the process ended without it.
            TimeoutError: it does not come.
        """
        assert self._process.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            while line := await self._process.stdout.readline():
                event: Event = json.loads(line)
                if event["event"] in names:
                    return event
        raise DemoError(f"`anyreach {' '.join(self._arguments)}` ended without {names[0]!r}")

    async def finish(self) -> int:
        """Waits for the end of the process; its exit code."""
        async with asyncio.timeout(_PATIENCE):
            return await self._process.wait()

    async def end(self) -> None:
        """Ends the process, politely first."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_ENDING):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


class Stage:
    """Starts programs, and says what they are for."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self._style = Style.of(sys.stdout)
        self._number = 0

    def step(self, title: str) -> None:
        """Begins the next step."""
        self._number += 1
        print(f"\n{self._style('bold', f'{self._number}. {title}')}", flush=True)

    def say(self, what: str, value: object) -> None:
        """Tells one fact."""
        print(f"   {what:<22}{self._style('green', str(value))}", flush=True)

    async def run(self, *arguments: str) -> Program:
        """Starts ``anyreach`` with these arguments; it ends with the demonstration at latest."""
        arguments = (*arguments, "--ephemeral")
        shown = " ".join(
            f"{word[:10]}…{word[52:]}" if word[52:53] == "@" else word for word in arguments
        )
        print(self._style("dim", f"   $ anyreach {shown}"), flush=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "anyreach", *arguments, "--json", stdout=PIPE
        )
        program = Program(process, arguments)
        self._stack.push_async_callback(program.end)
        return program


def main() -> int:
    """Runs the demonstration; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m anyreach.cli.demo", description=__doc__)
    parser.add_argument(
        "--megabytes", type=count, default=100, metavar="N", help="size of the file (default 100)"
    )
    args = parser.parse_args()
    began = time.monotonic()
    try:
        asyncio.run(_play(args.megabytes))
    except (DemoError, TimeoutError, OSError) as error:
        print(f"\nthe demonstration failed: {error or type(error).__name__}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nstopped", file=sys.stderr)
        return 130
    print(f"\nAll of it took {time.monotonic() - began:.1f} s. Nothing is left running.")
    program = Path(sys.executable).with_name("anyreach")
    print(f"Between two machines: `{program} node --receive DIR` there prints a ticket;")
    print(f"`{program} send TICKET FILE` here sends to it.")
    return 0


async def _play(megabytes: int) -> None:
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anyreach-demo-")))
        stage = Stage(stack)
        print("anyreach: separate processes on this machine, each with one UDP socket")
        alice = await _first_node(stage)
        bob, inbox = await _joining_node(stage, alice, folder)
        where = await _dial(stage, bob)
        await _send(stage, where, folder, inbox, megabytes * 1_000_000)
        await _ping(stage, where)


async def _first_node(stage: Stage) -> Event:
    stage.step("A node starts")
    node = await stage.run("node", "--bind", "[::]:0")
    ready = await node.event("ready")
    stage.say("PeerId", ready["peer_id"])
    stage.say("listens on", f"{ready['udp'][0]} ({_families(ready)})")
    return ready


async def _joining_node(stage: Stage, first: Event, folder: Path) -> tuple[Event, Path]:
    stage.step("Another one joins through known_peers and learns its external address")
    inbox = folder / "inbox"
    known = f"{first['peer_id']}@127.0.0.1:{_port(first)}"
    if first["ip_mode"] == "v6":
        known = f"{first['peer_id']}@[::1]:{_port(first)}"
    began = time.monotonic()
    node = await stage.run(
        "node", "--bind", "[::]:0", "--known-peer", known, "--receive", os.fspath(inbox)
    )
    ready = await node.event("ready")
    stage.say("PeerId", ready["peer_id"])
    wanted = ("connected", "external_address")  # in either order
    events: dict[str, Event] = {}
    while len(events) < len(wanted):
        event = await node.event(*wanted)
        events[event["event"]] = event
    stage.say("joined", f"{events['connected']['remote']} in {events['connected']['ms']:.1f} ms")
    stage.say("seen from outside as", events["external_address"]["address"])
    stage.say("since its start", f"{time.monotonic() - began:.2f} s")
    return ready, inbox


async def _dial(stage: Stage, node: Event) -> str:
    stage.step("A third process dials it by PeerId@address")
    host = "127.0.0.1" if node["ip_mode"] == "v4" else "[::1]"
    where = f"{node['peer_id']}@{host}:{_port(node)}"
    dial = await stage.run("connect", where)
    result = await dial.event("result")
    if await dial.finish() != 0 or not result["ok"]:
        raise DemoError(str(result["error"]))
    stage.say("method", result["method"])
    stage.say("address", result["remote"])
    stage.say("connected in", f"{result['ms']:.1f} ms")
    stage.say("round-trip time", f"{result['rtt_ms']:.2f} ms")
    stage.say("key exchange", result["group"])
    return where


async def _send(stage: Stage, where: str, folder: Path, inbox: Path, size: int) -> None:
    stage.step(f"It receives a file of {bytes_text(size)} of random bytes")
    path = folder / "random.bin"
    sha256 = await asyncio.to_thread(_write_random, path, size)
    send = await stage.run("send", where, os.fspath(path), "--progress")
    sent = await send.event("sent")
    if await send.finish() != 0:
        raise DemoError("the file was not sent")
    arrived = await asyncio.to_thread(_sha256, inbox / path.name)
    if arrived != sha256:
        raise DemoError(f"the file arrived with SHA-256 {arrived} instead of {sha256}")
    stage.say("rate", f"{rate_text(sent['mb_per_s'] * 1e6)}, {sent['method']}")
    stage.say("SHA-256 of source", sha256)
    stage.say("SHA-256 of copy", arrived)


async def _ping(stage: Stage, where: str) -> None:
    stage.step("And answers pings")
    ping = await stage.run("ping", where, "-c", "5", "-i", "0.1")
    summary = await ping.event("summary")
    if await ping.finish() != 0:
        raise DemoError("no ping was answered")
    stage.say("answered", f"{summary['received']} of {summary['sent']}")
    stage.say("median", f"{summary['p50_ms']:.2f} ms")


def _families(ready: Event) -> str:
    return {"dual": "IPv6 and IPv4", "v4": "IPv4", "v6": "IPv6"}[ready["ip_mode"]]


def _port(ready: Event) -> str:
    return str(ready["udp"][0]).rpartition(":")[2]


def _write_random(path: Path, size: int) -> str:
    """Writes ``size`` random bytes; their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            block = os.urandom(min(1 << 20, size - start))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
