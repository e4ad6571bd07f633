"""Happy Eyeballs: order, delays and the race."""

from __future__ import annotations

import pytest

from anyreach.addresses import SocketAddress
from anyreach.happy_eyeballs import (
    ATTEMPT_DELAY,
    MIN_ATTEMPT_SPACING,
    Exhausted,
    Finished,
    Race,
    Start,
    Wait,
    attempt_delay_after,
    order,
    schedule,
)

A, B, C = (SocketAddress.of(f"203.0.113.{n}", 9000) for n in (1, 2, 3))
X, Y, Z = (SocketAddress.of(f"2001:db8::{n}", 9000) for n in (1, 2, 3))


class TestOrder:
    def test_families_alternate_ipv6_first(self) -> None:
        assert order([A, B, C, X, Y]) == (X, A, Y, B, C)
        assert order([X, Y, Z, A]) == (X, A, Y, Z)

    def test_preferred_family(self) -> None:
        assert order([X, A, Y, B], prefer=4) == (A, X, B, Y)

    def test_one_family(self) -> None:
        assert order([A, B]) == (A, B)
        assert order([X], prefer=4) == (X,)
        assert order([]) == ()

    def test_duplicates_are_tried_once(self) -> None:
        mapped = SocketAddress.of("::ffff:203.0.113.1", 9000)
        assert order([A, mapped, A, X]) == (X, A)

    def test_measured_addresses_come_first_and_choose_the_family(self) -> None:
        assert order([A, B, X, Y], rtts={B: 0.02, Y: 0.05}) == (B, Y, A, X)
        assert order([A, B, X, Y], rtts={B: 0.05, Y: 0.02}) == (Y, B, X, A)

    def test_measurements_of_other_addresses_change_nothing(self) -> None:
        assert order([A, X], rtts={C: 0.001}) == (X, A)


class TestDelay:
    def test_unknown_peers_get_the_recommended_delay(self) -> None:
        assert schedule([A, X, B]) == ((0.0, X), (0.25, A), (0.5, B))

    @pytest.mark.parametrize(
        ("rtt", "delay"), [(0.001, 0.1), (0.03, 0.1), (0.05, 0.15), (0.2, 0.25), (5.0, 0.25)]
    )
    def test_known_round_trips_shorten_it(self, rtt: float, delay: float) -> None:
        assert attempt_delay_after(A, rtts={A: rtt}) == pytest.approx(delay)

    def test_a_configured_delay_is_never_lengthened(self) -> None:
        assert attempt_delay_after(A, attempt_delay=0.01, rtts={A: 1.0}) == 0.01
        assert [t for t, _ in schedule([A, B], attempt_delay=2.0)] == [0.0, 2.0]


class TestRace:
    def test_a_dead_first_family_costs_one_delay(self) -> None:
        race = Race([X, Y, A])
        assert race.next_action(10.0) == Start(X)
        assert race.next_action(10.0) == Wait(10.0 + ATTEMPT_DELAY)
        assert race.next_action(10.2) == Wait(10.0 + ATTEMPT_DELAY)
        assert race.next_action(10.25) == Start(A)
        assert race.won(A) == (X,)
        assert race.next_action(10.26) == Finished(A)
        assert race.started == (X, A)
        assert race.running == ()

    def test_a_failure_starts_the_next_at_once(self) -> None:
        race = Race([X, A])
        assert race.next_action(0.0) == Start(X)
        race.failed(X, 0.05)
        assert race.next_action(0.05) == Start(A)

    def test_but_not_within_ten_milliseconds(self) -> None:
        race = Race([A, B, C])
        assert race.next_action(0.0) == Start(A)
        race.failed(A, 0.001)
        assert race.next_action(0.001) == Wait(MIN_ATTEMPT_SPACING)
        assert race.next_action(0.01) == Start(B)

    def test_a_failure_never_postpones(self) -> None:
        race = Race([A, B])
        assert race.next_action(0.0) == Start(A)
        race.failed(A, 7.0)
        assert race.next_action(7.0) == Start(B)

    def test_after_the_last_start_it_waits_for_the_attempts(self) -> None:
        race = Race([A])
        assert race.next_action(0.0) == Start(A)
        assert race.next_action(0.0) == Wait(None)
        race.failed(A, 1.0)
        assert race.next_action(1.0) == Exhausted()

    def test_nothing_to_try(self) -> None:
        assert Race().next_action(0.0) == Exhausted()

    def test_reports_that_make_no_sense_are_ignored(self) -> None:
        race = Race([A, B])
        race.failed(A, 0.0)
        assert race.next_action(0.0) == Start(A)
        race.failed(A, 0.02)
        race.failed(A, 0.03)
        race.failed(C, 0.03)
        assert race.next_action(0.03) == Start(B)
        assert race.next_action(0.03) == Wait(None)

    def test_only_one_wins(self) -> None:
        race = Race([A, B, C], attempt_delay=0.01)
        for now in (0.0, 0.01):
            assert isinstance(race.next_action(now), Start)
        assert race.won(B) == (A,)
        assert race.won(A) == (A,)
        assert race.won(B) == ()
        assert race.next_action(9.0) == Finished(B)
        assert race.started == (A, B)

    def test_late_answers_join(self) -> None:
        race = Race([A, B])
        assert race.next_action(0.0) == Start(A)
        race.add([A, B, X, Y])
        assert race.next_action(0.1) == Wait(0.25)
        started = [race.next_action(t / 4) for t in range(1, 4)]
        assert started == [Start(X), Start(B), Start(Y)]

    def test_a_late_answer_to_an_exhausted_race_starts_at_once(self) -> None:
        race = Race([A])
        race.next_action(0.0)
        race.failed(A, 1.0)
        assert race.next_action(1.0) == Exhausted()
        race.add([X])
        assert race.next_action(1.0) == Start(X)

    def test_addresses_are_not_started_again(self) -> None:
        race = Race([A])
        race.next_action(0.0)
        race.failed(A, 1.0)
        race.add([A])
        assert race.next_action(2.0) == Exhausted()

    def test_delays_outside_the_standard_are_brought_inside(self) -> None:
        for delay, at in ((0.0, 0.01), (60.0, 2.0)):
            race = Race([A, B], attempt_delay=delay)
            race.next_action(0.0)
            assert race.next_action(0.0) == Wait(at)
