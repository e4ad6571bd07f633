"""How long a known peer is left alone."""

from __future__ import annotations

import pytest

from anyreach.backoff import STABLE_AFTER, next_failures, retry_delay


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
