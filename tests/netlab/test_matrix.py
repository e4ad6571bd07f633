"""Every pair of ADR-008's connectivity matrix that needs no NAT, one test per cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import nodes
from .topology import (
    DUAL_STACK,
    NO_AF_INET6,
    NO_V4,
    V4_LINK_LOCAL_V6,
    V4_ONLY,
    V6_ONLY,
    HostKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    from .lab import Lab
    from .process import Event

_CELLS = [
    (V4_ONLY, V4_ONLY, 4),
    (V6_ONLY, V6_ONLY, 6),
    (DUAL_STACK, V4_ONLY, 4),
    (V4_ONLY, DUAL_STACK, 4),
    (DUAL_STACK, V6_ONLY, 6),
    (V6_ONLY, DUAL_STACK, 6),
    (DUAL_STACK, DUAL_STACK, 4),
    (DUAL_STACK, DUAL_STACK, 6),
    (NO_AF_INET6, DUAL_STACK, 4),
    (DUAL_STACK, NO_AF_INET6, 4),
    (NO_AF_INET6, V4_ONLY, 4),
    (V4_LINK_LOCAL_V6, DUAL_STACK, 4),
    (DUAL_STACK, V4_LINK_LOCAL_V6, 4),
    (NO_V4, DUAL_STACK, 6),
    (DUAL_STACK, NO_V4, 6),
]

_CROSS_FAMILY = [
    (V4_ONLY, V6_ONLY, 6),
    (NO_AF_INET6, V6_ONLY, 6),
    (V4_LINK_LOCAL_V6, V6_ONLY, 6),
    (V6_ONLY, V4_ONLY, 4),
    (NO_V4, V4_ONLY, 4),
]

_FILE_SIZE = 1_000_000
_QUICK = 5.0  # seconds; an impossible pair must not use up the 20 s and more of a timeout


def _cell(cell: tuple[HostKind, HostKind, int]) -> str:
    return f"{cell[0].name}_dials_{cell[1].name}_over_ipv{cell[2]}"


def _names(address: IPv4Address | IPv6Address) -> Callable[[Event], bool]:
    expected = nodes.endpoint(address)
    return lambda event: event["address"] == expected


@pytest.mark.parametrize("cell", _CELLS, ids=_cell)
def test_pair_connects_by_id_and_address(lab: Lab, cell: tuple[HostKind, HostKind, int]) -> None:
    near, far, version = cell
    a, b = lab.host("a", near), lab.host("b", far)
    node = nodes.start(b)

    outcome = nodes.run(a, "connect", node.at(version))
    result = outcome.last("result")
    assert outcome.code == 0
    assert result["ok"] is True
    assert result["peer_id"] == node.peer_id
    assert result["method"] == "direct"
    assert result["remote"] == nodes.endpoint(b.address(version))
    assert result["group"] == "X25519MLKEM768"
    accepted = node.process.wait_event("connected")
    assert accepted["direction"] == "in"
    assert accepted["remote"].startswith(nodes.endpoint(a.address(version)).rpartition(":")[0])

    file = nodes.make_file(a, "data", _FILE_SIZE)
    sent = nodes.run(a, "send", node.at(version), str(file))
    assert sent.code == 0
    assert sent.last("sent")["bytes"] == _FILE_SIZE
    assert sent.last("sent")["method"] == "direct"
    assert nodes.sha256(node.inbox / "data") == nodes.sha256(file)


@pytest.mark.parametrize("cell", _CROSS_FAMILY, ids=_cell)
def test_pair_without_a_common_family_fails_quickly_and_says_why(
    lab: Lab, cell: tuple[HostKind, HostKind, int]
) -> None:
    near, far, version = cell
    a, b = lab.host("a", near), lab.host("b", far)
    node = nodes.start(b)

    outcome = nodes.run(a, "connect", node.at(version))
    result = outcome.last("result")
    assert outcome.code == 1
    assert result["ok"] is False
    assert outcome.seconds < _QUICK
    (attempt,) = result["attempts"]
    assert attempt["address"] == nodes.endpoint(b.address(version))
    assert attempt["reason"] in {"family", "unreachable"}
    assert f"IPv{version}" in attempt["detail"]
    assert f"IPv{version}" in outcome.stderr or f"IPv{version}" in result["error"]


def test_dual_stack_peer_tells_each_family_its_external_address(lab: Lab) -> None:
    hub = nodes.start(lab.host("hub"))
    v4, v6 = lab.host("v4", V4_ONLY), lab.host("v6", V6_ONLY)
    for host, version in ((v4, 4), (v6, 6)):
        node = nodes.start(host, "--known-peer", hub.at(version))
        known = node.process.wait_event("known_peer", lambda e: e["state"] == "connected")
        assert known["peer_id"] == hub.peer_id
        observed = node.process.wait_event("external_address")
        assert observed["address"] == nodes.endpoint(host.address(version))
    # Observation works in both roles: the hub only ever accepted.
    for version in (4, 6):
        hub.process.wait_event("external_address", _names(hub.host.address(version)))


def test_dual_stack_node_learns_an_external_address_per_family(lab: Lab) -> None:
    first, second = nodes.start(lab.host("first")), nodes.start(lab.host("second"))
    host = lab.host("a")
    node = nodes.start(host, "--known-peer", first.at(4), "--known-peer", second.at(6))
    for version in (4, 6):
        node.process.wait_event("external_address", _names(host.address(version)))


def test_known_peer_without_an_id_is_accepted_over_either_family(lab: Lab) -> None:
    hub = nodes.start(lab.host("hub"))
    for version, kind in ((4, V4_ONLY), (6, V6_ONLY)):
        address = nodes.endpoint(hub.host.address(version))
        node = nodes.start(lab.host(f"v{version}", kind), "--known-peer", address)
        known = node.process.wait_event("known_peer", lambda e: e["state"] == "connected")
        assert known["peer_id"] == hub.peer_id
