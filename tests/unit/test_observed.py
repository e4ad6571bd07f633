"""Belief about the own address."""

from __future__ import annotations

import pytest

from anyreach.addresses import SocketAddress
from anyreach.observed import MAX_OBSERVERS, ObservationChange, ObservedAddresses
from anyreach.peer import PeerId

OURS = SocketAddress.of("203.0.113.7", 9000)
OTHER_PORT = SocketAddress.of("203.0.113.7", 9001)
LIE = SocketAddress.of("198.51.100.66", 9000)
OURS6 = SocketAddress.of("2001:db8::7", 9000)


def peer(number: int) -> PeerId:
    return PeerId.from_public_key(number.to_bytes(4, "big"))


def at(host: str) -> SocketAddress:
    return SocketAddress.of(host, 9000)


P1, P2, P3 = peer(1), peer(2), peer(3)
N1, N2, N3 = at("192.0.2.1"), at("198.51.100.1"), at("203.0.113.1")


def test_one_report_makes_a_candidate() -> None:
    seen = ObservedAddresses()
    assert seen.report(P1, N1, OURS, 1.0) == (ObservationChange("adopted", OURS, 1),)
    assert seen.report(P1, N1, OURS, 2.0) == ()
    assert seen.candidates() == (OURS,)
    assert seen.believed() == ()
    assert seen.observers(OURS) == 1
    assert seen.observers(LIE) == 0


def test_two_networks_make_it_believed() -> None:
    seen = ObservedAddresses()
    seen.report(P1, N1, OURS, 1.0)
    assert seen.report(P2, N2, OURS, 2.0) == (ObservationChange("believed", OURS, 2),)
    assert seen.believed() == (OURS,)


def test_one_network_is_one_voice() -> None:
    seen = ObservedAddresses()
    for number in range(1, 6):
        seen.report(peer(number), at(f"192.0.{number}.1"), OURS, number)
    assert seen.believed() == ()
    assert seen.observers(OURS) == 5


@pytest.mark.parametrize(
    ("first", "second", "believed"),
    [
        ("2001:db8::1", "2001:db9::1", True),
        ("2001:db8::1", "2001:db8:ffff::1", False),
        ("192.0.2.1", "2001:db8::1", True),
        ("192.0.2.1", "192.1.2.1", True),
        ("192.0.2.1", "192.0.3.1", False),
    ],
)
def test_networks(first: str, second: str, believed: bool) -> None:
    seen = ObservedAddresses()
    seen.report(P1, at(first), OURS6, 1.0)
    seen.report(P2, at(second), OURS6, 2.0)
    assert bool(seen.believed()) is believed


def test_one_peer_is_one_voice_wherever_it_is() -> None:
    seen = ObservedAddresses()
    seen.report(P1, N1, OURS, 1.0)
    seen.report(P1, N2, OURS, 2.0)
    assert seen.believed() == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.1.1", "fd00::1"])
def test_observers_inside_cannot_vouch_for_a_global_address(host: str) -> None:
    seen = ObservedAddresses()
    seen.report(P1, at(host), OURS, 1.0)
    seen.report(P2, N2, OURS, 2.0)
    assert seen.candidates() == (OURS,)
    assert seen.believed() == ()
    assert seen.report(P3, N1, OURS, 3.0) == (ObservationChange("believed", OURS, 3),)


def test_quorum() -> None:
    trusting, strict = ObservedAddresses(quorum=1), ObservedAddresses(quorum=3)
    kinds = [change.kind for change in trusting.report(P1, N1, OURS, 1.0)]
    assert kinds == ["adopted", "believed"]
    for number, network in enumerate((N1, N2), 1):
        strict.report(peer(number), network, OURS, number)
    assert strict.believed() == ()
    strict.report(P3, N3, OURS, 3.0)
    assert strict.believed() == (OURS,)


