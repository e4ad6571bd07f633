"""Scores: success as it was measured, fading with time, bounded in number."""

from __future__ import annotations

import pytest

from anyreach.peer import PeerId
from anyreach.scores import HALF_LIFE, MAX_WEIGHT, Score, Scores


def peer(number: int) -> PeerId:
    return PeerId.from_public_key(number.to_bytes(4))


def after(outcomes: str, now: float = 0.0) -> Score:
    score = Score()
    for outcome in outcomes:
        score = score.updated(outcome == "+", now)
    return score


def test_a_peer_never_tried_is_neither_good_nor_bad() -> None:
    assert Score().mean(0.0) == 0.5
    assert Score().weight(1e9) == 0.0


@pytest.mark.parametrize(
    ("outcomes", "mean"), [("+", 2 / 3), ("-", 1 / 3), ("+-", 0.5), ("---", 0.2), ("++++++++", 0.9)]
)
def test_the_mean_is_that_of_a_beta_posterior(outcomes: str, mean: float) -> None:
    assert after(outcomes).mean(0.0) == pytest.approx(mean)


def test_evidence_counts_half_after_its_half_life() -> None:
    score = after("++++")
    assert score.weight(HALF_LIFE) == pytest.approx(2.0)
    assert score.mean(HALF_LIFE) == pytest.approx(3 / 4)
    assert score.mean(100 * HALF_LIFE) == pytest.approx(0.5)


def test_ten_failures_undo_the_best_record() -> None:
    best = after("+" * 1000)
    assert best.weight(0.0) == pytest.approx(MAX_WEIGHT)
    for _ in range(10):
        best = best.updated(False, 0.0)
    assert best.mean(0.0) < 0.55


def test_a_clock_that_steps_back_is_no_reason_to_forget() -> None:
    score = after("++", 100.0)
    assert score.mean(50.0) == score.mean(100.0)
    assert score.updated(True, 50.0).at == 100.0


def test_capabilities_are_judged_apart() -> None:
    scores = Scores()
    scores.record(peer(1), "relay", False, 0.0)
    scores.record(peer(1), "observe", True, 0.0)
    assert scores.of(peer(1), "relay").mean(0.0) < 0.5 < scores.of(peer(1), "observe").mean(0.0)
    assert scores.of(peer(1), "coordinate") == Score()


def test_those_not_updated_longest_are_forgotten() -> None:
    scores = Scores(limit=3)
    for number in (1, 2, 3, 1, 4):
        scores.record(peer(number), "relay", True, 0.0)
    assert len(scores) == 3
    assert scores.of(peer(2), "relay") == Score()
    assert scores.of(peer(1), "relay").good == 2
