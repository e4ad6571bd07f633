"""The table of what networks allow, as it was measured, against what is derived from the kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import kinds
from .truth import Cheapest, acceptable, cheapest, is_dialable, required

if TYPE_CHECKING:
    from .kinds import SiteKind

_LETTERS = dict(zip("DSPBCRT", Cheapest, strict=True))

_V4 = [
    kinds.V4_ONLY,
    kinds.FIREWALLED,
    kinds.FULL_CONE,
    kinds.ADDRESS_RESTRICTED,
    kinds.PORT_RESTRICTED,
    kinds.SYMMETRIC_SEQUENTIAL,
    kinds.SYMMETRIC_RANDOM,
    kinds.CGNAT_PORT_RESTRICTED,
    kinds.CGNAT_SYMMETRIC,
    kinds.UDP_BLOCKED,
]
_TABLE = """
    D D D D D D D D D C
    D S D S S P B S B T
    D D D D D D D D D T
    D S D S S S S S S T
    D S D S S P B S B T
    D P D S P P R P R T
    D B D S B R R B R T
    D S D S S P B S B T
    D B D S B R R B R T
    C T T T T T T T T T
"""
_CELLS = [
    (row, column, _LETTERS[letter])
    for row, line in zip(_V4, _TABLE.split("\n")[1:-1], strict=True)
    for column, letter in zip(_V4, line.split(), strict=True)
]


@pytest.mark.parametrize("cell", _CELLS, ids=lambda cell: f"{cell[0]}_and_{cell[1]}")
def test_cell_of_the_ipv4_table(cell: tuple[SiteKind, SiteKind, Cheapest]) -> None:
    row, column, expected = cell
    assert cheapest(row, column) is expected


def test_all_sites_without_udp_are_alike() -> None:
    for other in kinds.ALL.values():
        ways = {
            cheapest(hostile, other)
            for hostile in (
                kinds.UDP_BLOCKED,
                kinds.TCP_443_ONLY,
                kinds.PROXY_ONLY,
                kinds.PROXY_AUTH,
            )
        }
        assert len(ways) == 1


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (kinds.V4_ONLY, kinds.V6_ONLY, "R"),
        (kinds.DUAL_STACK, kinds.V4_ONLY, "D"),
        (kinds.DUAL_STACK, kinds.V6_ONLY, "D"),
        (kinds.V6_FIREWALLED, kinds.V6_ONLY, "D"),
        (kinds.V6_FIREWALLED, kinds.V6_FIREWALLED, "S"),
        (kinds.HOME_SYMMETRIC, kinds.HOME_SYMMETRIC, "S"),
        (kinds.NAT_OPEN_V6, kinds.HOME_SYMMETRIC, "D"),
        (kinds.V6_ONLY, kinds.UDP_BLOCKED, "T"),
    ],
)
def test_pairs_with_ipv6(a: SiteKind, b: SiteKind, expected: str) -> None:
    assert cheapest(a, b) is cheapest(b, a) is _LETTERS[expected]


def test_only_open_ends_can_be_dialled() -> None:
    assert is_dialable(kinds.SYMMETRIC_RANDOM, kinds.PUBLIC)
    assert not is_dialable(kinds.PUBLIC, kinds.SYMMETRIC_RANDOM)
    assert not is_dialable(kinds.UDP_BLOCKED, kinds.PUBLIC)
    assert not is_dialable(kinds.V6_ONLY, kinds.V4_ONLY)
    assert is_dialable(kinds.HOME, kinds.NAT_OPEN_V6)


def test_direct_is_never_acceptable_where_it_cannot_be() -> None:
    for near in kinds.ALL.values():
        for far in kinds.ALL.values():
            is_direct = cheapest(near, far) is Cheapest.DIRECT
            assert ("direct" in acceptable(near, far)) is is_direct


def test_a_relay_is_required_exactly_where_no_datagram_gets_through() -> None:
    for near in kinds.ALL.values():
        for far in kinds.ALL.values():
            straight = cheapest(near, far) <= Cheapest.BIRTHDAY
            assert ("relayed" in required(near, far)) is not straight
            assert "punched" in required(near, far) or is_dialable(near, far) or not straight
