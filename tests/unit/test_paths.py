"""Which path data takes, and which paths are given up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from anyreach.paths import (
    FLAP_WINDOW,
    MAX_WAYS,
    DefaultPathPolicy,
    FlapRecord,
    PathMethod,
    PathPolicy,
    PathSituation,
    PathView,
    RttFloor,
)

POLICY = DefaultPathPolicy()


def path(id_: int, method: PathMethod = "direct", ms: float = 20.0, **more: Any) -> PathView:
    return PathView(
        **{"id": id_, "method": method, "family": 4, "rtt": ms / 1e3, "age": 100.0, **more}
    )


def best(*paths: PathView, current: int | None = None) -> int:
    return POLICY.order(paths, current)[0].id


def test_it_is_a_policy() -> None:
    policy: PathPolicy = DefaultPathPolicy()
    assert isinstance(policy, PathPolicy)


class TestRanking:
    def test_ranks_count_from_zero(self) -> None:
        paths = (path(7, "relayed"), path(3), path(5, "punched", 10))
        decision = POLICY.decide(PathSituation(paths))
        assert decision.ranking == ((5, 0), (3, 1), (7, 2))

    def test_nothing_to_rank(self) -> None:
        decision = POLICY.decide(PathSituation(()))
        assert decision.ranking == ()
        assert decision.again_in is None

    def test_relays_are_the_last_resort(self) -> None:
        assert best(path(1, "relayed", 1), path(2, "punched", 500)) == 2
        assert best(path(1, "relayed", 1), path(2, "direct", 500), current=1) == 2

    def test_punched_is_as_good_as_direct(self) -> None:
        assert best(path(1, "direct", 30), path(2, "punched", 10), current=1) == 2
        assert best(path(1, "direct", 10), path(2, "punched", 30)) == 1

    @pytest.mark.parametrize(
        ("used", "other", "switches"),
        [
            (20, 16, True),  # a fifth
            (20, 18.5, False),
            (200, 194, True),  # 5 ms, if only 3 %
            (200, 196, False),
            (1.0, 0.8, False),  # a fifth, but who could tell
            (3.0, 0.5, True),
            (20, 25, False),
            (0, 0, False),
        ],
    )
    def test_only_a_clear_gain_is_worth_a_switch(
        self, used: float, other: float, switches: bool
    ) -> None:
        assert best(path(1, ms=used), path(2, ms=other), current=1) == (2 if switches else 1)

    def test_a_lost_current_path_binds_nobody(self) -> None:
        assert best(path(1, ms=20), path(2, ms=19), current=9) == 2
        assert best(path(1, ms=20), path(2, ms=19)) == 2

    def test_ipv6_has_a_bonus(self) -> None:
        assert best(path(1, ms=20), path(2, ms=22, family=6)) == 2
        assert best(path(1, ms=20), path(2, ms=24, family=6)) == 1
        assert best(path(1, ms=20), path(2, ms=19, family=6), current=1) == 2

    def test_where_round_trips_are_alike_the_rate_decides(self) -> None:
        fast, slow = 80e6, 10e6
        used = path(1, ms=20, delivery_rate=slow)
        assert best(used, path(2, ms=20.5, delivery_rate=fast), current=1) == 2
        assert best(used, path(2, ms=20.5, delivery_rate=12e6), current=1) == 1
        assert best(used, path(2, ms=20.5), current=1) == 1
        # A shorter way that is known to be narrow is not better.
        wide = path(1, ms=20, delivery_rate=fast)
        assert best(wide, path(2, ms=14, delivery_rate=slow), current=1) == 1
        # A longer one is not taken for its rate.
        assert best(used, path(2, ms=60, delivery_rate=fast), current=1) == 1

    def test_the_rate_breaks_ties(self) -> None:
        assert best(path(1, delivery_rate=1e6), path(2, delivery_rate=2e6)) == 2

    def test_the_rest_keeps_its_order(self) -> None:
        paths = (path(1, ms=20), path(2, ms=19), path(3, ms=30), path(4, "relayed", 5))
        assert [p.id for p in POLICY.order(paths, 1)] == [1, 2, 3, 4]


class TestEvidence:
    @pytest.mark.parametrize(
        "evidence",
        [{"carries": False}, {"black_hole": True}, {"loss": 0.6}, {"mtu": 1199}],
    )
    def test_a_direct_path_that_carries_nothing_is_left(self, evidence: dict[str, Any]) -> None:
        broken = path(1, "direct", 1, **evidence)
        assert best(broken, path(2, "relayed", 300), current=1) == 2
        assert best(broken, current=1) == 1  # better than none

    @pytest.mark.parametrize(
        "evidence",
        [{"carries": True}, {"carries": None}, {"loss": 0.2}, {"mtu": 1200}],
    )
    def test_a_poor_one_is_kept(self, evidence: dict[str, Any]) -> None:
        assert best(path(1, "direct", 1, **evidence), path(2, "relayed", 300), current=1) == 1

    def test_a_broken_relayed_path_is_left_too(self) -> None:
        assert best(path(1, "relayed", 1, carries=False), path(2, "relayed", 300), current=1) == 2

    def test_flapping_paths_must_last_before_they_are_trusted(self) -> None:
        relayed = path(2, "relayed", 300)
        young = path(1, "punched", 1, flaps=3, age=1.0)
        assert best(young, relayed, current=2) == 2
        decision = POLICY.decide(PathSituation((young, relayed), 2))
        assert decision.again_in == pytest.approx(4.0)
        assert best(replace(young, age=5.0), relayed, current=2) == 1
        assert best(replace(young, flaps=2), relayed, current=2) == 1
        # Longer each time, up to two minutes.
        worse = replace(young, flaps=5)
        assert best(replace(worse, age=19.0), relayed, current=2) == 2
        assert best(replace(worse, age=20.0), relayed, current=2) == 1
        assert best(replace(young, flaps=10**6, age=119.0), relayed, current=2) == 2
        assert best(replace(young, flaps=10**6, age=120.0), relayed, current=2) == 1

    def test_quarantine_is_better_than_a_broken_path(self) -> None:
        assert best(path(1, flaps=9, age=0.0), path(2, "relayed", carries=False)) == 1


class TestStandby:
    @staticmethod
    def decide(*paths: PathView, **more: Any) -> tuple[int, ...]:
        return POLICY.decide(PathSituation(paths, **more)).close

    def test_relayed_paths_are_kept_until_direct_has_proved_itself(self) -> None:
        paths = (path(1, age=29.0), path(2, "relayed"), path(3, "relayed"))
        decision = POLICY.decide(PathSituation(paths, 1))
        assert decision.close == ()
        assert decision.again_in == pytest.approx(1.0)

    def test_then_the_best_is_kept_warm(self) -> None:
        paths = (path(1, age=30.0), path(2, "relayed", 50), path(3, "relayed", 40))
        assert self.decide(*paths, current=1) == (2,)

    def test_as_long_as_the_user_says(self) -> None:
        paths = (path(1, age=30.0), path(2, "relayed", 50), path(3, "relayed", 40))
        assert self.decide(*paths, current=1, relay_standby=60.0) == ()
        assert self.decide(*paths, current=1, relay_standby=0.0) == (2,)

    def test_a_silent_connection_may_let_it_go(self) -> None:
        paths = (path(1, age=30.0), path(2, "relayed", 50))
        assert self.decide(*paths, current=1, idle=1e6) == ()
        frugal = DefaultPathPolicy(dormant=300.0)
        decision = frugal.decide(PathSituation(paths, 1, idle=299.0))
        assert decision.close == ()
        assert decision.again_in == pytest.approx(1.0)
        decision = frugal.decide(PathSituation(paths, 1, idle=300.0))
        assert decision.close == (2,)

    def test_without_direct_all_stay(self) -> None:
        assert self.decide(path(2, "relayed"), path(3, "relayed"), idle=1e6) == ()
        broken = path(1, carries=False)
        assert self.decide(broken, path(2, "relayed"), idle=1e6) == ()
        flapping = path(1, flaps=9, age=60.0)
        assert self.decide(flapping, path(2, "relayed"), idle=1e6) == ()


class TestFlapRecord:
    def test_losses_on_one_way_are_counted_for_a_while(self) -> None:
        record = FlapRecord()
        way = ("punched", "203.0.113.5:9000")
        assert record.count(way, 0.0) == 0
        record.lost(way, 0.0)
        record.lost(way, 10.0)
        assert record.count(way, 10.0) == 2
        assert record.count("another", 10.0) == 0
        assert record.count(way, FLAP_WINDOW + 1) == 1
        record.network_changed()
        assert record.count(way, 11.0) == 0

    def test_it_is_bounded(self) -> None:
        record = FlapRecord()
        for way in range(2 * MAX_WAYS):
            for _ in range(50):
                record.lost(way, 1.0)
        assert record.count(0, 1.0) == 0
        assert record.count(2 * MAX_WAYS - 1, 1.0) == 16


class TestRttFloor:
    def test_queues_are_not_counted(self) -> None:
        floor = RttFloor()
        assert floor.sample(0.020, 0.0) == 0.020
        assert floor.sample(0.300, 10.0) == 0.020
        assert floor.sample(0.015, 20.0) == 0.015

    def test_another_route_is_noticed(self) -> None:
        floor = RttFloor()
        found = [floor.sample(0.020 if now < 10 else 0.080, float(now)) for now in range(90)]
        assert set(found[:40]) == {0.020}
        assert found[-1] == 0.080

    def test_after_a_long_pause_it_begins_again(self) -> None:
        floor = RttFloor()
        floor.sample(0.020, 0.0)
        assert floor.sample(0.080, 1000.0) == 0.080
