"""Name resolution: the order and timing rules of RFC 8305 section 3, on a scripted resolver."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from anyreach.addresses import HostPort, IpMode
from anyreach.resolver import ResolutionError, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = list[str] | Exception


class Script:
    """Stands in for the system's resolver: each family answers when its event is set."""

    def __init__(self, v6: Answer, v4: Answer) -> None:
        self.answers: dict[int, Answer] = {socket.AF_INET6: v6, socket.AF_INET: v4}
        self.gates = {family: asyncio.Event() for family in self.answers}
        self.asked: list[int] = []
        self.both_asked = asyncio.Event()

    def open(self, *families: int) -> None:
        for family in families or self.gates:
            self.gates[family].set()

    async def getaddrinfo(self, *_: Any, family: int, **__: Any) -> list[Any]:
        self.asked.append(family)
        if len(self.asked) == 2:
            self.both_asked.set()
        await self.gates[family].wait()
        answer = self.answers[family]
        if isinstance(answer, Exception):
            raise answer
        return [(family, socket.SOCK_DGRAM, 17, "", (ip, 0)) for ip in answer]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer, Answer], Script]:
    def install(v6: Answer, v4: Answer) -> Script:
        scripted = Script(v6, v4)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", scripted.getaddrinfo, raising=False)
        return scripted

    return install


def name(text: str = "peer.example") -> HostPort:
    return HostPort.parse(f"{text}:9000")


async def batches(mode: IpMode = IpMode.DUAL_STACK, delay: float = 30.0) -> list[list[str]]:
    return [[str(a) for a in batch] async for batch in resolve(name(), mode=mode, delay=delay)]


@pytest.mark.parametrize(
    ("literal", "address"),
    [
        ("192.0.2.1:1", "192.0.2.1:1"),
        ("[2001:DB8::1]:1", "[2001:db8::1]:1"),
        ("[::ffff:192.0.2.1]:1", "192.0.2.1:1"),
        ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1"),
    ],
)
async def test_literals_resolve_to_themselves(literal: str, address: str) -> None:
    found = [batch async for batch in resolve(HostPort.parse(literal), mode=IpMode.IPV4_ONLY)]
    assert [[str(a) for a in batch] for batch in found] == [[address]]


async def test_both_families_are_asked_at_once(script: Callable[..., Script]) -> None:
    scripted = script(["2001:db8::1"], ["192.0.2.1"])
    waiting = asyncio.ensure_future(batches())
    await asyncio.wait_for(scripted.both_asked.wait(), 5)
    scripted.open()
    assert await waiting == [["[2001:db8::1]:9000", "192.0.2.1:9000"]]


async def test_ipv6_first_is_not_held_back(script: Callable[..., Script]) -> None:
    scripted = script(["2001:db8::1"], ["192.0.2.1"])
    async with aclosing(resolve(name(), delay=30.0)) as found:
        scripted.open(socket.AF_INET6)
        assert [str(a) for a in await anext(found)] == ["[2001:db8::1]:9000"]
        scripted.open(socket.AF_INET)
        assert [str(a) for a in await anext(found)] == ["192.0.2.1:9000"]


async def test_ipv4_first_waits_for_ipv6(script: Callable[..., Script]) -> None:
    scripted = script(["2001:db8::1"], ["192.0.2.1"])
    scripted.open(socket.AF_INET)
    waiting = asyncio.ensure_future(batches())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    scripted.open(socket.AF_INET6)
    assert await waiting == [["[2001:db8::1]:9000", "192.0.2.1:9000"]]


async def test_ipv4_waits_no_longer_than_the_delay(script: Callable[..., Script]) -> None:
    scripted = script(["2001:db8::1"], ["192.0.2.1"])
    scripted.open(socket.AF_INET)
    async with aclosing(resolve(name(), delay=0.01)) as found:
        assert [str(a) for a in await anext(found)] == ["192.0.2.1:9000"]
        scripted.open(socket.AF_INET6)
        assert [str(a) for a in await anext(found)] == ["[2001:db8::1]:9000"]


async def test_an_empty_ipv4_answer_starts_no_delay(script: Callable[..., Script]) -> None:
    scripted = script(["2001:db8::1"], socket.gaierror(socket.EAI_NONAME, "no such name"))
    scripted.open(socket.AF_INET)
    waiting = asyncio.ensure_future(batches())
    await asyncio.sleep(0.01)
    scripted.open(socket.AF_INET6)
    assert await waiting == [["[2001:db8::1]:9000"]]


async def test_only_the_wanted_family_is_asked(script: Callable[..., Script]) -> None:
    scripted = script(["2001:db8::1"], ["192.0.2.1"])
    scripted.open()
    assert await batches(IpMode.IPV4_ONLY) == [["192.0.2.1:9000"]]
    assert await batches(IpMode.IPV6_ONLY) == [["[2001:db8::1]:9000"]]
    assert scripted.asked == [socket.AF_INET, socket.AF_INET6]


async def test_mapped_answers_are_ipv4_and_come_once(script: Callable[..., Script]) -> None:
    scripted = script(["::ffff:192.0.2.1", "2001:db8::1"], ["192.0.2.1", "192.0.2.1"])
    scripted.open()
    assert await batches() == [["192.0.2.1:9000", "[2001:db8::1]:9000"]]


async def test_no_address_says_what_the_system_said(script: Callable[..., Script]) -> None:
    scripted = script(
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    )
    scripted.open()
    with pytest.raises(ResolutionError, match=r"^Name or service not known$"):
        await batches()


async def test_one_failing_family_does_not_matter(script: Callable[..., Script]) -> None:
    scripted = script(UnicodeError("label too long"), ["192.0.2.1"])
    scripted.open()
    assert await batches() == [["192.0.2.1:9000"]]


async def test_leaving_early_cancels_the_other_lookup(script: Callable[..., Script]) -> None:
    scripted = script(["2001:db8::1"], ["192.0.2.1"])
    scripted.open(socket.AF_INET6)
    before = asyncio.all_tasks()
    async with aclosing(resolve(name())) as found:
        await anext(found)
        lookups = asyncio.all_tasks() - before
    await asyncio.wait_for(asyncio.wait(lookups), 5)
    assert any(task.cancelled() for task in lookups)
