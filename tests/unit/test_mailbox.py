"""The bounded queue between a node and its readers."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from anyreach._mailbox import Mailbox


async def test_each_item_goes_to_one_reader_in_order() -> None:
    box: Mailbox[int] = Mailbox(10)
    readers = [asyncio.ensure_future(anext(box)) for _ in range(3)]
    await asyncio.sleep(0)
    for item in range(3):
        assert box.put(item)
    assert await asyncio.gather(*readers) == [0, 1, 2]


async def test_full_drops_the_oldest_and_counts() -> None:
    box: Mailbox[int] = Mailbox(2)
    assert [box.put(item) for item in range(5)] == [True, True, False, False, False]
    assert box.dropped == 3
    box.end()
    assert [item async for item in box] == [3, 4]


async def test_the_victim_can_be_chosen() -> None:
    box: Mailbox[int] = Mailbox(2, victim=lambda items: items.index(max(items)))
    for item in (5, 9, 1):
        box.put(item)
    box.end()
    assert [item async for item in box] == [5, 1]


async def test_a_cancelled_reader_passes_its_item_on() -> None:
    box: Mailbox[str] = Mailbox(10)
    first = asyncio.ensure_future(anext(box))
    second = asyncio.ensure_future(anext(box))
    await asyncio.sleep(0)
    box.put("item")  # wakes the first reader,
    first.cancel()  # which is cancelled before it runs
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, 5) == "item"


async def test_the_end_wakes_all_readers() -> None:
    box: Mailbox[int] = Mailbox(1)
    readers = [asyncio.ensure_future(anext(box, None)) for _ in range(3)]
    await asyncio.sleep(0)
    box.end()
    box.end()
    assert await asyncio.gather(*readers) == [None, None, None]
    assert box.put(1)
    assert len(box) == 0


async def test_an_error_comes_after_what_was_there() -> None:
    box: Mailbox[int] = Mailbox(4)
    box.put(1)
    box.end(KeyError("boom"))
    assert await anext(box) == 1
    for _ in range(2):
        with pytest.raises(KeyError):
            await anext(box)


async def test_a_cancelled_reader_leaves_nothing_behind() -> None:
    box: Mailbox[int] = Mailbox(4)
    for _ in range(100):
        reader = asyncio.ensure_future(anext(box))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
    assert not box._waiters
    ref = weakref.ref(box)
    del box, reader
    gc.collect()
    assert ref() is None
