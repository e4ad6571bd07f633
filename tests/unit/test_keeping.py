"""When a lost path counts as a lost mapping, and what the core is told then."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, cast

from anyreach._keeping import Keeping
from anyreach._live import Course
from anyreach.addresses import SocketAddress

if TYPE_CHECKING:
    from anyreach import _core

_PEER = SocketAddress(IPv4Address("203.0.113.7"), 4000)
_PUNCHED = Course(1, "punched", _PEER, 0.02)
_AGAIN = Course(2, "punched", _PEER, 0.02)
_ELSEWHERE = Course(2, "punched", SocketAddress(IPv4Address("198.51.100.1"), 4000), 0.02)
_RELAYED = Course(0, "relayed", SocketAddress(IPv4Address("192.0.2.1"), 9000), 0.05)


class _Core:
    def __init__(self, *, outbound: bool = True) -> None:
        self.id = 1
        self.outbound = outbound
        self.told: list[float] = []

    def set_keep_alive(self, interval: float) -> None:
        self.told.append(interval)


def _lose(
    core: _Core,
    *,
    configured: float = 15.0,
    silent: float = 12.0,
    back: Course = _AGAIN,
    after: float = 2.0,
) -> Keeping:
    keeping = Keeping(configured)
    same = cast("_core.Connection", core)
    now = asyncio.get_running_loop().time()
    keeping.changed(same, _PUNCHED, _RELAYED, silent, now)
    keeping.changed(same, _RELAYED, back, None, now + after)
    return keeping


async def test_a_path_that_is_punched_again_at_once_had_lost_its_mapping() -> None:
    core = _Core()
    keeping = _lose(core)
    assert core.told[-1] == 4.0
    keeping.ended(core.id)


async def test_another_network_has_other_mappings() -> None:
    core = _Core()
    _lose(core).network_changed()
    assert core.told[-1] == 0.0


async def test_other_losses_tell_nothing_of_mappings() -> None:
    for options in (
        {"silent": 1.0},
        {"back": _ELSEWHERE},
        {"back": _RELAYED},
        {"after": 60.0},
        {"configured": 0.0},
    ):
        core = _Core()
        _lose(core, **options)
        assert not any(core.told), options
    accepting = _Core(outbound=False)
    _lose(accepting)
    assert accepting.told == []
