"""What happens to a direct connection when its networks change: the transfer goes on.

The figures go to the report of the matrix (``figures``); the bounds here are generous.
"""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from . import kinds
from .agent import STRAIGHT
from .figures import note
from .kinds import SiteKind
from .routers import Engine, Gateway
from .sites import LanHost
from .talk import Talk
from .trial import Ground

if TYPE_CHECKING:
    from .lab import Lab
    from .sites import Site

_engines = pytest.mark.parametrize("engine", list(Engine), ids=lambda engine: engine.value)
_sides = pytest.mark.parametrize("whose", ["near", "far"])

_HOME: Final = kinds.PORT_RESTRICTED

_STALL: Final = 20.0
"""Seconds data may stand still; the aim is 2."""

_AGAIN: Final = 30.0
"""Seconds until direct again, once that is possible; the aim is 5."""

_TCP_STALL: Final = 50.0
"""Seconds data may stand still when UDP goes: the relay has to be given up before TCP is tried."""

_OUTAGE: Final = 3.0
"""Seconds; the length of the outage is what is tested."""

_BULK: Final = 30_000_000
"""Bytes per second, each way: as much as two busy processors carry."""


def _site(talk: Talk, whose: str) -> Site:
    return talk.near if whose == "near" else talk.far


def _host(site: Site) -> LanHost:
    assert isinstance(site.host, LanHost)
    return site.host


@_engines
@_sides
@pytest.mark.parametrize("kind", [_HOME, kinds.SYMMETRIC_RANDOM], ids=str)
def test_a_nat_reboots(lab: Lab, engine: Engine, whose: str, kind: SiteKind) -> None:
    """All its mappings and flows are gone."""
    talk = Talk(lab, kind, _HOME, engine=engine)
    talk.connect()
    talk.start()
    begun = talk.now()
    _site(talk, whose).reboot_router()
    again = talk.settle(begun)
    talk.end()
    stall = talk.stall(begun)
    note(f"NAT reboots, {kind}", stall=stall, direct_again=again)
    assert stall < _STALL
    assert again < _AGAIN


@_engines
@_sides
def test_a_site_gets_a_new_public_address(lab: Lab, engine: Engine, whose: str) -> None:
    talk = Talk(lab, _HOME, _HOME, engine=engine)
    talk.connect()
    talk.start()
    begun = talk.now()
    _site(talk, whose).readdress()
    again = talk.settle(begun)
    talk.end()
    stall = talk.stall(begun)
    note("new public address", stall=stall, direct_again=again)
    assert stall < _STALL
    assert again < _AGAIN


@_sides
def test_a_host_moves_to_another_network(lab: Lab, whose: str) -> None:
    talk = Talk(lab, _HOME, _HOME)
    elsewhere = lab.site("elsewhere", _HOME)
    talk.connect()
    talk.start()
    begun = talk.now()
    lab.move(_host(_site(talk, whose)), elsewhere)
    again = talk.settle(begun)
    talk.end()
    stall = talk.stall(begun)
    note("host moves to another network", stall=stall, direct_again=again)
    assert stall < _STALL
    assert again < _AGAIN


@_sides
def test_udp_is_blocked_midway_and_allowed_again(lab: Lab, whose: str) -> None:
    talk = Talk(lab, _HOME, _HOME)
    talk.connect()
    talk.start()
    begun = talk.now()
    _site(talk, whose).block_udp()
    talk.wait({"relayed"}, begun)
    talk.wait_progress(begun)
    stall = talk.stall(begun)
    allowed = talk.now()
    _site(talk, whose).allow_udp()
    again = talk.settle(allowed)
    talk.end()
    note("UDP blocked, then allowed", stall=stall, direct_again=again)
    assert stall < _TCP_STALL
    assert again < _AGAIN


@pytest.mark.parametrize(
    ("engine", "load", "far"),
    [
        pytest.param(engine, load, far, id=f"{far}-{load}-{engine.value}")
        for far in (_HOME, kinds.PUBLIC)
        for load in ("light", "bulk")
        for engine in Engine
    ],
)
def test_the_way_between_two_sites_is_cut_and_comes_back(
    lab: Lab, engine: Engine, load: str, far: SiteKind
) -> None:
    """Both keep the internet."""
    talk = Talk(lab, _HOME, far, engine=engine)
    talk.connect()
    talk.start(*([_BULK] if load == "bulk" else []))
    begun = talk.now()
    with lab.cut(talk.near, talk.far):
        relayed = talk.wait({"relayed"}, begun)
        talk.wait_progress(begun, _OUTAGE)
        stall = talk.stall(begun)
        # Before it is over: they are quick to notice.
        ended = talk.now()
    again = talk.wait(STRAIGHT, ended)
    talk.wait_progress(ended)
    talk.end()
    note(
        f"direct way to {far} cut, {load}",
        stall=stall,
        relayed_after=relayed,
        direct_again=again,
        stall_when_back=talk.stall(ended),
    )
    assert stall < _STALL
    assert again < _AGAIN


def test_the_relay_dies_while_nobody_needs_it(lab: Lab) -> None:
    talk = Talk(lab, _HOME, _HOME)
    talk.connect()
    talk.start()
    begun = talk.now()
    talk.ground.world.relays[0].node.process.kill()
    # Until the nodes have noticed, too.
    talk.wait_progress(begun, 2 * _OUTAGE)
    talk.end()
    stall = talk.stall(begun)
    note("relay killed while direct", stall=stall)
    assert stall < 1.0
    assert talk.a.ways(talk.b, since=begun.seen[0]) == []