def test_outliers_delete_nothing() -> None:
    seen = ObservedAddresses()
    seen.report(P1, N1, OURS, 1.0)
    seen.report(P2, N2, OURS, 2.0)
    seen.report(P3, N3, LIE, 3.0)
    assert seen.believed() == (OURS,)
    assert seen.candidates() == (OURS, LIE)
    # One of the two that agreed changes its mind: the address stays while anyone reports it.
    assert seen.report(P2, N2, LIE, 4.0) == (ObservationChange("believed", LIE, 2),)
    assert set(seen.believed()) == {OURS, LIE}
    assert seen.remove(P1) == (ObservationChange("withdrawn", OURS, 0),)
    assert seen.believed() == (LIE,)


def test_a_new_address_replaces_the_old_one() -> None:
    """A NAT reboots: both observers see a new port."""
    seen = ObservedAddresses()
    seen.report(P1, N1, OURS, 1.0)
    seen.report(P2, N2, OURS, 2.0)
    seen.report(P1, N1, OTHER_PORT, 3.0)
    assert seen.candidates() == (OURS, OTHER_PORT)
    assert seen.report(P2, N2, OTHER_PORT, 4.0) == (
        ObservationChange("withdrawn", OURS, 0),
        ObservationChange("believed", OTHER_PORT, 2),
    )
    assert seen.candidates() == seen.believed() == (OTHER_PORT,)


def test_a_belief_does_not_survive_all_its_observers() -> None:
    seen = ObservedAddresses()
    seen.report(P1, N1, OURS, 1.0)
    seen.report(P2, N2, OURS, 2.0)
    seen.remove(P1)
    assert seen.believed() == (OURS,)
    seen.remove(P2)
    seen.remove(P2)
    assert seen.candidates() == seen.believed() == ()
    seen.report(P1, N1, OURS, 3.0)
    assert seen.believed() == ()


def test_families_are_separate_reports() -> None:
    seen = ObservedAddresses()
    seen.report(P1, N1, OURS, 1.0)
    seen.report(P1, at("2001:db8:1::1"), OURS6, 2.0)
    assert set(seen.candidates()) == {OURS, OURS6}
    assert [(o.observer, o.address) for o in seen.observations()] == [(P1, OURS), (P1, OURS6)]
    changes = seen.remove(P1)
    assert {change.address for change in changes} == {OURS, OURS6}


@pytest.mark.parametrize("host", ["0.0.0.0", "224.0.0.1", "::", "ff02::1", "255.255.255.255"])
def test_addresses_nobody_can_have_are_ignored(host: str) -> None:
    seen = ObservedAddresses()
    assert seen.report(P1, N1, at(host), 1.0) == ()
    assert seen.report(P1, N1, SocketAddress.of("203.0.113.7", 0), 1.0) == ()
    assert seen.candidates() == ()


def test_candidates_by_support_then_age() -> None:
    seen = ObservedAddresses()
    seen.report(peer(1), N1, LIE, 1.0)
    seen.report(peer(2), at("192.0.2.2"), OURS, 2.0)
    seen.report(peer(3), at("192.0.2.3"), OURS, 3.0)
    seen.report(peer(4), N2, OTHER_PORT, 4.0)
    assert seen.candidates() == (OURS, OTHER_PORT, LIE)


def test_memory_is_bounded_and_shared() -> None:
    seen = ObservedAddresses()
    seen.report(P1, N1, OURS, 0.0)
    seen.report(P2, N2, OURS, 0.5)
    # A thousand identities in one network crowd out only each other.
    for number in range(10, 1010):
        seen.report(peer(number), at("100.0.0.1"), LIE, number)
    assert seen.observers(LIE) == 8
    assert seen.believed() == (OURS,)
    # Many networks: the oldest report goes.
    for number in range(2000, 2200):
        seen.report(peer(number), at(f"{number % 90 + 101}.1.0.1"), LIE, number)
    assert len(seen.observations()) == MAX_OBSERVERS
