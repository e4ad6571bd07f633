"""When routers are asked for a port, and what becomes of the answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

from anyreach._port_mapping import GIVE_BACK_SECONDS, PortMapper, behind_nat
from anyreach.addresses import SocketAddress
from anyreach.metrics import Recorder

from .fake_core import settle
from .virtual_time import in_virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach import _core

T = TypeVar("T")

EXTERNAL = ("203.0.113.7", 41000)


@dataclass
class FakeMapping:
    """Shaped like ``_core.PortMapping``."""

    external: tuple[str, int] | None = None
    protocol: str | None = None
    error: str | None = None
    changes: int = 0
    closed: bool = False
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    def become(self, external: tuple[str, int] | None, error: str | None = None) -> None:
        self.external, self.error = external, error
        self.protocol = "pcp" if external else None
        self.changes += 1
        self._change.set()
        self._change = asyncio.Event()

    def poll_change(self, *_: object) -> None:
        raise AssertionError("polled by the fake bridge only")

    async def changed(self, seen: int) -> int:
        while self.changes == seen:
            await self._change.wait()
        return self.changes

    def close(self) -> None:
        self.closed = True


class Rig:
    """A mapper and the routers it asks."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.asked: list[FakeMapping] = []
        self.failing = False
        self.told: list[tuple[str, ...]] = []
        self.recorder = Recorder()
        self.mapper = PortMapper(
            self, self.wait, enabled=enabled, changed=self._changed, recorder=self.recorder
        )

    def _changed(self) -> None:
        self.told.append(tuple(map(str, self.mapper.addresses)))

    def map_port(self) -> _core.PortMapping:
        if self.failing:
            raise OSError("no network")
        self.asked.append(FakeMapping())
        return cast("_core.PortMapping", self.asked[-1])

    async def wait(self, poll: Callable[..., T | None], *args: Any) -> T:
        mapping = poll.__self__  # type: ignore[attr-defined]  # a method of the fake
        return cast("T", await mapping.changed(*args))

    def counted(self) -> dict[tuple[str, str], int]:
        numbers = self.recorder.snapshot(connections={}, rejected={})
        return dict(numbers.candidates_total)


@in_virtual_time
async def test_nobody_is_asked_without_a_nat() -> None:
    rig = Rig()
    await settle()
    assert rig.asked == []
    assert rig.mapper.report.state == "not-needed"
    await rig.mapper.end()


@in_virtual_time
async def test_nobody_is_asked_if_that_is_turned_off() -> None:
    rig = Rig(enabled=False)
    rig.mapper.found_nat()
    await settle()
    assert rig.asked == []
    assert rig.mapper.report.state == "off"
    await rig.mapper.end()


@in_virtual_time
async def test_a_mapping_is_told_counted_and_given_back() -> None:
    rig = Rig()
    rig.mapper.found_nat()
    rig.mapper.found_nat()
    await settle()
    (mapping,) = rig.asked
    assert rig.mapper.report.state == "asking"
    mapping.become(EXTERNAL)
    await settle()
    assert rig.told == [("203.0.113.7:41000",)]
    report = rig.mapper.report
    assert (report.state, report.external, report.protocol) == (
        "mapped",
        "203.0.113.7:41000",
        "pcp",
    )
    mapping.become(("203.0.113.7", 41001))
    await settle()
    assert rig.told[1:] == [("203.0.113.7:41001",)]
    await rig.mapper.end()
    assert mapping.closed
    assert rig.mapper.addresses == ()
    assert rig.counted() == {("mapped", "reported"): 2, ("mapped", "lost"): 2}


@in_virtual_time
async def test_silence_is_silent() -> None:
    rig = Rig()
    rig.mapper.found_nat()
    await settle()
    rig.asked[0].become(None, "no router answered")
    await settle()
    assert rig.mapper.report.state == "none"
    assert rig.mapper.report.error == "no router answered"
    assert rig.told == []
    begun = asyncio.get_running_loop().time()
    await rig.mapper.end()
    assert asyncio.get_running_loop().time() == begun, "there is nothing to give back"
    assert rig.asked[0].closed


@in_virtual_time
async def test_a_lost_mapping_is_told_and_may_come_back() -> None:
    rig = Rig()
    rig.mapper.found_nat()
    await settle()
    for external in (EXTERNAL, None, EXTERNAL):
        rig.asked[0].become(external)
        await settle()
    assert rig.told == [("203.0.113.7:41000",), (), ("203.0.113.7:41000",)]
    await rig.mapper.end()


@pytest.mark.parametrize("answers", [True, False])
@in_virtual_time
async def test_the_end_waits_for_the_router_a_moment(answers: bool) -> None:
    rig = Rig()
    rig.mapper.found_nat()
    await settle()
    (mapping,) = rig.asked
    mapping.become(EXTERNAL)
    await settle()
    begun = asyncio.get_running_loop().time()
    ending = asyncio.create_task(rig.mapper.end())
    await asyncio.sleep(0.2)
    assert mapping.closed
    assert not ending.done()
    if answers:
        mapping.become(None)
    await ending
    took = asyncio.get_running_loop().time() - begun
    assert took == pytest.approx(0.2 if answers else GIVE_BACK_SECONDS, abs=0.01)


@in_virtual_time
async def test_what_cannot_be_asked_is_no_error() -> None:
    rig = Rig()
    rig.failing = True
    rig.mapper.found_nat()
    await settle()
    assert rig.told == []
    await rig.mapper.end()


@in_virtual_time
async def test_a_router_without_a_connection_lends_nothing() -> None:
    rig = Rig()
    rig.mapper.found_nat()
    await settle()
    rig.asked[0].become(("0.0.0.0", 41000))
    await settle()
    assert rig.mapper.addresses == ()
    await rig.mapper.end()


def test_signs_of_a_nat() -> None:
    host = [SocketAddress.of("192.168.1.5", 9000), SocketAddress.of("2001:db8::5", 9000)]

    def seen_at(*ips: str) -> bool:
        return behind_nat([SocketAddress.of(ip, 9000) for ip in ips], host)

    assert not seen_at()
    assert not seen_at("192.168.1.5")
    assert not seen_at("2001:db8::6")
    assert seen_at("192.168.1.5", "203.0.113.7")
    assert seen_at("100.64.0.7")
