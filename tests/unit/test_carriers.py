"""Carriers: their order, their delays, and what is remembered of a network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyreach.addresses import SocketAddress
from anyreach.candidates import InterfaceAddress
from anyreach.carriers import (
    MAX_NETWORKS,
    SECOND_BEST_SECONDS,
    Carrier,
    CarrierMemory,
    NetworkKey,
    better_than,
    carrier_plan,
    network_key,
)

NOW = 1000.0
HOME: NetworkKey = frozenset({"192.168.1.0/24"})
OFFICE: NetworkKey = frozenset({"20.1.0.0/24", "10.0.0.0/8"})


def interface(text: str, name: str = "eth0") -> InterfaceAddress:
    ip, _, length = text.partition("/")
    return InterfaceAddress(name, SocketAddress.of(ip, 0).ip, int(length))


@pytest.mark.parametrize(
    ("proxy", "remembered", "plan"),
    [
        (False, None, (("h3", 0.0), ("h2", 0.25))),
        (True, None, (("h3", 0.0), ("h2-proxy", 0.25), ("h2", 0.5))),
        (False, "h3", (("h3", 0.0), ("h2", 0.25))),
        (False, "h2", (("h2", 0.0), ("h3", 0.25))),
        (True, "h2", (("h2", 0.0), ("h3", 0.25), ("h2-proxy", 0.5))),
        (True, "h2-proxy", (("h2-proxy", 0.0), ("h3", 0.25), ("h2", 0.5))),
        (False, "h2-proxy", (("h3", 0.0), ("h2", 0.25))),
    ],
)
def test_plans(
    proxy: bool, remembered: Carrier | None, plan: tuple[tuple[Carrier, float], ...]
) -> None:
    assert carrier_plan(proxy=proxy, remembered=remembered) == plan


def test_what_cannot_work_is_left_out() -> None:
    assert carrier_plan(udp=False) == (("h2", 0.0),)
    assert carrier_plan(direct_tcp=False) == (("h3", 0.0),)
    assert carrier_plan(udp=False, direct_tcp=False, proxy=True) == (("h2-proxy", 0.0),)
    assert carrier_plan(udp=False, direct_tcp=False) == (("h2", 0.0),)


@pytest.mark.parametrize(("rtt", "delay"), [(0.001, 0.1), (0.05, 0.15), (0.2, 0.25), (9.0, 0.25)])
def test_a_near_relay_is_waited_for_less(rtt: float, delay: float) -> None:
    assert carrier_plan(rtt=rtt)[1][1] == pytest.approx(delay)


@given(
    proxy=st.booleans(),
    direct_tcp=st.booleans(),
    udp=st.booleans(),
    rtt=st.none() | st.floats(0.0, 10.0),
    remembered=st.none() | st.sampled_from(["h3", "h2", "h2-proxy"]),
    delay=st.floats(0.01, 2.0),
)
def test_any_plan(
    *,
    proxy: bool,
    direct_tcp: bool,
    udp: bool,
    rtt: float | None,
    remembered: Carrier | None,
    delay: float,
) -> None:
    plan = carrier_plan(
        proxy=proxy, direct_tcp=direct_tcp, udp=udp, rtt=rtt, remembered=remembered, delay=delay
    )
    carriers = [carrier for carrier, _ in plan]
    offsets = [offset for _, offset in plan]
    assert carriers
    assert len(set(carriers)) == len(carriers)
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    assert offsets[-1] <= 2 * delay
    assert ("h3" in carriers) == udp
    assert "h2-proxy" not in carriers or proxy
    assert remembered not in carriers or carriers[0] == remembered


def test_only_http_3_is_worth_a_change() -> None:
    assert better_than("h3") == ()
    assert better_than("h2") == better_than("h2-proxy") == ("h3",)


class TestNetworks:
    def test_keys(self) -> None:
        interfaces = [
            interface("127.0.0.1/8", "lo"),
            interface("::1/128", "lo"),
            interface("fe80::1/64"),
            interface("192.168.1.7/24"),
            interface("2600:1:2:3::7/128"),
            interface("2600:1:2:3::8/64"),
        ]
        assert network_key(interfaces) == {"192.168.1.0/24", "2600:1:2:3::/64"}
        assert network_key(reversed(interfaces)) == network_key(interfaces)
        assert network_key([], ["192.168.1.1"]) == {"via 192.168.1.1"}

    def test_winners_are_remembered_per_network(self) -> None:
        memory = CarrierMemory()
        memory.won(HOME, "h3", NOW)
        memory.won(OFFICE, "h2-proxy", NOW)
        assert (memory.winner(HOME, NOW), memory.winner(OFFICE, NOW)) == ("h3", "h2-proxy")
        memory.won(OFFICE, "h2", NOW)
        assert memory.winner(OFFICE, NOW) == "h2"
        assert memory.winner(frozenset(), NOW) is None

    def test_a_failure_ends_the_preference(self) -> None:
        memory = CarrierMemory()
        memory.won(HOME, "h2", NOW)
        memory.failed(HOME, "h3")
        assert memory.winner(HOME, NOW) == "h2"
        memory.failed(HOME, "h2")
        assert memory.winner(HOME, NOW) is None

    def test_networks_that_may_be_others_are_forgotten(self) -> None:
        memory = CarrierMemory()
        memory.won(HOME, "h2", NOW)
        memory.won(OFFICE, "h2", NOW)
        for network in (HOME, OFFICE, frozenset({"via 10.0.0.1"})):
            memory.entered(network)
        assert (memory.winner(HOME, NOW), memory.winner(OFFICE, NOW)) == (None, "h2")
        memory.clear()
        assert len(memory) == 0

    def test_the_second_best_goes_first_for_a_while_only(self) -> None:
        memory = CarrierMemory()
        memory.won(HOME, "h2", NOW)
        memory.won(OFFICE, "h3", NOW)
        assert memory.winner(HOME, NOW + SECOND_BEST_SECONDS) == "h2"
        assert memory.winner(HOME, NOW + SECOND_BEST_SECONDS + 1) is None
        assert memory.winner(OFFICE, NOW + 1e6) == "h3"

    def test_memory_is_bounded(self) -> None:
        memory = CarrierMemory()
        for number in range(2 * MAX_NETWORKS):
            memory.won(HOME, "h3", NOW)
            memory.won(frozenset({f"20.{number}.0.0/16"}), "h2", NOW)
        assert len(memory) == MAX_NETWORKS
        assert memory.winner(HOME, NOW) == "h3"
        assert memory.winner(frozenset({"20.0.0.0/16"}), NOW) is None
