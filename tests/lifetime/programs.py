"""Programs for the tests that need a process of their own: ``python -m lifetime.programs NAME``."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from anyreach.errors import ForkError

from .conftest import loop_factories
from .core import accept, address_of, connected, dial, make_endpoint, shut

if TYPE_CHECKING:
    from collections.abc import Callable

    from .core import Pair

kept: list[object] = []
"""Outlives main(): torn down by the interpreter's exit, in whatever order it likes."""


async def busy(pair: Pair) -> None:
    """A transfer under way and every kind of wait."""
    near, far = await pair.streams()
    kept.extend([pair, near, far])
    kept.extend(
        asyncio.ensure_future(waiting)
        for waiting in (
            near.write(bytes(64 << 20)),
            pair.far.accept_stream(),
            pair.far.receive_datagrams(),
            pair.near.wait_closed(),
            near.read(1),
        )
    )
    await far.readexactly(1 << 20)


async def exit_live() -> None:
    """Falls off the end of main() with everything open; asyncio.run cancels the tasks."""
    connection = connected()
    kept.append(connection)
    await busy(await connection.__aenter__())


async def exit_abrupt() -> NoReturn:
    """sys.exit() in the middle of a transfer."""
    connection = connected()
    kept.append(connection)
    await busy(await connection.__aenter__())
    sys.exit(0)


async def exit_thread() -> None:
    """The interpreter ends while a daemon thread runs a loop of its own with a busy node."""
    ready = threading.Event()

    async def main() -> None:
        connection = connected()
        kept.append(connection)
        await busy(await connection.__aenter__())
        ready.set()
        await asyncio.Event().wait()

    threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
    ready.wait(20)


async def interrupted() -> None:
    """Waits for Ctrl-C in a read."""
    async with connected() as pair:
        _, far = await pair.streams()
        print("waiting", flush=True)
        try:
            await far.read(1)
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            raise


async def forked() -> None:
    """What was made before a fork fails in the child, and the child may start anew."""
    async with connected() as pair:
        near, far = await pair.streams()
        await near.write(b"for the parent")
        dialing = pair.endpoints[0].dial(*address_of(pair.endpoints[1]), None, 5.0)
        child = os.fork()
        if child == 0:
            in_child(
                pair.endpoints[0].counters,
                lambda: pair.endpoints[0].dial("127.0.0.1", 9, None, 1.0),
                lambda: pair.near.peer_id,
                lambda: pair.near.paths,
                pair.near.close,
                lambda: pair.near.send_datagram(b""),
                lambda: near.id,
                near.reset,
                far.stop,
                dialing.cancel,
            )
        assert exit_code(child) == 0
        # The parent does not notice.
        assert await far.readexactly(14) == b"for the parent"
        await far.write(b"reply")
        assert await near.readexactly(5) == b"reply"


def exit_code(child: int) -> int:
    """Waits for a child, with the loop blocked: the core does not need it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(*uses: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        for use in uses:
            try:
                use()
            except ForkError:
                continue
            raise AssertionError("no ForkError")
        gc.collect()
        asyncio.run(fresh())
        code = 0
    finally:
        # Not sys.exit: the child has a copy of the parent's running loop to unwind.
        os._exit(code)


async def fresh() -> None:
    async with connected() as pair:
        near, far = await pair.streams()
        await near.write(b"new life")
        assert await far.readexactly(8) == b"new life"


async def fork_frees_the_port() -> None:
    """A child that lives on does not hold what the parent closes."""
    endpoints = make_endpoint(), make_endpoint()
    near = await dial(endpoints[0], address_of(endpoints[1]))
    reading, writing = os.pipe()
    started, starting = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(starting, b"!")  # the handlers of the fork have run
        os.close(writing)
        os.read(reading, 1)  # until the parent has checked
        os._exit(0)
    assert os.read(started, 1) == b"!"
    try:
        far = await accept(endpoints[1])
        stream = await near.open_stream()
        await stream.write(b"alive")
        assert await (await far.accept_stream()).readexactly(5) == b"alive"
        places = [address_of(endpoint) for endpoint in endpoints]
        await shut(*endpoints)
        for place in places:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
                again.bind(place)
    finally:
        os.close(writing)
    assert exit_code(child) == 0


async def multiprocessing_fork() -> None:
    """A forked worker with objects of the parent in its memory ends cleanly."""
    listening, dialing = make_endpoint(), make_endpoint()
    near = await dial(dialing, address_of(listening))
    far = await accept(listening)
    child = os.fork()
    if child == 0:
        # Drops every inherited object, then leaves as interpreters do.
        del listening, dialing, near, far
        gc.collect()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os._exit(0)
    assert exit_code(child) == 0
    stream = await near.open_stream()
    await stream.write(b"alive")
    assert await (await far.accept_stream()).readexactly(5) == b"alive"
    await shut(listening, dialing)


def main() -> None:
    name, loop = sys.argv[1:]
    # Shells start background jobs with the signal ignored, and whoever runs the tests may be one.
    # Before the runner, which puts its own handler in place of this one only.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with asyncio.Runner(loop_factory=loop_factories()[loop]) as runner:
        runner.run(globals()[name]())
    print("done", flush=True)


if __name__ == "__main__":
    main()
