"""Connections that end and dials that fail leave no descriptor, thread, task or memory behind."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pytest

from anyreach import _core
from anyreach._bridge import current_bridge
from anyreach.connection import Connection
from anyreach.errors import NodeClosed

from .core import accept, address_of, dial, make_endpoint, shut

if TYPE_CHECKING:
    from .conftest import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="counts descriptors"),
]

CYCLES = 2000
FAILED_DIALS = 500
WARM_UP = 300
"""Rounds before the first look: caches, pools and tables have their final size then."""

MEMORY_SLACK = 12 << 20
"""Growth of the resident set that is put down to the allocators. A leak of one connection end
(64 KB) per round would be ten times that."""


@dataclass
class Usage:
    descriptors: int
    threads: int
    tasks: int
    memory: int


def usage() -> Usage:
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    return Usage(
        process.num_fds(),
        process.num_threads(),
        len(asyncio.all_tasks()),
        process.memory_info().rss,
    )


async def assert_no_growth(before: Usage) -> None:
    """Usage comes back to what it was. Not at once: a closed connection lingers for three probe
    timeouts (RFC 9000, 10.2), which is three seconds if its round-trip time was never measured."""
    try:
        async with asyncio.timeout(20):
            while True:
                after = usage()
                if (
                    after.descriptors <= before.descriptors
                    and after.threads <= before.threads
                    and after.tasks <= before.tasks
                    and after.memory - before.memory < MEMORY_SLACK
                ):
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"{before} grew to {after}")


async def discard_events(endpoint: _core.Endpoint) -> None:
    try:
        while True:
            await current_bridge().wait(endpoint.poll_events)
    except NodeClosed:
        return


def test_connections_come_and_go(run: Run) -> None:
    async def main() -> None:
        dialing, listening = make_endpoint(), make_endpoint()
        events = [asyncio.create_task(discard_events(each)) for each in (dialing, listening)]

        async def cycle() -> None:
            near = await dial(dialing, address_of(listening))
            far = await accept(listening)
            stream = await near.open_stream()
            await stream.write(b"hello")
            assert await (await far.accept_stream()).readexactly(5) == b"hello"
            near.close(1, "done")
            assert (await far.wait_closed()).code == 1
            await near.wait_closed()

        for _ in range(WARM_UP):
            await cycle()
        before = usage()
        for _ in range(CYCLES):
            await cycle()
        await assert_no_growth(before)
        await shut(dialing, listening)
        await asyncio.gather(*events)

    run(main())


def test_dials_fail_and_are_forgotten(run: Run) -> None:
    async def main() -> None:
        dialing, listening, gone = make_endpoint(), make_endpoint(), make_endpoint()
        nobody = address_of(gone)
        await shut(gone)
        events = [asyncio.create_task(discard_events(each)) for each in (dialing, listening)]
        stranger = bytes(32)

        async def fail(number: int) -> str:
            bridge = current_bridge()
            if number % 5 == 0:
                attempt = dialing.dial(*address_of(listening), stranger, 10.0)
            else:
                attempt = dialing.dial(*nobody, None, 0.05 if number % 5 < 4 else 10.0)
            if number % 5 == 4:
                attempt.cancel()
            with pytest.raises(_core.DialFailed) as failure:
                await bridge.wait(attempt.poll)
            return str(failure.value.args[0])

        async def fail_all(count: int) -> set[str]:
            reasons = set()
            for start in range(0, count, 50):
                reasons |= set(await asyncio.gather(*(fail(n) for n in range(start, start + 50))))
            return reasons

        await fail_all(WARM_UP)
        before = usage()
        reasons = await fail_all(FAILED_DIALS)
        assert reasons == {"peer-id-mismatch", "handshake-timeout", "cancelled"}
        assert dialing.connections() == []
        await assert_no_growth(before)
        await shut(dialing, listening)
        await asyncio.gather(*events)

    run(main())


def test_endpoints_come_and_go(run: Run) -> None:
    """Closed in good order, or just forgotten."""

    async def main() -> None:
        async def cycle(number: int) -> None:
            dialing, listening = make_endpoint(), make_endpoint()
            near = await dial(dialing, address_of(listening))
            far = Connection(await current_bridge().wait(listening.poll_incoming))
            if number % 2:
                await shut(dialing, listening)
            else:
                del dialing, listening
            assert (await near.wait_closed()).reason == "local"
            await far.wait_closed()

        for number in range(20):
            await cycle(number)
        before = usage()
        for number in range(100):
            await cycle(number)
        await assert_no_growth(before)

    run(main())
