"""When rounds come and what is different in each, in made-up time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from anyreach.punching import Plan
from anyreach.rounds import (
    FAST_SECONDS,
    LONGEST_PAUSE,
    MAX_HISTORY,
    ROUND_SPACING,
    BirthdayBudget,
    Method,
    Outcome,
    Round,
    Schedule,
    Wait,
    pause_after,
)

RTT = 0.04


def planned(*methods: Method) -> Plan:
    return Plan(methods, "because")


class Driver:
    """Asks a schedule as the driver does, and ends every round after a while."""

    def __init__(self, *methods: Method, budget: int = 4, lasts: float = 0.5) -> None:
        self.schedule = Schedule(BirthdayBudget(budget))
        self.now = 100.0
        self.lasts = lasts
        self.rounds: list[tuple[float, Round]] = []
        self._ends: float | None = None
        self.schedule.planned(planned(*methods), self.now)
        self.schedule.candidates(self.now, usable=True)

    def run(self, seconds: float, outcome: Outcome = "failed") -> list[tuple[float, Round]]:
        """The rounds of the next seconds, with the time of each since the start of these."""
        began, first = self.now, len(self.rounds)
        until = began + seconds
        while True:
            action = self.schedule.next(self.now, RTT)
            if isinstance(action, Round):
                self.rounds.append((self.now, action))
                self._ends = self.now + self.lasts
                continue
            due = action.until if action.until is not None else float("inf")
            assert due > self.now
            if self._ends is not None and self._ends <= min(due, until):
                self.now, self._ends = self._ends, None
                self.schedule.finished(outcome, self.now)
                continue
            if due > until:
                self.now = until
                return [(at - began, round_) for at, round_ in self.rounds[first:]]
            self.now = due

    def methods(self, seconds: float) -> list[Method]:
        return [round_.method for _, round_ in self.run(seconds)]


def only(schedule: Schedule, now: float) -> Round:
    action = schedule.next(now, RTT)
    assert isinstance(action, Round)
    return action


class TestStart:
    def test_nothing_before_there_are_a_plan_and_candidates(self) -> None:
        schedule = Schedule(BirthdayBudget(4))
        assert schedule.next(0.0, RTT) == Wait(None)
        schedule.planned(planned("simple"), 0.0)
        assert schedule.next(0.0, RTT) == Wait(None)
        schedule.candidates(1.0, usable=True)
        assert only(schedule, 1.0).method == "simple"

    def test_candidates_before_the_plan(self) -> None:
        schedule = Schedule(BirthdayBudget(4))
        schedule.candidates(0.0, usable=True)
        assert schedule.next(0.0, RTT) == Wait(None)
        schedule.planned(planned("predict"), 0.5)
        assert only(schedule, 0.5).method == "predict"

    def test_the_first_round_opens_our_nat_first_and_holds_probes_back(self) -> None:
        schedule = Driver("simple").schedule
        round_ = only(schedule, 100.0)
        assert round_ == Round("simple", 2, RTT / 2, (RTT,), 0)
        assert schedule.running == round_

    def test_a_long_way_does_not_hold_for_ever(self) -> None:
        schedule = Driver("simple").schedule
        action = schedule.next(100.0, 30.0)
        assert isinstance(action, Round)
        assert action.hold == 0.5

    def test_candidates_may_vanish(self) -> None:
        schedule = Driver("simple").schedule
        schedule.candidates(100.0, usable=False)
        assert schedule.next(100.0, RTT) == Wait(None)


class TestFailures:
    def test_pauses_grow_to_a_minute_and_then_to_a_quarter_of_an_hour(self) -> None:
        assert [pause_after(n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
        assert pause_after(16) == 60
        assert pause_after(17) == 120
        assert pause_after(20) == LONGEST_PAUSE
        assert pause_after(10**9) == LONGEST_PAUSE

    def test_it_never_gives_up(self) -> None:
        driver = Driver("simple")
        driver.run(2 * 86400.0)
        times = [at for at, _ in driver.rounds]
        assert len(driver.run(2 * LONGEST_PAUSE)) == 2
        assert 200 < len(times) < 240

    def test_every_round_is_another_one(self) -> None:
        rounds = [round_ for _, round_ in Driver("simple").run(60.0)]
        assert [r.opener_ttl for r in rounds] == [2, 3, 255, 4, 0, 2]
        assert [r.attempt for r in rounds] == list(range(6))

    def test_predictions_are_met_in_both_orders(self) -> None:
        rounds = [round_ for _, round_ in Driver("predict").run(60.0)]
        assert [r.crossed for r in rounds] == [False, True] * 3
        assert len({(r.opener_ttl, r.crossed) for r in rounds}) == 6
        assert not any(round_.crossed for _, round_ in Driver("simple").run(60.0))

    def test_methods_take_turns(self) -> None:
        methods = Driver("predict", "predict", "simple").methods(60.0)
        assert methods == ["predict", "predict", "simple"] * 2

    def test_a_round_nobody_ends_ends_by_itself(self) -> None:
        driver = Driver("simple", lasts=1e9)
        starts = [at for at, _ in driver.run(20.0)]
        assert starts == pytest.approx([0.0, 5.0, 11.0, 19.0])
        assert [t.outcome for t in driver.schedule.history] == ["failed"] * 3
        assert [t.seconds for t in driver.schedule.history] == pytest.approx([4.0] * 3)

    def test_a_refusal_is_no_failure(self) -> None:
        driver = Driver("simple")
        only(driver.schedule, 100.0)
        driver.schedule.finished("refused", 100.0)
        assert driver.schedule.next(100.0, RTT) == Wait(100.0 + ROUND_SPACING)
        only(driver.schedule, 100.0 + ROUND_SPACING)
        driver.schedule.finished("failed", 101.5)
        assert driver.schedule.next(101.5, RTT) == Wait(102.5)  # the first pause

    def test_what_is_remembered_is_bounded(self) -> None:
        driver = Driver("simple")
        driver.run(86400.0)
        assert len(driver.schedule.history) == MAX_HISTORY

    def test_an_end_without_a_round_changes_nothing(self) -> None:
        schedule = Driver("simple").schedule
        schedule.finished("failed", 100.0)
        assert schedule.history == ()
        assert only(schedule, 100.0).attempt == 0


class TestNews:
    def test_new_candidates_bring_the_next_round_forward(self) -> None:
        driver = Driver("simple")
        driver.run(40.0)
        driver.schedule.candidates(driver.now, usable=True)
        assert driver.run(1.0)[0][0] == 0.0

    def test_but_never_two_rounds_in_a_second(self) -> None:
        driver = Driver("simple", lasts=1e9)
        driver.run(0.1)
        driver.schedule.candidates(driver.now, usable=True)
        (start,) = [at for at, _ in driver.run(2.0)]
        assert start == pytest.approx(ROUND_SPACING - 0.1)

    def test_a_peer_that_keeps_changing_its_mind_is_heard_less(self) -> None:
        driver = Driver("simple")
        for _ in range(600):
            driver.run(0.5)
            driver.schedule.candidates(driver.now, usable=True)
        assert len(driver.rounds) < 45  # in five minutes

    def test_a_new_plan_begins_from_the_start(self) -> None:
        driver = Driver("simple")
        driver.run(40.0)
        driver.schedule.planned(planned("predict", "simple"), driver.now)
        (start, round_), *_ = driver.run(1.0)
        assert (start, round_.method, round_.attempt) == (0.0, "predict", 0)

    def test_the_same_plan_again_changes_nothing(self) -> None:
        driver = Driver("simple")
        driver.run(40.0)
        driver.schedule.planned(Plan(("simple",), "other words"), driver.now)
        assert driver.run(1.0) == []

    def test_another_network_begins_from_the_start(self) -> None:
        driver = Driver("simple")
        driver.run(600.0)
        driver.schedule.network_changed(driver.now)
        (start, round_), *more = driver.run(4.0)
        assert (start, round_.attempt) == (0.0, 0)
        assert more

    def test_another_network_ends_what_goes_on(self) -> None:
        driver = Driver("pool", "simple", lasts=1e9)
        driver.run(5.0)
        driver.schedule.network_changed(driver.now)
        assert driver.schedule.running is None
        assert driver.run(0.5)[0][0] == 0.0


class TestDirect:
    def test_silence_while_it_is_up(self) -> None:
        driver = Driver("simple")
        driver.run(0.2)
        driver.schedule.direct_up(driver.now)
        assert driver.schedule.history[-1].outcome == "direct"
        assert driver.run(86400.0) == []

    def test_an_outcome_says_the_same(self) -> None:
        driver = Driver("simple")
        assert len(driver.run(3600.0, "direct")) == 1

    def test_something_better_is_looked_for_slowly(self) -> None:
        driver = Driver("simple", "predict")
        driver.run(0.2)
        driver.schedule.direct_up(driver.now, improving=True)
        rounds = driver.run(600.0)
        assert {r.method for _, r in rounds} == {"simple"}
        assert 8 <= len(rounds) <= 10
        driver.schedule.direct_up(driver.now, improving=False)
        assert driver.run(3600.0) == []

    def test_a_better_candidate_is_tried_at_once(self) -> None:
        driver = Driver("simple")
        driver.run(0.2)
        driver.schedule.direct_up(driver.now)
        driver.run(600.0)
        driver.schedule.candidates(driver.now, usable=True, improving=True)
        assert driver.run(1.0)[0][0] == 0.0

    @pytest.mark.parametrize("lasts", [0.1, 0.9, 3.0, 1e9])
    @pytest.mark.parametrize("cut", [0.5, 7.0, 55.0])
    def test_direct_is_tried_within_seconds_after_a_cut(self, cut: float, lasts: float) -> None:
        driver = Driver("simple", lasts=lasts)
        driver.run(0.05)
        driver.schedule.direct_up(driver.now)
        driver.run(1000.0)
        driver.schedule.direct_lost(driver.now)
        starts = [at for at, _ in driver.run(FAST_SECONDS)]
        assert starts[0] == 0.0
        assert any(cut <= start <= cut + 2.0 for start in starts)
        gaps = [b - a for a, b in pairwise(starts)]
        assert all(ROUND_SPACING - 1e-6 <= gap <= 2.0 for gap in gaps)

    def test_later_it_takes_its_time(self) -> None:
        driver = Driver("simple")
        driver.run(0.2)
        driver.schedule.direct_up(driver.now)
        driver.schedule.direct_lost(driver.now)
        driver.run(FAST_SECONDS + 60)
        assert len(driver.run(3600.0)) < 60

    def test_what_worked_comes_first_again(self) -> None:
        driver = Driver("simple")
        driver.run(10.0)
        won = driver.rounds[-1][1]
        driver.schedule.next(driver.now + 100, RTT)
        won = driver.schedule.running or won
        driver.schedule.direct_up(driver.now + 100)
        driver.now += 200
        driver.schedule.direct_lost(driver.now)
        (_, first), *_ = driver.run(1.0)
        assert (first.method, first.opener_ttl) == (won.method, won.opener_ttl)

    def test_a_path_by_prediction_is_looked_for_by_both(self) -> None:
        driver = Driver("predict", "predict", "simple")
        driver.run(0.2)
        driver.schedule.direct_up(driver.now)
        driver.run(100.0)
        driver.schedule.direct_lost(driver.now)
        assert set(driver.methods(10.0)[:2]) == {"simple", "predict"}


class TestHopeless:
    def test_it_is_left_alone(self) -> None:
        driver = Driver()
        assert driver.run(LONGEST_PAUSE - 1) == []
        driver.schedule.candidates(driver.now, usable=True)
        # Reports may be wrong: one look in a quarter of an hour.
        rounds = driver.run(4 * LONGEST_PAUSE)
        assert 3 <= len(rounds) <= 5
        assert {r.method for _, r in rounds} == {"simple"}

    def test_a_better_report_changes_it_at_once(self) -> None:
        driver = Driver()
        driver.run(50.0)
        driver.schedule.planned(planned("simple"), driver.now)
        assert driver.run(1.0)[0][0] == 0.0

    def test_a_worse_report_ends_it(self) -> None:
        driver = Driver("simple")
        driver.run(50.0)
        driver.schedule.planned(planned(), driver.now)
        assert driver.run(LONGEST_PAUSE - 1) == []


class TestBirthday:
    def test_few_times_and_ever_more_rarely(self) -> None:
        driver = Driver("pool", "simple", budget=4, lasts=3.0)
        driver.run(3600.0)
        times = [at for at, r in driver.rounds if r.method == "pool"]
        assert len(times) == 4
        gaps = [b - a for a, b in pairwise(times)]
        assert gaps == sorted(gaps)
        assert gaps[0] >= BirthdayBudget.FIRST_PAUSE
        assert any(r.method == "simple" for _, r in driver.rounds)

    def test_never_if_switched_off(self) -> None:
        driver = Driver("spray", "simple", budget=0)
        assert set(driver.methods(7200.0)) == {"simple"}

    def test_news_do_not_interrupt_it(self) -> None:
        driver = Driver("pool", "simple", lasts=10.0)
        driver.run(1.0)
        for _ in range(5):
            driver.schedule.candidates(driver.now, usable=True)
            assert driver.run(1.0) == []

    def test_budget(self) -> None:
        budget = BirthdayBudget(2)
        assert budget.take(0.0)
        assert not budget.take(1.0)
        assert budget.available_at(1.0) == BirthdayBudget.FIRST_PAUSE
        assert budget.take(15.0)
        assert budget.available_at(100.0) == 3600.0
        assert not budget.take(3599.0)
        assert budget.take(3600.0)
        assert BirthdayBudget(0).available_at(0.0) is None
        assert not BirthdayBudget(0).take(0.0)

    def test_after_a_success_the_next_need_not_wait(self) -> None:
        budget = BirthdayBudget(3)
        assert budget.take(0.0)
        budget.succeeded()
        assert budget.take(1.0)
        assert not budget.take(2.0)
        budget.succeeded()
        assert budget.take(2.0)
        budget.succeeded()
        assert budget.available_at(3.0) == 3600.0

    def test_a_path_makes_it_a_success(self) -> None:
        budget = BirthdayBudget(4)
        schedule = Schedule(budget)
        schedule.planned(planned("pool"), 0.0)
        schedule.candidates(0.0, usable=True)
        assert isinstance(schedule.next(0.0, 0.05), Round)
        assert budget.available_at(1.0) != 1.0
        schedule.direct_up(1.0)
        assert budget.available_at(1.0) == 1.0

    def test_who_is_asked_may_be_early(self) -> None:
        budget = BirthdayBudget(4)
        assert budget.take(0.0, asked=True)
        early = BirthdayBudget.FIRST_PAUSE - BirthdayBudget.EARLY
        assert not budget.take(early)
        assert not budget.take(early - 0.01, asked=True)
        assert budget.take(early, asked=True)
