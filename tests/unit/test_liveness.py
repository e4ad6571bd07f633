"""What counts as a sign of life, and for how long."""

from __future__ import annotations

from anyreach.liveness import FRESH, Liveness


def test_a_new_path_is_a_sign_of_life() -> None:
    assert Liveness().is_fresh(1, 10, FRESH / 2, 100.0)
    assert not Liveness().is_fresh(1, 10, FRESH * 2, 100.0)


def test_packets_between_two_looks_close_together_are_one() -> None:
    liveness = Liveness()
    assert not liveness.is_fresh(1, 10, 60.0, 100.0)
    assert liveness.is_fresh(1, 11, 60.5, 100.5)
    # It counts from the earlier look: the packet may have come right after it.
    assert liveness.is_fresh(1, 11, 61.0, 101.0)
    assert not liveness.is_fresh(1, 11, 61.1, 101.1)


def test_packets_some_time_ago_are_none() -> None:
    liveness = Liveness()
    assert not liveness.is_fresh(1, 10, 60.0, 100.0)
    assert not liveness.is_fresh(1, 500, 90.0, 130.0)


def test_an_answer_is_one_for_its_connection_only() -> None:
    liveness = Liveness()
    liveness.answered(1, 10, 100.0)
    assert liveness.is_fresh(1, 10, 60.0, 100.0 + FRESH)
    assert not liveness.is_fresh(2, 10, 60.0, 100.0)
    assert not liveness.is_fresh(1, 10, 60.0, 100.1 + FRESH)


def test_memory_is_bounded_and_forgetting_is_harmless() -> None:
    liveness = Liveness()
    liveness.answered(0, 1, 100.0)
    for connection in range(1, 5000):
        liveness.answered(connection, 1, 100.0)
    assert len(liveness._looks) == 1024
    assert not liveness.is_fresh(0, 1, 60.0, 100.0)
