"""Pairs that share a network: hosts of one LAN, and subscribers of one carrier."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from . import kinds
from .agent import STRAIGHT
from .probe import ask, start_echo
from .routers import Engine
from .trial import Ground

if TYPE_CHECKING:
    from .kinds import SiteKind
    from .lab import Lab

_engines = pytest.mark.parametrize("engine", list(Engine), ids=lambda engine: engine.value)

_RELAYED = frozenset({"relayed"})
_WAIT = 10.0
"""Seconds to become direct in."""


def _hairpinning(kind: SiteKind) -> SiteKind:
    """The same kind, where what insiders send to the external address comes back in."""
    if kind.carrier is not None:
        return replace(kind, carrier=replace(kind.carrier, hairpin=True))
    assert kind.nat is not None
    return replace(kind, nat=replace(kind.nat, hairpin=True))


@_engines
@pytest.mark.parametrize(
    "kind",
    [
        kinds.PORT_RESTRICTED,
        pytest.param(kinds.FIREWALLED, marks=pytest.mark.full),
        pytest.param(kinds.CGNAT_SYMMETRIC, marks=pytest.mark.full),
        kinds.SYMMETRIC_RANDOM,
    ],
    ids=str,
)
def test_hosts_of_one_lan_use_their_private_addresses(
    lab: Lab, kind: SiteKind, engine: Engine
) -> None:
    ground = Ground(lab, engine)
    site = lab.site("home", kind, engine=engine)
    hosts = site.host, lab.add_host(site, "neighbour")
    meeting = ground.introduce(*(ground.inhabit(site, host) for host in hosts))
    trial = meeting.judge(STRAIGHT, engine, _WAIT)
    assert not trial.faults, "\n".join(trial.faults)
    assert trial.remote is not None
    assert trial.remote.rpartition(":")[0] == str(hosts[1].v4)


def test_hosts_of_one_lan_that_have_ipv6_too(lab: Lab) -> None:
    ground = Ground(lab, Engine.KERNEL)
    site = lab.site("home", kinds.HOME)
    hosts = site.host, lab.add_host(site, "neighbour")
    meeting = ground.introduce(*(ground.inhabit(site, host) for host in hosts))
    trial = meeting.judge(STRAIGHT, Engine.KERNEL, _WAIT)
    assert not trial.faults, "\n".join(trial.faults)


@_engines
@pytest.mark.parametrize(
    ("kind", "hairpins", "required"),
    [
        (kinds.PORT_RESTRICTED, True, STRAIGHT),
        (kinds.PORT_RESTRICTED, False, _RELAYED),
        pytest.param(kinds.SYMMETRIC_RANDOM, True, _RELAYED, marks=pytest.mark.full),
    ],
    ids=["port-restricted-hairpin", "port-restricted-none", "symmetric-random-hairpin"],
)
def test_isolated_hosts_of_one_lan_have_their_external_addresses(
    lab: Lab, kind: SiteKind, hairpins: bool, required: frozenset[str], engine: Engine
) -> None:
    ground = Ground(lab, engine)
    site = lab.site("guests", _hairpinning(kind) if hairpins else kind, engine=engine)
    hosts = site.host, lab.add_host(site, "neighbour")
    start_echo(hosts[1])
    assert ask(hosts[0], hosts[1].address(4)).received == 1
    assert site.gateway is not None
    site.gateway.isolate()
    assert ask(hosts[0], hosts[1].address(4), tries=1).received == 0
    if hairpins and engine is Engine.KERNEL:
        required = STRAIGHT  # its filters do not apply to hairpinned packets
    meeting = ground.introduce(*(ground.inhabit(site, host) for host in hosts))
    trial = meeting.judge(required, engine, _WAIT)
    assert not trial.faults, "\n".join(trial.faults)


@_engines
@pytest.mark.parametrize(
    ("kind", "hairpins", "required"),
    [
        (kinds.CGNAT_PORT_RESTRICTED, False, _RELAYED),
        (kinds.CGNAT_PORT_RESTRICTED, True, STRAIGHT),
        pytest.param(kinds.CGNAT_SYMMETRIC, True, _RELAYED, marks=pytest.mark.full),
    ],
    ids=["port-restricted-none", "port-restricted-hairpin", "symmetric-hairpin"],
)
def test_two_subscribers_of_one_carrier(
    lab: Lab, kind: SiteKind, hairpins: bool, required: frozenset[str], engine: Engine
) -> None:
    ground = Ground(lab, engine)
    if hairpins:
        kind = _hairpinning(kind)
    assert kind.carrier is not None
    carrier = lab.carrier("carrier", kind.carrier, engine=engine)
    sites = [lab.site(label, kind, engine=engine, carrier=carrier) for label in ("a", "b")]
    meeting = ground.introduce(*(ground.inhabit(site) for site in sites))
    trial = meeting.judge(required, engine, _WAIT)
    assert not trial.faults, "\n".join(trial.faults)
