"""``anyreach netcheck`` in each class of network, and what it says of a pair that stays relayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from . import kinds
from .lab import Lab
from .requirements import netlab_required
from .world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .kinds import SiteKind
    from .process import Event
    from .sites import Site

pytestmark = [pytest.mark.xdist_group("netcheck")]

_STRICT: Final = "address-and-port-dependent"

_COMMAND: Final = 60.0
"""Seconds; a bound on liveness."""


@dataclass(frozen=True, slots=True)
class _Case:
    """What a report must say.

    ``outlook`` is for peers that are restricted, sequential and random.
    """

    kind: SiteKind
    udp: str
    nat: dict[str, Any]
    carriers: dict[str, bool]
    outlook: tuple[str, str, str]


_CASES: Final = (
    _Case(
        kinds.PUBLIC,
        "works",
        {"mapping": "none"},
        {"h3": True, "h2": True},
        ("punched", "punched", "punched"),
    ),
    _Case(
        kinds.PORT_RESTRICTED,
        "works",
        {"mapping": "endpoint-independent", "filtering": _STRICT, "ports": "preserving"},
        {"h3": True, "h2": True},
        ("punched", "predicted", "birthday"),
    ),
    _Case(
        kinds.SYMMETRIC_SEQUENTIAL,
        "works",
        {"mapping": _STRICT, "filtering": _STRICT, "ports": "sequential"},
        {"h3": True, "h2": True},
        ("predicted", "predicted", "relayed"),
    ),
    _Case(
        kinds.SYMMETRIC_RANDOM,
        "works",
        {"mapping": _STRICT, "filtering": _STRICT, "ports": "random"},
        {"h3": True, "h2": True},
        ("birthday", "relayed", "relayed"),
    ),
    _Case(
        kinds.UDP_BLOCKED,
        "blocked",
        {},
        {"h3": False, "h2": True},
        ("relayed", "relayed", "relayed"),
    ),
    _Case(
        kinds.PROXY_ONLY,
        "blocked",
        {},
        {"h3": False, "h2": False, "h2-proxy": True},
        ("relayed", "relayed", "relayed"),
    ),
)


@dataclass(frozen=True, slots=True)
class _Sites:
    world: World
    of: dict[SiteKind, Site]


@pytest.fixture(scope="module")
def sites() -> Iterator[_Sites]:
    """One site of each kind, and two relays that all know."""
    netlab_required()
    with Lab() as lab:
        of = {case.kind: lab.site(case.kind.name.replace("-", "_"), case.kind) for case in _CASES}
        yield _Sites(World(lab, relays=2), of)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: str(case.kind))
def test_a_network_is_what_it_is_said_to_be(sites: _Sites, case: _Case) -> None:
    outcome = sites.world.run(sites.of[case.kind], "netcheck", timeout=_COMMAND)
    assert outcome.code == 0, (outcome.events, outcome.stderr)
    report = outcome.last("netcheck")
    assert outcome.events[-1] is report
    assert report["udp"] == case.udp, report["text"]
    assert {key: report["nat"][key] for key in case.nat} == case.nat, report["text"]
    assert len(report["peers"]) == 2
    for peer in report["peers"]:
        assert peer["connected"], report["text"]
        carriers = {check["carrier"]: check["ok"] for check in peer["carriers"]}
        assert carriers == case.carriers, report["text"]
        assert all(check["rtt_ms"] > 0 for check in peer["carriers"] if check["ok"])
    assert _outlook(report) == dict(
        zip(("restricted", "sequential", "random"), case.outlook, strict=True)
    ), report["text"]
    if case.udp == "works":
        assert all(peer["sees"] for peer in report["peers"])
        (four,) = [family for family in report["families"] if family["family"] == 4]
        assert four["state"] == "works"


def _outlook(report: Event) -> dict[str, str]:
    kinds_ = ("restricted", "sequential", "random")
    return {entry["peers"]: entry["way"] for entry in report["outlook"] if entry["peers"] in kinds_}


def test_a_pair_of_random_nats_is_told_what_would_help() -> None:
    netlab_required()
    with Lab() as lab:
        near, far = (lab.site(label, kinds.SYMMETRIC_RANDOM) for label in ("near", "far"))
        world = World(lab, relays=2)
        node = world.start_node(far)
        outcome = world.run(near, "netcheck", node.peer_id, timeout=_COMMAND)
        assert outcome.code == 0, (outcome.events, outcome.stderr)
        told = outcome.last("explanation")
        text = told["text"]
        assert told["method"] == "relayed", text
        assert told["plan"] == "hopeless", text
        assert told["peer_nat"]["ports"] == "random", text
        assert "both ends are behind NATs with random ports" in told["helps"][0], text
        assert {note["side"] for note in told["candidates"]} == {"own", "peer"}, text


def test_a_peer_that_does_not_punch_is_told_from_one_that_cannot() -> None:
    netlab_required()
    with Lab() as lab:
        near, far = (lab.site(label, kinds.PORT_RESTRICTED) for label in ("near", "far"))
        world = World(lab)
        node = world.start_node(far, "--no-punch")
        told = world.run(near, "netcheck", node.peer_id, timeout=_COMMAND).last("explanation")
        assert told["method"] == "relayed", told["text"]
        assert told["attempts"] == [], told["text"]
        assert "the peer takes no part in NAT traversal" in told["helps"][0], told["text"]


def test_a_pair_that_gets_direct_says_so() -> None:
    netlab_required()
    with Lab() as lab:
        near, far = (lab.site(label, kinds.PORT_RESTRICTED) for label in ("near", "far"))
        world = World(lab)
        node = world.start_node(far)
        told = world.run(near, "netcheck", node.peer_id, timeout=_COMMAND).last("explanation")
        text = told["text"]
        assert told["method"] == "punched", text
        assert told["helps"] == [], text
        assert "works" in {note["outcome"] for note in told["candidates"]}, text
        assert told["attempts"][-1]["outcome"] == "direct", text
