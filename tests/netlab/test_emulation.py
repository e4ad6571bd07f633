"""Emulated lines do what was asked of them."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from . import kinds
from .behaviour import Server
from .emulation import PERFECT, Quality
from .probe import ask, start_echo
from .routers import Engine

if TYPE_CHECKING:
    from .kinds import SiteKind
    from .lab import Lab
    from .machine import Machine

_SCRIPT: Final = str(Path(__file__).with_name("line_meter.py"))
_PORT: Final = 5001
_COUNT_PORT: Final = 5002

_LATE: Final = 0.010
"""Seconds a busy machine may add to a round trip; an idle one adds half a millisecond."""


def _trips(near: Machine, far: Machine, version: int, number: int = 40) -> list[float | None]:
    far.spawn_python("-I", "-S", _SCRIPT, "echo", str(_PORT)).wait_event("listening")
    target = str(far.address(version))
    process = near.spawn_python("-I", "-S", _SCRIPT, "trips", target, str(_PORT), str(number), "0")
    times: list[float | None] = process.wait_event("trips", timeout=60)["seconds"]
    return times


def _flood(near: Machine, far: Machine, number: int, size: int) -> Any:
    counting = far.spawn_python("-I", "-S", _SCRIPT, "count", str(_COUNT_PORT))
    counting.wait_event("listening")
    target = str(far.address(4))
    near.python("-I", "-S", _SCRIPT, "flood", target, str(_COUNT_PORT), str(number), str(size))
    return counting.wait_event("counted", timeout=30)


@pytest.mark.parametrize("version", [4, 6])
def test_delays_of_both_lines_add_up_both_ways(lab: Lab, version: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    a.line.emulate(Quality(delay=0.010))
    b.line.emulate(Quality(delay=0.005))
    times = [seconds for seconds in _trips(a, b, version) if seconds is not None]
    assert len(times) == 40
    assert min(times) >= 0.030
    assert statistics.median(times) < 0.030 + _LATE


def test_a_perfect_emulated_line_is_nearly_as_quick_as_a_cable(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    a.line.emulate(PERFECT)
    times = [seconds for seconds in _trips(a, b, 4, 200) if seconds is not None]
    assert len(times) == 200
    assert statistics.median(times) < _LATE


def test_quality_can_be_changed_while_packets_are_under_way(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    a.line.emulate(Quality(delay=0.050))
    assert min(filter(None, _trips(a, b, 4, 3))) >= 0.100
    a.line.emulate(Quality(delay=0.001))
    target = str(b.address(4))
    again = a.spawn_python("-I", "-S", _SCRIPT, "trips", target, str(_PORT), "9", "0")
    assert statistics.median(again.wait_event("trips")["seconds"]) < 0.020


def test_jitter_varies_the_delay_and_keeps_the_order(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    a.line.emulate(Quality(delay=0.001, jitter=0.010))
    times = [seconds for seconds in _trips(a, b, 4, 100) if seconds is not None]
    assert min(times) < 0.008
    assert max(times) > 0.014
    counted = _flood(a, b, 500, 200)
    assert counted["received"] == 500
    assert counted["order"]


def test_the_share_of_lost_packets_is_the_one_asked_for(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    a.line.emulate(Quality(loss=0.1))
    counted = _flood(a, b, 5000, 200)
    assert 4300 < counted["received"] < 4700


def test_a_limited_rate_is_kept_and_what_is_too_much_is_dropped(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    a.line.emulate(Quality(rate=1_250_000, queue=125_000))
    counted = _flood(a, b, 2000, 972)  # 1,000 bytes with headers
    assert 125 <= counted["received"] < 2000
    rate = counted["received"] / counted["seconds"] * 1000
    assert 600_000 < rate < 1_400_000


def test_an_emulated_line_is_no_bottleneck(lab: Lab) -> None:
    """It carries 700 Mbit/s on an idle machine; on a busy one a few times what tests send."""
    a, b = lab.host("a"), lab.host("b")
    a.line.emulate(Quality(delay=0.020))
    b.line.emulate(PERFECT)
    counted = _flood(a, b, 30_000, 1400)
    assert counted["received"] > 20_000
    assert counted["bytes"] * 8 / counted["seconds"] > 50e6


@pytest.mark.parametrize("version", [4, 6])
def test_the_size_limit_and_the_cable_still_work_on_an_emulated_line(
    lab: Lab, version: int
) -> None:
    a, b = lab.host("a"), lab.host("b")
    start_echo(b)
    a.line.emulate(Quality(delay=0.001))
    target = b.address(version)
    a.line.drop_larger_than(1300)
    assert ask(a, target, size=1200).received == 1
    assert ask(a, target, size=1290, tries=1).received == 0
    a.line.unplug()
    assert ask(a, target, tries=1).received == 0
    a.line.plug()
    assert ask(a, target, tries=20).received == 1


@pytest.mark.parametrize("engine", list(Engine), ids=lambda engine: engine.value)
@pytest.mark.parametrize(
    "kind",
    [kinds.PORT_RESTRICTED, kinds.CGNAT_PORT_RESTRICTED, kinds.SYMMETRIC_RANDOM],
    ids=str,
)
def test_a_nat_behind_an_emulated_line_is_what_it_was(
    lab: Lab, engine: Engine, kind: SiteKind
) -> None:
    server = Server(lab)
    site = lab.site("site", kind, engine=engine)
    before = server.classify(site.host)
    site.line.emulate(Quality(delay=0.010))
    assert server.classify(site.host) == before
    far = lab.host("far")
    assert min(filter(None, _trips(site.host, far, 4, 3))) >= 0.020
