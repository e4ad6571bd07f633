"""NAT mapping from what peers see, and the rest from experiments."""

from __future__ import annotations

import pytest

from anyreach.addresses import SocketAddress
from anyreach.candidates import InterfaceAddress
from anyreach.nat import (
    MAX_REFLECTIONS,
    Behaviour,
    FamilyNat,
    NatEvidence,
    NatReport,
    Reflected,
    assess,
    classify_filtering,
    classify_mapping,
    revised,
)
from anyreach.peer import PeerId
from anyreach.reachability import Evidence, Inbound, SelfProbe

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


RELAY = PeerId.from_public_key(b"relay")
X, X2 = ("203.0.113.1", 50000), ("198.51.100.1", 50000)


def probe(at: float, arrived: bool, contacted: bool = True) -> SelfProbe:
    return SelfProbe(4, RELAY, arrived, at, contacted)


def stranger(at: float, ip: str = "192.0.2.77") -> Inbound:
    return Inbound(SocketAddress.of(ip, 999), at)


class TestFiltering:
    @pytest.mark.parametrize(
        ("probes", "strangers", "filtering"),
        [
            ([], [], "unknown"),
            ([probe(1, arrived=False)], [], "address-and-port-dependent"),
            ([probe(1, arrived=True)], [], "address-dependent"),
            ([probe(1, arrived=True, contacted=False)], [], "endpoint-independent"),
            ([], [stranger(1)], "endpoint-independent"),
            # Whom strangers reach, acquaintances do; but the other way round nothing follows.
            ([probe(1, arrived=True), probe(2, False, contacted=False)], [], "address-dependent"),
            ([probe(2, False, contacted=False)], [], "unknown"),
            # One may get lost; two are a contradiction.
            ([probe(2, arrived=False)], [stranger(1)], "endpoint-independent"),
            (
                [probe(2, arrived=False), probe(3, arrived=False)],
                [stranger(1)],
                "address-and-port-dependent",
            ),
            ([probe(1, arrived=True), probe(2, arrived=False)], [], "address-dependent"),
            # What came in later is newer.
            (
                [probe(1, arrived=False), probe(2, arrived=False), probe(3, arrived=True)],
                [],
                "address-dependent",
            ),
            # Another family proves nothing, and neither does a neighbour.
            ([], [stranger(1, "2001:db8::77")], "unknown"),
            ([], [stranger(1, "192.168.1.77")], "unknown"),
        ],
    )
    def test_what_came_in(
        self, probes: list[SelfProbe], strangers: list[Inbound], filtering: Behaviour
    ) -> None:
        own = InterfaceAddress.of("eth0", "192.168.1.5", 24)
        assert own is not None
        evidence = Evidence(tuple(probes), tuple(strangers))
        assert classify_filtering(evidence, 4, on_link=[own]) == filtering


def own_socket(at: float, destination: tuple[str, int], port: int) -> Reflected:
    return Reflected(at, destination, (OUT, port), 9000)


def fresh(at: float, port: int, local: int = 50000, ip: str = OUT) -> Reflected:
    return Reflected(at, X, (ip, port), local, fresh=True)


def evidence_of(*reflections: Reflected) -> NatEvidence:
    evidence = NatEvidence()
    for reflected in reflections:
        evidence = evidence.with_reflection(reflected)
    return evidence


class TestNatEvidence:
    def test_the_latest_of_each_destination_counts(self) -> None:
        evidence = evidence_of(own_socket(1, X, 1), own_socket(2, X2, 2), own_socket(3, X, 3))
        assert evidence.observations == ((X2, (OUT, 2)), (X, (OUT, 3)))

    def test_fresh_sockets_are_samples(self) -> None:
        evidence = evidence_of(own_socket(1, X, 4000), fresh(2, 4001), fresh(3, 4002))
        assert evidence.samples(4) == ((2, 4001), (3, 4002))
        assert evidence.samples(6) == ()
        assert evidence.observations == ((X, (OUT, 4000)),)

    def test_samples_are_of_one_external_address(self) -> None:
        evidence = evidence_of(fresh(1, 4001), fresh(2, 99, ip="203.0.113.9"), fresh(3, 4002))
        assert evidence.samples(4) == ((1, 4001), (3, 4002))

    def test_only_samples_of_one_moment_are_compared(self) -> None:
        early = [fresh(i, 4000 + i) for i in range(3)]
        assert evidence_of(*early).ports(4) == ("sequential", 1)
        assert evidence_of(*early, fresh(600, 30000)).ports(4) == ("unknown", 0)
        late = [fresh(600 + i, 30000 + 2 * i) for i in range(3)]
        assert evidence_of(*early, *late).ports(4) == ("sequential", 2)
        assert evidence_of().ports(4) == ("unknown", 0)

    def test_it_is_bounded_and_in_order(self) -> None:
        order = [*range(20, 40), *range(20)]
        evidence = evidence_of(*(fresh(at, 4000 + at) for at in order))
        assert len(evidence.reflections) == MAX_REFLECTIONS
        assert [r.at for r in evidence.reflections] == sorted(r.at for r in evidence.reflections)

    def test_a_new_address_makes_the_old_evidence_void(self) -> None:
        six = Reflected(1, ("2001:db8::9", 1), ("2001:db8::5", 2), 3)
        assert evidence_of(fresh(1, 2), six).without(4) == evidence_of(six)


