"""Keep-alives: rarer than necessary costs a stall, more often than necessary costs packets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anyreach.keepalive import (
    FIRST_TRIAL,
    GROWTH,
    MIN_INTERVAL,
    Evidence,
    interval,
    lost,
    survived,
)

_CONFIGURED = st.floats(MIN_INTERVAL, 3600.0)
_SEEN = st.lists(st.tuples(st.booleans(), st.floats(0.0, 7200.0)), max_size=30)


@given(_CONFIGURED, _SEEN)
def test_intervals_stay_between_the_shortest_and_the_configured(
    configured: float, seen: list[tuple[bool, float]]
) -> None:
    evidence, now = Evidence(), 0.0
    for is_lost, seconds in seen:
        now += seconds
        if is_lost:
            before = interval(evidence, configured)
            evidence = lost(evidence, seconds, configured, now)
            assert interval(evidence, configured) <= before
        else:
            evidence = survived(evidence, configured, now)
        assert MIN_INTERVAL <= interval(evidence, configured) <= configured


@given(_CONFIGURED, st.floats(MIN_INTERVAL + 0.1, 300.0))
def test_a_few_losses_suffice_for_a_fixed_lifetime(configured: float, lifetime: float) -> None:
    evidence, losses = Evidence(), 0
    while (silence := interval(evidence, configured)) > lifetime:
        evidence = lost(evidence, silence + 1.0, configured, 0.0)
        losses += 1
    assert losses <= 7


@given(st.floats(MIN_INTERVAL + 0.1, 300.0))
def test_trials_in_vain_become_rare(lifetime: float) -> None:
    """A day of a connection that is idle all the time."""
    configured, evidence, losses, now = 600.0, Evidence(), 0, 0.0
    while now < 86400.0:
        if (silence := interval(evidence, configured)) > lifetime:
            evidence = lost(evidence, silence + 1.0, configured, now)
            losses += 1
        now += 60.0
        evidence = survived(evidence, configured, now)
    assert losses <= 15


def test_a_longer_interval_is_tried_after_a_long_time_only() -> None:
    evidence = lost(Evidence(), 12.0, 15.0, 0.0)
    assert interval(evidence, 15.0) == 4.0
    assert survived(evidence, 15.0, FIRST_TRIAL - 1) == evidence
    assert interval(survived(evidence, 15.0, FIRST_TRIAL), 15.0) == 4.0 * GROWTH


def test_short_silences_tell_nothing() -> None:
    assert lost(Evidence(), MIN_INTERVAL, 15.0, 0.0) == Evidence()
