"""Bad lines: packets above a size vanish, a small MTU, a line that goes down and comes back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from . import agent, nodes

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lab import Lab
    from .topology import Host

_FILE_SIZE = 5_000_000
_OUTAGE = 3.0  # seconds; the length of the outage is what is tested


def _carries_a_file(a: Host, b: Host, version: int) -> None:
    file = nodes.make_file(a, "data", _FILE_SIZE)
    node = nodes.start(b)
    sent = nodes.run(a, "send", node.at(version), str(file), timeout=40)
    assert sent.code == 0, sent.stderr
    assert sent.last("sent")["method"] == "direct"
    assert nodes.sha256(node.inbox / "data") == nodes.sha256(file)
    node.process.terminate()
    assert node.process.wait() == 0


@pytest.mark.parametrize("version", [4, 6])
def test_a_line_that_drops_packets_above_1300_bytes_carries_bulk_data(
    lab: Lab, version: int
) -> None:
    a, b = lab.host("a"), lab.host("b")
    b.line.drop_larger_than(1300)
    _carries_a_file(a, b, version)
    _carries_a_file(b, a, version)


@pytest.mark.parametrize("version", [4, 6])
def test_a_path_that_starts_to_drop_large_packets_goes_on(lab: Lab, version: int) -> None:
    a, b = agent.pair(lab, version)
    limit = 1300 - (28 if version == 4 else 48)
    deadline = time.monotonic() + 20
    while a.mtu() <= limit:
        a.transfer(_FILE_SIZE)
        assert time.monotonic() < deadline, "the path MTU was never discovered"
    b.host.line.drop_larger_than(1300)
    a.transfer(_FILE_SIZE, timeout=40)
    assert a.lost() == b.lost() == []
    assert 1200 <= a.mtu() <= limit


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("side", ["near", "far"])
def test_a_line_with_an_mtu_of_1280_carries_bulk_data(lab: Lab, version: int, side: str) -> None:
    a = lab.host("a", mtu=1280 if side == "near" else 1500)
    b = lab.host("b", mtu=1280 if side == "far" else 1500)
    _carries_a_file(a, b, version)


def _unplugged(host: Host) -> tuple[Callable[[], None], Callable[[], None]]:
    return host.line.unplug, host.line.plug


def _switched_off(host: Host) -> tuple[Callable[[], None], Callable[[], None]]:
    return host.interface_down, host.interface_up


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("side", ["sender", "receiver"])
@pytest.mark.parametrize("outage", [_unplugged, _switched_off])
def test_a_connection_survives_three_seconds_without_the_line(
    lab: Lab,
    outage: Callable[[Host], tuple[Callable[[], None], Callable[[], None]]],
    side: str,
    version: int,
) -> None:
    a, b = agent.pair(lab, version)
    a.transfer(1_000_000)
    down, up = outage(a.host if side == "sender" else b.host)
    down()
    finished = a.start_transfer(_FILE_SIZE)
    time.sleep(_OUTAGE)
    assert len(a.process.named("transferred")) == 1, "the line was not down"
    up()
    finished(timeout=30)
    assert a.lost() == b.lost() == []
