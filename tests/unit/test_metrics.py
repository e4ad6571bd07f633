"""The recorder and the Prometheus text form; how real connections move them is in tests/e2e."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from anyreach.metrics import Histogram, Recorder, exposition

if TYPE_CHECKING:
    from anyreach._core import PathInfo
    from anyreach.metrics import NodeMetrics

# One sample line of the text exposition format 0.0.4.
SAMPLE = re.compile(
    r'^[a-z_]+(\{[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z_]+="(?:[^"\\\n]|\\[\\"n])*")*\})? \S+$'
)


def path(ident: int, sent: int, received: int, method: str = "direct") -> PathInfo:
    fields = {"id": ident, "method": method, "sent_bytes": sent, "received_bytes": received}
    return cast("PathInfo", SimpleNamespace(**fields))


def snapshot(recorder: Recorder) -> NodeMetrics:
    return recorder.snapshot(connections={}, rejected={})


def test_bytes_are_counted_once_whatever_the_number_of_readings() -> None:
    recorder = Recorder()
    recorder.paths(7, [path(0, 100, 10)])
    recorder.paths(7, [path(0, 100, 10)])
    recorder.paths(7, [path(0, 150, 30), path(1, 5, 6, "relayed")])
    recorder.paths(8, [path(0, 1000, 0)])
    total = snapshot(recorder).bytes_total
    assert total["direct", "sent"] == 1150
    assert total["direct", "received"] == 30
    assert total["relayed", "sent"] == 5
    assert total["relayed", "received"] == 6


def test_the_rest_of_a_connection_is_counted_at_its_end() -> None:
    recorder = Recorder()
    recorder.paths(7, [path(0, 100, 10), path(1, 50, 5, "relayed")])
    recorder.ended(7, sent=170, received=15)
    recorder.ended(8, sent=1, received=2)
    total = snapshot(recorder).bytes_total
    assert (total["direct", "sent"], total["relayed", "sent"]) == (101, 70)
    assert (total["direct", "received"], total["relayed", "received"]) == (12, 5)


def test_a_new_connection_starts_from_zero_after_the_old_one_ended() -> None:
    recorder = Recorder()
    recorder.paths(7, [path(0, 100, 0)])
    recorder.ended(7, sent=100, received=0)
    recorder.paths(7, [path(0, 40, 0)])
    assert snapshot(recorder).bytes_total["direct", "sent"] == 140


def test_tunnels_are_counted_once_and_by_side() -> None:
    recorder = Recorder()
    recorder.relayed("client", 1, 100, 10)
    recorder.relayed("client", 1, 150, 10)
    recorder.relayed("client", 2, 5, 6)
    recorder.relayed("relay", 1, 1000, 2000)
    recorder.tunnel_ended("client", 1)
    recorder.relayed("client", 1, 7, 0)
    total = snapshot(recorder).relay_bytes_total
    assert (total["client", "sent"], total["client", "received"]) == (162, 16)
    assert (total["relay", "sent"], total["relay", "received"]) == (1000, 2000)


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.005, 0), (0.0051, 1), (30.0, 11), (31.0, 12)]
)
def test_a_value_on_a_bound_belongs_to_that_bucket(seconds: float, bucket: int) -> None:
    recorder = Recorder()
    recorder.connected("direct", seconds)
    counts = snapshot(recorder).connect_seconds["direct"].counts
    assert [i for i, n in enumerate(counts) if n] == [bucket]


def test_a_snapshot_does_not_change_afterwards() -> None:
    recorder = Recorder()
    before = snapshot(recorder)
    recorder.connected("direct", 0.1)
    recorder.candidate("dns", "connected")
    recorder.events_dropped(3)
    assert before.connections_total["direct"] == 0
    assert not before.candidates_total
    assert before.events_dropped_total == 0
    with pytest.raises(TypeError):
        before.connections_total["direct"] = 1  # type: ignore[index]


def test_exposition_of_every_family() -> None:
    recorder = Recorder()
    recorder.connected("direct", 0.02)
    recorder.candidate_pair("cross_family", 2)
    recorder.candidate("given", "connected")
    recorder.observed(0.003)
    recorder.paths(1, [path(0, 10, 20)])
    recorder.path_switched("direct", "relayed", "failover")
    recorder.failed_over(0.2)
    recorder.relayed("relay", 0, 70, 80)
    recorder.reservation("h3", "reserved")
    recorder.events_dropped()
    text = exposition(
        recorder.snapshot(
            connections={"direct": 1},
            rejected={'odd "reason"\\\n': 4},
            relay_sessions=3,
            relay_reservations=2,
        )
    )
    assert text.endswith("\n")
    for line in text.splitlines():
        if not line.startswith("#"):
            assert SAMPLE.match(line), line
    lines = text.splitlines()
    assert 'anyreach_connect_seconds_bucket{method="direct",le="0.01"} 0' in lines
    assert 'anyreach_connect_seconds_bucket{method="direct",le="0.025"} 1' in lines
    assert 'anyreach_connect_seconds_bucket{method="direct",le="+Inf"} 1' in lines
    assert 'anyreach_connect_seconds_sum{method="direct"} 0.02' in lines
    assert 'anyreach_connect_seconds_count{method="direct"} 1' in lines
    assert 'anyreach_connections{method="direct"} 1' in lines
    assert 'anyreach_connections{method="relayed"} 0' in lines
    assert 'anyreach_connections_total{method="direct"} 1' in lines
    assert 'anyreach_candidate_pairs_total{outcome="cross_family"} 2' in lines
    assert 'anyreach_candidates_total{source="given",outcome="connected"} 1' in lines
    assert 'anyreach_candidates_total{source="observed",outcome="reported"} 1' in lines
    assert "anyreach_observed_address_seconds_count 1" in lines
    assert 'anyreach_rejected_total{reason="odd \\"reason\\"\\\\\\n"} 4' in lines
    assert 'anyreach_bytes_total{method="direct",direction="received"} 20' in lines
    switch = '{from="direct",to="relayed",reason="failover"}'
    assert f"anyreach_path_switches_total{switch} 1" in lines
    assert 'anyreach_failover_seconds_bucket{le="0.25"} 1' in lines
    assert 'anyreach_relay_bytes_total{role="relay",direction="sent"} 70' in lines
    assert 'anyreach_relay_bytes_total{role="client",direction="sent"} 0' in lines
    assert "anyreach_relay_sessions 3" in lines
    assert "anyreach_relay_reservations 2" in lines
    assert 'anyreach_relay_reservations_total{carrier="h3",outcome="reserved"} 1' in lines
    assert "anyreach_events_dropped_total 1" in lines


def test_every_family_has_help_and_type_before_its_samples() -> None:
    declared: set[str] = set()
    for line in exposition(snapshot(Recorder())).splitlines():
        if line.startswith("# TYPE "):
            declared.add(line.split()[2])
        elif not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            assert name in declared or re.sub(r"_(bucket|sum|count)$", "", name) in declared


def test_histogram_count() -> None:
    assert Histogram((1.0,), (2, 3), 9.0).count == 5