class TestAssess:
    PEER = ((A, (OUT, 4000)),)

    def test_nothing(self) -> None:
        assert assess((), HOST) == NatReport()

    def test_one_relay_shows_a_mapping_for_each_port(self) -> None:
        report = assess(self.PEER, HOST, experiments=evidence_of(own_socket(1, X, 4001)))
        assert report.mapping == "address-and-port-dependent"
        assert report.of(4).mapping == "address-and-port-dependent"
        assert report.of(6) == FamilyNat(6)

    def test_two_relays_tell_the_others_apart(self) -> None:
        far = (*self.PEER, (B, (OUT, 5000)))
        by_address = evidence_of(own_socket(1, X, 4000), own_socket(1, X2, 5000))
        assert assess(far, HOST, experiments=by_address).mapping == "address-dependent"
        same = evidence_of(own_socket(1, X, 4000), own_socket(1, X2, 4000))
        report = assess((*self.PEER, (B, (OUT, 4000))), HOST, experiments=same)
        assert report.mapping == "endpoint-independent"

    @pytest.mark.parametrize(
        ("ports", "expected"),
        [
            ([4001, 4002, 4003], ("sequential", 1)),
            ([4001, 3999, 3997], ("sequential", -2)),
            ([50000, 50000, 50000], ("preserving", 0)),
            ([4001, 61000, 22000], ("random", 0)),
            ([4001], ("unknown", 0)),
        ],
    )
    def test_ports(self, ports: list[int], expected: tuple[str, int]) -> None:
        samples = evidence_of(*(fresh(at, port) for at, port in enumerate(ports)))
        report = assess(self.PEER, HOST, experiments=samples)
        assert (report.ports, report.step) == expected

    def test_filtering(self) -> None:
        evidence = Evidence(probes=(probe(1, arrived=True),))
        report = assess(self.PEER, HOST, evidence=evidence)
        assert report.filtering == "address-dependent"

    def test_what_nobody_contradicts_stays(self) -> None:
        evidence = Evidence(probes=(probe(1, arrived=False),))
        samples = evidence_of(own_socket(0, X, 3999), *(fresh(i, 4001 + i) for i in range(3)))
        known = assess(
            self.PEER,
            HOST,
            experiments=samples,
            evidence=evidence,
            external=[(f"{OUT}:4000", 1)],
        )
        assert known == NatReport(
            "address-and-port-dependent",
            "address-and-port-dependent",
            (f"{OUT}:4000",),
            (1,),
            "sequential",
            1,
            (
                FamilyNat(
                    4,
                    "address-and-port-dependent",
                    "address-and-port-dependent",
                    "sequential",
                    1,
                ),
            ),
        )
        assert assess((), HOST, before=known) == known
        # New evidence is believed.
        opened = assess((), HOST, before=known, evidence=Evidence(probes=(probe(9, True),)))
        assert opened.filtering == "address-dependent"
        assert opened.ports == "sequential"

    def test_the_worse_family_is_told(self) -> None:
        seen = [(A6, ("2001:db8::5", 9000)), (A, (OUT, 4000))]
        samples = evidence_of(
            own_socket(1, X, 4001), *(fresh(i, p) for i, p in enumerate((1, 40000, 20000)))
        )
        report = assess(seen, HOST, experiments=samples)
        assert (report.mapping, report.ports) == ("address-and-port-dependent", "random")
        assert report.of(6).mapping == "none"
        assert report.of(4).ports == "random"
