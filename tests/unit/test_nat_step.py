"""The step of a NAT that counts is told by one flight, whatever rounds of our own come later."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anyreach.nat import NatEvidence, NatReport, Reflected, assess

_RELAY = ("192.0.2.1", 443)
_OUTSIDE = "198.51.100.1"


def _seen(evidence: NatEvidence, at: float, port: int, flight: int) -> NatEvidence:
    seen = (_OUTSIDE, port)
    return evidence.with_reflection(Reflected(at, _RELAY, seen, 40000, fresh=True, flight=flight))


@given(
    step=st.sampled_from([-2, -1, 1, 2]),
    between=st.integers(min_value=1, max_value=30),
    rounds=st.integers(min_value=1, max_value=6),
    spacing=st.floats(min_value=1.2, max_value=30.0),
    idle=st.floats(min_value=1.0, max_value=60.0),
)
def test_mappings_of_own_rounds_are_no_step(
    step: int, between: int, rounds: int, spacing: float, idle: float
) -> None:
    evidence, report, port = NatEvidence(), NatReport(), 30000
    for number in range(3):
        evidence = _seen(evidence, number * 1e-6, port, 1)
        port += step
    report = assess([], [], before=report, experiments=evidence)
    assert (report.ports, report.step) == ("sequential", step)
    for number in range(rounds):  # one sample before each, and then its packets
        evidence = _seen(evidence, idle + number * spacing, port, 2 + number)
        port += step * (1 + between)
        report = assess([], [], before=report, experiments=evidence)
        assert (report.ports, report.step) == ("sequential", step)


def test_a_later_flight_of_several_revises_the_step() -> None:
    evidence = NatEvidence()
    for flight, ports in enumerate(((5000, 5001, 5002), (5020,), (6000, 6002, 6004))):
        for number, port in enumerate(ports):
            evidence = _seen(evidence, flight + number * 1e-6, port, flight)
    assert evidence.ports(4) == ("sequential", 2)
