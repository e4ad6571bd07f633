"""A router that lends ports makes even the worst pair of NATs direct."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import kinds
from .lab import Lab
from .requirements import netlab_required
from .topology import UPLINK
from .world import World

if TYPE_CHECKING:
    from .process import Process
    from .sites import Site

_SCRIPT: Final = str(Path(__file__).with_name("nat_pmp.py"))

_COMMAND: Final = 60.0
"""Seconds; a bound on liveness."""


def _lend_ports(site: Site) -> Process:
    """Have the router of a site speak NAT-PMP."""
    gateway = site.gateway
    assert gateway is not None
    assert gateway.lan is not None
    gateway.nft('insert rule inet firewall input iifname "lan" udp dport 5351 accept')
    process = gateway.spawn_python(_SCRIPT, str(gateway.lan[1]), str(gateway.address(4)), UPLINK)
    process.wait_event("listening")
    return process


def test_two_random_nats_are_direct_if_one_router_lends_a_port() -> None:
    netlab_required()
    with Lab() as lab:
        near, far = (lab.site(label, kinds.SYMMETRIC_RANDOM) for label in ("near", "far"))
        router = _lend_ports(far)
        world = World(lab, relays=2)
        node = world.start_node(far)
        lent = router.wait_event("lent")
        assert lent["host"] == str(far.host.address(4))

        outcome = world.run(near, "netcheck", node.peer_id, timeout=_COMMAND)
        told = outcome.last("explanation")
        assert told["method"] in ("direct", "punched"), (told["text"], outcome.stderr)
        assert told["remote"] == f"{far.external(4)}:{lent['port']}", told["text"]

        node.process.terminate()
        assert router.wait_event("returned")["host"] == lent["host"]


def test_netcheck_tells_of_a_port_that_is_lent() -> None:
    netlab_required()
    with Lab() as lab:
        site = lab.site("site", kinds.SYMMETRIC_RANDOM)
        router = _lend_ports(site)
        report = World(lab, relays=2).run(site, "netcheck", timeout=_COMMAND).last("netcheck")
        port = router.wait_event("lent")["port"]
        assert report["port_mapping"] == {
            "state": "mapped",
            "external": f"{site.external(4)}:{port}",
            "protocol": "nat-pmp",
            "error": None,
        }, report["text"]
        ways = {entry["peers"]: entry["way"] for entry in report["outlook"]}
        assert ways["random"] == "punched", report["text"]
        router.wait_event("returned")