@_sides
@pytest.mark.parametrize("how", ["cable", "interface"])
def test_a_link_goes_down_and_up(lab: Lab, whose: str, how: str) -> None:
    talk = Talk(lab, _HOME, _HOME)
    talk.connect()
    talk.start()
    host = _host(_site(talk, whose))
    down, up = {
        "cable": (host.unplug, host.plug),
        "interface": (host.interface_down, host.interface_up),
    }[how]
    begun = talk.now()
    down()
    time.sleep(_OUTAGE)
    up()
    back = talk.now()
    again = talk.settle(back)
    talk.end()
    stall = talk.stall(begun)
    note(f"link down for {_OUTAGE:g} s, {how}", stall=stall, direct_again=again)
    assert stall < _OUTAGE + _STALL
    assert again < _AGAIN


@_sides
def test_a_node_is_suspended(lab: Lab, whose: str) -> None:
    talk = Talk(lab, _HOME, _HOME)
    talk.connect()
    talk.start()
    process = (talk.a if whose == "near" else talk.b).process
    begun = talk.now()
    process.signal(signal.SIGSTOP)
    time.sleep(_OUTAGE)
    process.signal(signal.SIGCONT)
    back = talk.now()
    again = talk.settle(back)
    talk.end()
    stall = talk.stall(begun)
    note(f"suspended for {_OUTAGE:g} s", stall=stall, direct_again=again)
    assert stall < _OUTAGE + _STALL
    assert again < _AGAIN


@_engines
@pytest.mark.parametrize("timeout", [5, 30])
def test_an_idle_connection_outlives_the_timeout_of_the_mappings(
    lab: Lab, engine: Engine, timeout: int
) -> None:
    assert _HOME.nat is not None
    kind = SiteKind("forgetful", nat=replace(_HOME.nat, timeout=timeout))
    talk = Talk(lab, kind, kind, engine=engine)
    talk.connect()
    time.sleep(1.5 * timeout + 2)  # being idle for that long is what is tested
    begun = talk.now()
    took = talk.a.transfer(100_000)["seconds"]
    back = talk.b.transfer(100_000)["seconds"]
    # Where keep-alives come too seldom for the NAT, the relay helps out.
    again = talk.straight(begun, timeout=_AGAIN)
    note(
        f"idle for longer than mappings last ({timeout} s)",
        transfer=max(took, back),
        direct_again=again,
    )
    assert talk.a.lost() == talk.b.lost() == []


@_engines
def test_mappings_lost_once_are_kept_alive(lab: Lab, engine: Engine) -> None:
    assert _HOME.nat is not None
    kind = SiteKind("forgetful", nat=replace(_HOME.nat, timeout=5))
    talk = Talk(lab, kind, kind, engine=engine)
    talk.connect()
    for period in ("first", "second"):
        time.sleep(9.5)  # being idle for longer than mappings last is what is tested
        begun = talk.now()
        took = max(agent.transfer(100_000)["seconds"] for agent in (talk.a, talk.b))
        talk.straight(begun, timeout=_AGAIN)
        note(f"idle for longer than mappings last, {period} time", transfer=took)
    assert talk.a.ways(talk.b, since=begun.seen[0]) == []
    assert talk.b.ways(talk.a, since=begun.seen[1]) == []
    assert took < 1.0


@_sides
@pytest.mark.parametrize("size", [1400, 1300])
def test_a_line_that_drops_large_packets_is_used_directly(lab: Lab, size: int, whose: str) -> None:
    talk = Talk(lab, _HOME, _HOME)
    _site(talk, whose).line.drop_larger_than(size)
    talk.connect()
    begun = talk.now()
    for agent in (talk.a, talk.b):
        agent.transfer(5_000_000)
    note(f"packets above {size} B dropped", direct_after=talk.direct_after)
    assert talk.a.ways(talk.b, since=begun.seen[0]) == []
    assert talk.a.way(talk.b)["method"] in STRAIGHT


@pytest.mark.parametrize("size", [1400, 1300])
def test_a_line_begins_to_drop_large_packets_midway(lab: Lab, size: int) -> None:
    talk = Talk(lab, _HOME, _HOME)
    talk.connect()
    talk.start()
    begun = talk.now()
    talk.near.line.drop_larger_than(size)
    again = talk.settle(begun)
    talk.end()
    stall = talk.stall(begun)
    note(f"packets above {size} B dropped from now on", stall=stall, direct_again=again)
    assert stall < _STALL
    assert again < _AGAIN


@pytest.mark.parametrize("whose", ["near", "far", "both"])
def test_routers_that_answer_for_themselves(lab: Lab, whose: str) -> None:
    """Their connection tracking keeps a flow for what came too early, in the way of the host's."""
    ground = Ground(lab, Engine.KERNEL)
    sites = [lab.site(label, _HOME) for label in ("near", "far")]
    for site in sites:
        if whose in (site.label, "both"):
            assert isinstance(site.gateway, Gateway)
            site.gateway.answer()
    trial = ground.introduce(*map(ground.inhabit, sites)).judge(
        frozenset({"punched"}), Engine.KERNEL, 20.0
    )
    assert not trial.faults, "\n".join(trial.faults)
    assert trial.ms_direct is not None
    note("routers answer for themselves", direct_after=trial.ms_direct / 1000)
