"""Event loops come and go: closed early, several at once, objects that move between them."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from anyreach._bridge import LoopBridge, current_bridge

from .core import accept, address_of, connected, dial, make_endpoint, shut

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach.connection import Connection
    from anyreach.streams import Stream

    from .conftest import Run


def test_one_bridge_per_loop(run: Run) -> None:
    async def main() -> LoopBridge:
        assert current_bridge() is current_bridge()
        assert current_bridge().loop is asyncio.get_running_loop()
        return current_bridge()

    assert run(main()) is not run(main())


def test_no_loop_no_bridge() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        current_bridge()


@pytest.mark.skipif(sys.platform == "win32", reason="counts descriptors")
def test_loops_closed_with_operations_pending_leave_nothing(
    run: Run,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Twenty loops are closed under fifty waiting operations each: silently, without a leak."""
    endpoints = make_endpoint(), make_endpoint()
    complaints: list[dict[str, Any]] = []

    async def connect() -> tuple[Connection, Connection]:
        near = await dial(endpoints[0], address_of(endpoints[1]))
        return near, await accept(endpoints[1])

    near, far = run(connect())

    def abandon() -> weakref.ref[LoopBridge]:
        async def wait_in_vain() -> weakref.ref[LoopBridge]:
            stream = await near.open_stream()
            waiting = [
                *(asyncio.create_task(near.accept_stream()) for _ in range(16)),
                *(asyncio.create_task(far.receive_datagrams()) for _ in range(16)),
                *(asyncio.create_task(near.wait_closed()) for _ in range(17)),
                asyncio.create_task(stream.read(1)),
            ]
            await asyncio.sleep(0)
            for task in waiting:
                # asyncio says of its own that they were never awaited; not what is tested here.
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            return weakref.ref(current_bridge())

        loop = new_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        bridge = loop.run_until_complete(wait_in_vain())
        loop.close()
        return bridge

    def descriptors() -> int:
        gc.collect()
        return int(psutil.Process().num_fds())

    first = abandon()
    wait_until(lambda: descriptors() > 0 and first() is None)
    before = descriptors()
    bridges = [abandon() for _ in range(20)]
    wait_until(lambda: descriptors() <= before and not any(bridge() for bridge in bridges))
    # What they waited for happens now, and finds nobody.
    near.close(1, "the end")
    assert run(far.wait_closed()).code == 1
    run(shut(*endpoints))
    assert complaints == []
    assert [str(w.message) for w in recwarn] == []


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


def test_three_loops_in_three_threads(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    received: list[bytes] = []
    errors: list[BaseException] = []

    async def transfer(number: int) -> None:
        async with connected() as pair:
            near, far = await pair.streams()
            sender = asyncio.create_task(near.write(bytes([number]) * (4 << 20)))
            received.append(await far.readexactly(4 << 20))
            await sender

    def thread(number: int) -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(transfer(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert errors == []
    assert sorted(set(data) == {data[0]} and data[0] for data in received) == [0, 1, 2]


def test_one_connection_serves_two_loops(run: Run) -> None:
    """Awaited in two threads at once: each stream goes to exactly one of them, none is lost."""
    endpoints = make_endpoint(), make_endpoint()

    async def connect() -> tuple[Connection, Connection]:
        near = await dial(endpoints[0], address_of(endpoints[1]))
        return near, await accept(endpoints[1])

    near, far = run(connect())
    seen: list[bytes] = []

    async def serve() -> None:
        while (data := await (await far.accept_stream()).readexactly(2)) != b"\xff\xff":
            seen.append(data)

    servers = [threading.Thread(target=run, args=(serve(),)) for _ in range(2)]
    for server in servers:
        server.start()

    async def ask() -> None:
        for word in [number.to_bytes(2, "big") for number in range(100)] + [b"\xff\xff"] * 2:
            stream = await near.open_stream(bidirectional=False)
            await stream.write(word)
            await stream.finish()

    run(ask())
    for server in servers:
        server.join(30)
        assert not server.is_alive()
    assert sorted(seen) == [number.to_bytes(2, "big") for number in range(100)]
    run(shut(*endpoints))


def test_a_stream_moves_to_another_loop(run: Run) -> None:
    endpoints = make_endpoint(), make_endpoint()
    near_end: list[Stream] = []
    far_end: list[Stream] = []

    async def begin() -> None:
        near = await dial(endpoints[0], address_of(endpoints[1]))
        far = await accept(endpoints[1])
        near_end.append(await near.open_stream())
        await near_end[0].write(b"one")
        far_end.append(await far.accept_stream())
        assert await far_end[0].readexactly(2) == b"on"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await far_end[0].readexactly(6)

    async def go_on() -> None:
        await near_end[0].write(b"two")
        assert await far_end[0].readexactly(4) == b"etwo"
        await near_end[0].finish()
        assert await far_end[0].read() == b""
        await shut(*endpoints)

    run(begin())
    run(go_on())
