"""Every pair of NATs gets its cheapest method, and the same one on both sides."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from anyreach.addresses import SocketAddress
from anyreach.nat import Behaviour, NatReport
from anyreach.ports import PortBehaviour
from anyreach.punching import BIRTHDAY_METHODS, could_improve, plan

NONE: Behaviour = "none"
EI: Behaviour = "endpoint-independent"
AD: Behaviour = "address-dependent"
APD: Behaviour = "address-and-port-dependent"

FIREWALL = NatReport(NONE, APD)
FULL_CONE = NatReport(EI, EI, ports="preserving")
ADDRESS_RESTRICTED = NatReport(EI, AD, ports="preserving")
PORT_RESTRICTED = NatReport(EI, APD, ports="preserving")
SEQUENTIAL = NatReport(APD, APD, ports="sequential", step=1)
RANDOM = NatReport(APD, APD, ports="random")
UNKNOWN = NatReport()

KINDS = [FIREWALL, FULL_CONE, ADDRESS_RESTRICTED, PORT_RESTRICTED, SEQUENTIAL, RANDOM]

# What networks allow, measured with plain sockets: D and S are one, as a dial needs no plan.
TABLE = [
    *"SSSSPB",
    *"SSSSSS",
    *"SSSSSS",
    *"SSSSPB",
    *"PSSPPR",
    *"BSSBRR",
]

LETTER = {"simple": "S", "predict": "P", "pool": "B", "spray": "B", "hopeless": "R"}


@pytest.mark.parametrize("client", [True, False])
def test_each_pair_gets_its_cheapest_method(client: bool) -> None:
    pairs = product(KINDS, KINDS)
    found = [LETTER[plan(own, peer, client=client).method] for own, peer in pairs]
    assert found == TABLE


@pytest.mark.parametrize("own", [*KINDS, UNKNOWN])
@pytest.mark.parametrize("peer", [*KINDS, UNKNOWN])
def test_both_ends_agree(own: NatReport, peer: NatReport) -> None:
    ours, theirs = plan(own, peer, client=True), plan(peer, own, client=False)
    assert ours.methods == theirs.methods
    assert ours.certain == theirs.certain


def test_both_ends_agree_about_all_there_could_be() -> None:
    behaviours: tuple[Behaviour, ...] = get_args(Behaviour)
    ports: tuple[PortBehaviour, ...] = get_args(PortBehaviour)
    all_ = [NatReport(m, f, ports=p) for m, f, p in product(behaviours, behaviours, ports)]
    for own, peer in product(all_, all_):
        ours, theirs = plan(own, peer, client=True), plan(peer, own, client=False)
        assert ours.methods == theirs.methods
        assert ours.reason
        assert len({m for m in ours.methods if m in BIRTHDAY_METHODS}) <= 1


def test_the_random_side_opens_the_pool() -> None:
    assert plan(RANDOM, PORT_RESTRICTED, client=True).method == "spray"
    assert plan(RANDOM, PORT_RESTRICTED, client=False).method == "pool"
    assert plan(PORT_RESTRICTED, RANDOM, client=True).method == "pool"
    assert plan(PORT_RESTRICTED, RANDOM, client=False).method == "spray"


def test_what_is_not_known_begins_simply() -> None:
    for peer in (None, UNKNOWN):
        assert plan(UNKNOWN, peer, client=True).methods == ("simple",)
        assert plan(RANDOM, peer, client=True).methods == ("simple",)
        assert plan(SEQUENTIAL, peer, client=True).methods == ("simple", "predict")
        assert not plan(PORT_RESTRICTED, peer, client=True).certain
    assert plan(PORT_RESTRICTED, PORT_RESTRICTED, client=True).certain


def test_one_relay_is_enough_to_go_by() -> None:
    """It cannot tell endpoint-independent from address-dependent mappings."""
    guarded = NatReport("unknown", APD, ports="preserving")
    result = plan(guarded, RANDOM, client=True)
    assert result.method == "pool"
    assert not result.certain
    counting = NatReport("unknown", APD, ports="sequential", step=1)
    assert plan(counting, guarded, client=True).methods == ("simple", "predict")
    assert plan(guarded, guarded, client=True).methods == ("simple",)


def test_a_way_is_left_when_the_verdicts_were_wrong() -> None:
    assert plan(SEQUENTIAL, ADDRESS_RESTRICTED, client=True).methods == ("simple", "predict")
    assert plan(RANDOM, ADDRESS_RESTRICTED, client=True).methods == ("simple", "spray")
    assert "simple" in plan(RANDOM, PORT_RESTRICTED, client=True).methods
    assert "simple" in plan(SEQUENTIAL, SEQUENTIAL, client=True).methods


def test_ports_nobody_has_looked_at() -> None:
    changing = NatReport(APD, APD)
    assert plan(changing, PORT_RESTRICTED, client=True).methods == ("simple", "predict", "spray")
    assert plan(changing, changing, client=True).methods == ("simple", "predict")
    assert plan(changing, RANDOM, client=True).method == "hopeless"


def test_a_mapping_for_each_address_that_lets_it_in_can_be_found() -> None:
    by_address = NatReport(AD, AD, ports="random")
    assert plan(by_address, RANDOM, client=True).methods == ("spray", "simple")
    assert plan(by_address, RANDOM, client=False).methods == ("pool", "simple")
    counting = NatReport(AD, EI, ports="sequential", step=1)
    assert plan(counting, RANDOM, client=True).methods == ("predict", "simple")
    # One that filters by port lets in only whom it expects.
    strict = NatReport(AD, APD, ports="sequential", step=1)
    assert plan(strict, RANDOM, client=True).method == "hopeless"


def test_a_side_that_may_be_open_is_tried_simply_first() -> None:
    for mapping in (NONE, EI):
        methods = plan(RANDOM, NatReport(mapping), client=True).methods
        assert methods == ("simple", "spray")


def test_random_ports_on_both_sides_are_hopeless() -> None:
    result = plan(RANDOM, RANDOM, client=True)
    assert result.method == "hopeless"
    assert result.methods == ()
    assert result.certain
    assert "no way but a relay" in result.reason


def test_other_addresses_may_do() -> None:
    """IPv6 beside a hopeless IPv4, or the same network."""
    result = plan(RANDOM, RANDOM, client=True, elsewhere=True)
    assert result.methods == ("simple",)
    assert "other addresses" in result.reason
    methods = plan(SEQUENTIAL, SEQUENTIAL, client=True, elsewhere=True).methods
    assert methods == ("simple", "predict", "predict")
    assert plan(FIREWALL, FIREWALL, client=True, elsewhere=True).methods == ("simple",)


def test_switched_off() -> None:
    result = plan(RANDOM, PORT_RESTRICTED, client=True, birthday=False)
    assert result.methods == ("simple",)
    assert "switched off" in result.reason
    result = plan(SEQUENTIAL, PORT_RESTRICTED, client=True, predict=False)
    assert result.methods == ("simple",)
    assert "switched off" in result.reason
    assert "switched" not in plan(FIREWALL, FIREWALL, client=True, birthday=False).reason


class TestCouldImprove:
    @staticmethod
    def check(remote: str, *others: str) -> bool:
        local = SocketAddress.of("192.168.1.5", 9)
        pairs = [(local, SocketAddress.of(other, 9)) for other in others]
        return could_improve(SocketAddress.of(remote, 9), pairs)

    def test_ipv6_is_better_than_ipv4(self) -> None:
        assert self.check("203.0.113.5", "203.0.113.6", "2001:db8::1")
        assert not self.check("2001:db8::1", "203.0.113.5", "2001:db8::2")
        assert not self.check("203.0.113.5", "203.0.113.6")
        assert not self.check("203.0.113.5")

    def test_the_local_network_is_better_than_the_way_round(self) -> None:
        assert self.check("203.0.113.5", "192.168.1.6")
        assert self.check("2001:db8::1", "fd00::1")
        assert not self.check("192.168.1.6", "192.168.1.7", "2001:db8::1")
        assert not self.check("127.0.0.1", "192.168.1.7")
