"""NAT mapping from what peers see."""

from __future__ import annotations

import pytest

from anyreach.nat import Behaviour, NatReport, classify_mapping, revised

HOST = {("192.168.1.5", 9000), ("2001:db8::5", 9000)}
A, A2 = ("203.0.113.1", 9000), ("203.0.113.1", 9001)
B, C, D = ("198.51.100.1", 9000), ("192.0.2.1", 9000), ("198.51.100.99", 9000)
A6, B6 = ("2001:db8:a::1", 9000), ("2001:db8:b::1", 9000)
OUT = "203.0.113.200"

Observation = tuple[tuple[str, int], tuple[str, int]]


@pytest.mark.parametrize(
    ("observations", "mapping"),
    [
        ([], "unknown"),
        ([(A, ("192.168.1.5", 9000))], "none"),
        ([(A6, ("2001:db8::5", 9000))], "none"),
        # The right address under another port is a mapping all the same.
        ([(A, ("192.168.1.5", 9001))], "unknown"),
        ([(A, (OUT, 4000))], "unknown"),
        ([(A, (OUT, 4000)), (B, (OUT, 4000))], "endpoint-independent"),
        ([(A, (OUT, 4000)), (B, (OUT, 4001))], "address-and-port-dependent"),
        # Two peers at one address cannot tell an address-dependent mapping apart.
        ([(A, (OUT, 4000)), (A2, (OUT, 4000))], "unknown"),
        ([(A, (OUT, 4000)), (A2, (OUT, 4001))], "address-and-port-dependent"),
        ([(A, (OUT, 4000)), (A2, (OUT, 4000)), (B, (OUT, 4001))], "address-dependent"),
        # One outlier among three does not outvote the others.
        ([(A, (OUT, 4000)), (B, (OUT, 4000)), (C, (OUT, 7))], "endpoint-independent"),
        # A peer on our network says nothing about the NAT at its edge.
        (
            [(D, ("192.168.1.5", 9000)), (A, (OUT, 4000)), (B, (OUT, 4000))],
            "endpoint-independent",
        ),
        # Families are judged apart, the worse verdict counts.
        (
            [(A6, ("2001:db8::5", 9000)), (A, (OUT, 4000)), (B, (OUT, 4001))],
            "address-and-port-dependent",
        ),
        (
            [(A6, ("2001:db8::99", 1)), (B6, ("2001:db8::99", 1)), (A, (OUT, 1)), (B, (OUT, 2))],
            "address-and-port-dependent",
        ),
        # Two uplinks: what each peer sees cannot be compared.
        ([(A, (OUT, 4000)), (B, ("203.0.113.201", 4001))], "unknown"),
    ],
)
def test_mapping(observations: list[Observation], mapping: Behaviour) -> None:
    assert classify_mapping(observations, HOST) == mapping


def test_an_empty_report_claims_nothing() -> None:
    assert NatReport() == NatReport("unknown", "unknown", ())


@pytest.mark.parametrize(
    ("before", "verdict", "vouched", "after"),
    [
        # Better evidence always counts.
        ("unknown", "none", False, "none"),
        ("none", "endpoint-independent", False, "endpoint-independent"),
        ("endpoint-independent", "address-dependent", True, "address-dependent"),
        # Too few peers to tell: what more of them told before stands,
        ("endpoint-independent", "unknown", False, "endpoint-independent"),
        ("address-and-port-dependent", "unknown", False, "address-and-port-dependent"),
        # but there is a NAT where none was seen.
        ("none", "unknown", False, "unknown"),
        # Neighbours do not see the NAT; those outside would.
        ("endpoint-independent", "none", False, "endpoint-independent"),
        ("endpoint-independent", "none", True, "none"),
        ("none", "none", False, "none"),
    ],
)
def test_what_stands_against_new_reports(
    before: Behaviour, verdict: Behaviour, vouched: bool, after: Behaviour
) -> None:
    assert revised(before, verdict, vouched=vouched) == after
