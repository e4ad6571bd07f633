"""The clock of the tests is exact, and does not hide that nothing goes on."""

from __future__ import annotations

import asyncio
import time

import pytest

from .virtual_time import in_virtual_time


@in_virtual_time
async def test_hours_pass_at_once_and_in_order() -> None:
    loop = asyncio.get_running_loop()
    begun, order = time.monotonic(), []

    async def note(seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append(loop.time())

    start = loop.time()
    await asyncio.gather(*(note(seconds) for seconds in (7200, 0.001, 60)))
    assert order == pytest.approx([start + 0.001, start + 60, start + 7200])
    assert time.monotonic() - begun < 5


@in_virtual_time
async def test_timeouts_work() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await asyncio.Event().wait()


@in_virtual_time
async def test_other_threads_may_speak_up() -> None:
    assert await asyncio.to_thread(lambda: 7) == 7


def test_a_wait_for_nothing_fails() -> None:
    @in_virtual_time
    async def stuck() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="everybody waits"):
        stuck()
