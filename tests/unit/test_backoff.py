"""How long a known peer is left alone."""

from __future__ import annotations

import pytest

from anyreach.backoff import (
    REPLACED_FORGIVEN_AFTER,
    STABLE_AFTER,
    failures_when_replaced,
    next_failures,
    retry_delay,
    yielding_delay,
)


@pytest.mark.parametrize(
    ("failures", "ceiling"),
    [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60), (10**9, 60), (0, 1), (-5, 1)],
)
def test_the_ceiling_doubles_up_to_a_minute(failures: int, ceiling: float) -> None:
    assert retry_delay(failures, 1.0) == ceiling
    assert retry_delay(failures, 0.5) == ceiling / 2


def test_even_the_luckiest_draw_waits() -> None:
    assert retry_delay(1, 0.0) == retry_delay(10, 0.0) == 0.1


def test_only_a_connection_that_lasted_starts_the_count_again() -> None:
    assert next_failures(5, None) == 6
    assert next_failures(5, STABLE_AFTER / 2) == 6
    assert next_failures(5, STABLE_AFTER) == 1


def test_whoever_was_replaced_waits_long_and_longer() -> None:
    failures, lasted, ceilings = 0, 30.0, []
    for _ in range(4):
        failures = failures_when_replaced(failures, lasted)
        assert yielding_delay(failures, 0.0) == retry_delay(failures, 1.0) / 2
        ceilings.append(yielding_delay(failures, 1.0))
    assert ceilings == [4, 32, 60, 60]
    assert failures_when_replaced(failures, REPLACED_FORGIVEN_AFTER) == failures_when_replaced(0, 0)
