"""A blocked event loop stops nothing in the core: packets, acknowledgements, keep-alives."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from .core import accept, address_of, connected, dial, make_endpoint, shut

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyreach.connection import Connection

    from .conftest import Run

SECONDS = 20


def apart(
    run: Run,
    near_side: Callable[[Connection], Awaitable[None]],
    far_side: Callable[[Connection], Awaitable[None]],
) -> None:
    """Both ends of a connection, each on a loop in a thread of its own."""
    errors: list[BaseException] = []
    listening = make_endpoint()
    ended = threading.Barrier(2)

    def thread(main: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            await main()

        try:
            run(whole())
        except BaseException as error:
            errors.append(error)
            ended.abort()

    async def near() -> None:
        dialing = make_endpoint()
        await near_side(await dial(dialing, address_of(listening)))
        await asyncio.to_thread(ended.wait, SECONDS)
        await shut(dialing)

    async def far() -> None:
        await far_side(await accept(listening))
        await asyncio.to_thread(ended.wait, SECONDS)
        await shut(listening)

    threads = [threading.Thread(target=thread, args=(side,)) for side in (near, far)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(2 * SECONDS)
    assert errors == []


def test_what_was_written_is_delivered_while_the_writer_is_blocked(run: Run) -> None:
    size = 6 << 20  # three times what the peer allows without reading
    delivered = threading.Event()

    async def near_side(connection: Connection) -> None:
        stream = await connection.open_stream(bidirectional=False)
        await stream.write(bytes(size))
        await stream.finish()
        assert delivered.wait(SECONDS), "nothing was sent meanwhile"

    async def far_side(connection: Connection) -> None:
        stream = await connection.accept_stream()
        assert len(await stream.read()) == size
        delivered.set()

    apart(run, near_side, far_side)


def test_data_is_acknowledged_while_the_reader_is_blocked(run: Run) -> None:
    size = 1 << 20  # fits the window
    acknowledged = threading.Event()

    async def near_side(connection: Connection) -> None:
        stream = await connection.open_stream(bidirectional=False)
        await stream.write(bytes(size))
        await stream.finish()
        await stream.wait_acked()
        acknowledged.set()

    async def far_side(connection: Connection) -> None:
        assert acknowledged.wait(SECONDS), "nothing was acknowledged meanwhile"
        assert len(await (await connection.accept_stream()).read()) == size

    apart(run, near_side, far_side)


def test_keep_alives_go_out_while_the_loop_is_blocked(run: Run) -> None:
    async def main() -> None:
        async with connected(idle_timeout=1.0, keep_alive_interval=0.2) as pair:
            # Not a wait for something: the time itself is what the connection has to survive.
            time.sleep(3)  # noqa: ASYNC251
            assert pair.near.close_reason is None
            near, far = await pair.streams()
            await near.write(b"still here")
            assert await far.readexactly(10) == b"still here"

    run(main())
