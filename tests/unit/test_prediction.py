"""Predicted ports, by examples and by NATs that count in front of hosts that talk."""

from __future__ import annotations

import random

import pytest

from anyreach.addresses import SocketAddress
from anyreach.ports import FIRST_PORT, LAST_PORT, classify_ports, distance, moved
from anyreach.prediction import MAX_PREDICTED, addresses, likely_gaps, predict


def taken(ports: list[int], every: float = 0.05) -> list[tuple[float, int]]:
    """Samples of these ports, so many seconds apart."""
    return [(index * every, port) for index, port in enumerate(ports)]


class CountingNat:
    """Numbers the mappings of all its hosts in one row; ours, and ``rate`` others a second."""

    def __init__(self, start: int, step: int, rate: float, dice: random.Random) -> None:
        self._port = start
        self._step = step
        self._rate = rate
        self._dice = dice
        self._now = 0.0
        self._next_other = self._gap()

    def map(self, now: float) -> int:
        """A new mapping of ours."""
        while self._next_other <= now:
            self._port = moved(self._port, self._step)
            self._next_other += self._gap()
        self._port = moved(self._port, self._step)
        return self._port

    def _gap(self) -> float:
        return self._dice.expovariate(self._rate) if self._rate else float("inf")


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], ("unknown", 0)),
        ([(50000, 40000)], ("unknown", 0)),
        ([(50000, 50000)], ("preserving", 0)),
        ([(50000, 50000), (50001, 50001), (50002, 7777)], ("preserving", 0)),
        ([(50000, 50000), (50001, 7777)], ("unknown", 0)),
        ([(1, 40000), (2, 40001)], ("sequential", 1)),
        ([(1, 40000), (2, 40002), (3, 40004)], ("sequential", 2)),
        ([(1, 40000), (2, 39999), (3, 39998)], ("sequential", -1)),
        # Others in between; a common divisor alone is chance.
        ([(1, 40000), (2, 40003), (3, 40004)], ("sequential", 1)),
        ([(1, 40000), (2, 40006), (3, 40015)], ("sequential", 1)),
        ([(1, 40000), (2, 40004), (3, 40006)], ("sequential", 2)),
        # Round the end of the range.
        ([(1, 65534), (2, 65535), (3, 1024), (4, 1025)], ("sequential", 1)),
        ([(1, 1024), (2, 65535), (3, 65534)], ("sequential", -1)),
        # Two may be near by chance only if they are very near.
        ([(1, 40000), (2, 40100)], ("unknown", 0)),
        ([(1, 40000), (2, 12345)], ("unknown", 0)),
        ([(1, 40000), (2, 12345), (3, 59000)], ("random", 0)),
        ([(1, 40000), (2, 40001), (3, 39990)], ("random", 0)),
        ([(1, 40000), (2, 40000)], ("unknown", 0)),
    ],
)
def test_how_ports_are_chosen(samples: list[tuple[int, int]], expected: tuple[str, int]) -> None:
    assert classify_ports(samples) == expected


def test_distances_go_the_shorter_way() -> None:
    assert distance(1024, 1025) == 1
    assert distance(65535, 1024) == 1
    assert distance(1024, 65535) == -1
    assert moved(65535, 1) == 1024
    assert moved(1024, -1) == 65535


class TestPredict:
    def test_a_quiet_counter_goes_on(self) -> None:
        ports = predict(taken([40000, 40001, 40002]), 0.15, count=4)
        assert ports == (40003, 40004, 40005, 40006)

    def test_downwards_and_by_two(self) -> None:
        assert predict(taken([40000, 39999, 39998]), 0.1, count=2) == (39997, 39996)
        assert predict(taken([40000, 40002, 40004]), 0.1, count=2) == (40006, 40008)

    def test_a_known_step_needs_one_sample(self) -> None:
        assert predict([(0.0, 40000)], 0.0, step=-3, count=2) == (39997, 39994)
        assert predict([(0.0, 40000)], 0.0) == ()

    def test_own_mappings_come_before(self) -> None:
        samples = taken([40000, 40001, 40002])
        assert predict(samples, 0.1, own=5, count=1) == (40008,)

    def test_the_range_wraps(self) -> None:
        assert predict(taken([65533, 65534]), 0.05, count=3) == (65535, 1024, 1025)
        assert predict(taken([1026, 1025]), 0.05, count=3) == (1024, 65535, 65534)

    def test_others_shift_the_window(self) -> None:
        # Nine others in 50 ms, each time: after 100 ms there are eighteen more.
        samples = taken([40000, 40010, 40020, 40031, 40041, 40050])
        ports = predict(samples, 0.25, step=1, lead=0.1, count=8)
        assert 40050 + 1 + 18 in ports
        assert ports == tuple(range(ports[0], ports[0] + 8))

    def test_nothing_to_predict(self) -> None:
        assert predict([], 0.0, step=1) == ()
        assert predict(taken([40000, 12345, 61000]), 0.2) == ()
        assert predict(taken([40000, 40001]), 0.2, count=0) == ()
        assert predict(taken([40000, 40001]), 1000.0) == ()  # too long ago

    def test_a_port_below_the_range_is_followed_into_it(self) -> None:
        assert predict(taken([600, 601, 602]), 0.1, step=1, count=2) == (1025, 1026)

    @pytest.mark.parametrize("rate", [0.0, 1.0, 10.0, 30.0])
    @pytest.mark.parametrize("step", [1, -1, 2])
    def test_the_real_port_is_among_them(self, rate: float, step: int) -> None:
        """Five samples 30 ms apart, and a packet 100 ms later, as between two homes."""
        dice = random.Random(f"{rate} {step}")
        hits = 0
        for _ in range(300):
            nat = CountingNat(dice.randint(FIRST_PORT, LAST_PORT), step, rate, dice)
            began = dice.uniform(0, 5)
            samples = [(began + i * 0.03, nat.map(began + i * 0.03)) for i in range(5)]
            now = samples[-1][0]
            predicted = predict(samples, now, step=step, lead=0.1)
            assert len(predicted) == MAX_PREDICTED
            hits += nat.map(now + 0.1) in predicted
        assert hits >= 294  # 98 %

    def test_a_busy_office_is_hit_more_often_than_not(self) -> None:
        dice = random.Random(100)
        hits = 0
        for _ in range(300):
            nat = CountingNat(dice.randint(FIRST_PORT, LAST_PORT), 1, 100.0, dice)
            samples = [(i * 0.03, nat.map(i * 0.03)) for i in range(8)]
            hits += nat.map(0.31) in predict(samples, 0.21, step=1, lead=0.1)
        assert hits >= 270


class TestTwoCounters:
    """Both sides measure, tell what they predict, and send to what they were told."""

    @staticmethod
    def meets(dice: random.Random, steps: tuple[int, int], rate: float, *, crossed: bool) -> bool:
        ours, theirs = (CountingNat(dice.randint(2000, 60000), s, rate, dice) for s in steps)
        ours_seen = [(at, ours.map(at)) for at in (0.0, 1e-4, 2e-4)]
        theirs_seen = [(at, theirs.map(at)) for at in (0.02, 0.0201, 0.0202)]
        ours_told = sorted(predict(ours_seen, 0.04, step=steps[0], lead=0.02))
        theirs_told = sorted(predict(theirs_seen, 0.02, step=steps[1], lead=0.06))
        order = reversed(theirs_told) if crossed else theirs_told
        sent = {port: ours.map(0.06 + i * 1e-4) for i, port in enumerate(order)}
        back = {port: theirs.map(0.08 + i * 1e-4) for i, port in enumerate(ours_told)}
        return any(back.get(source) == port for port, source in sent.items())

    @pytest.mark.parametrize("steps", [(1, 1), (-1, -1), (2, 1), (1, -1), (-1, 1)])
    def test_alone_they_always_meet(self, steps: tuple[int, int]) -> None:
        dice = random.Random(f"{steps}")
        assert all(self.meets(dice, steps, 0.0, crossed=False) for _ in range(50))

    @pytest.mark.parametrize("crossed", [True, False])
    def test_in_traffic_crossed_ones_meet_in_every_second_case(self, crossed: bool) -> None:
        dice = random.Random(7)
        met = sum(self.meets(dice, (1, 1), 20.0, crossed=crossed) for _ in range(400))
        assert (met > 160) is crossed


def test_gaps_of_nothing_seen_begin_at_none() -> None:
    assert likely_gaps(0, 0.2, 0.1, 4) == range(4)
    assert likely_gaps(0, 0.0, 0.0, 1) == range(1)
    # A hundred in a second: after one more second a hundred more, give or take.
    window = likely_gaps(100, 1.0, 1.0, 16)
    assert len(window) == 16
    assert 95 in window


def test_ports_become_addresses() -> None:
    ip = SocketAddress.of("203.0.113.5", 1).ip
    assert addresses(ip, (4000, 4001)) == (SocketAddress(ip, 4000), SocketAddress(ip, 4001))
