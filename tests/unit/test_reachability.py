"""Reachability: proofs, contradictions, and what neither proves anything."""

from __future__ import annotations

from typing import Literal

import pytest

from anyreach.addresses import SocketAddress
from anyreach.candidates import InterfaceAddress
from anyreach.nat import Behaviour, NatReport
from anyreach.peer import PeerId
from anyreach.reachability import (
    MAX_EVIDENCE,
    Evidence,
    Inbound,
    Reachability,
    SelfProbe,
    Surroundings,
    judge,
)

RELAY = PeerId.from_public_key(b"relay")
OTHER = PeerId.from_public_key(b"other")


def address(text: str, port: int = 9000) -> SocketAddress:
    return SocketAddress.of(text, port)


def around(
    *host: str,
    external: tuple[SocketAddress, ...] = (),
    mapping: Behaviour = "unknown",
    on_link: tuple[str, ...] = (),
    udp_blocked: bool = False,
) -> Surroundings:
    links = []
    for text in on_link:
        ip, _, length = text.partition("/")
        links.append(InterfaceAddress("eth0", address(ip).ip, int(length)))
    return Surroundings(
        tuple(map(address, host)), external, NatReport(mapping), tuple(links), udp_blocked
    )


def probe(
    arrived: bool,
    at: float = 1.0,
    *,
    family: Literal[4, 6] = 4,
    relay: PeerId = RELAY,
    contacted: bool = True,
) -> SelfProbe:
    return SelfProbe(family, relay, arrived, at, contacted)


def stranger(host: str, at: float = 1.0) -> Inbound:
    return Inbound(address(host, 40000), at)


def verdicts(result: Reachability) -> dict[int, str]:
    return {entry.family: entry.verdict for entry in result.families}


PUBLIC = around("20.1.0.1", external=(address("20.1.0.1"),), mapping="none")
BEHIND_NAT = around(
    "192.168.1.2", external=(address("20.1.0.1", 5000),), mapping="endpoint-independent"
)


def test_a_public_address_is_no_proof() -> None:
    result = judge(PUBLIC, Evidence())
    assert verdicts(result) == {4: "unknown"}
    assert result.needs_reservation
    assert result.cover == {4, 6}
    assert str(result) == "IPv4 unknown: 20.1.0.1 is public, but nobody unknown got in so far"


def test_a_stranger_is_a_proof() -> None:
    result = judge(PUBLIC, Evidence().with_inbound(stranger("20.9.0.1")))
    assert verdicts(result) == {4: "reachable"}
    assert not result.needs_reservation
    assert result.cover == set()
    assert "20.9.0.1:40000 connected by itself" in str(result)
    assert not judge(BEHIND_NAT, Evidence((), (stranger("20.9.0.1"),))).needs_reservation


@pytest.mark.parametrize("neighbour", ["192.168.1.7", "100.64.0.9", "127.0.0.1", "20.1.0.9"])
def test_neighbours_are_no_strangers(neighbour: str) -> None:
    where = around("20.1.0.1", external=(address("20.1.0.1"),), on_link=("20.1.0.1/24",))
    assert judge(where, Evidence().with_inbound(stranger(neighbour))).needs_reservation


def test_a_stranger_proves_one_family() -> None:
    where = around("20.1.0.1", "2600:1::1")
    result = judge(where, Evidence().with_inbound(stranger("2600:9::1")))
    assert verdicts(result) == {6: "reachable", 4: "unknown"}
    assert result.needs_reservation
    assert result.cover == {4}


def test_a_probe_is_a_proof_without_a_nat() -> None:
    result = judge(PUBLIC, Evidence().with_probe(probe(True)))
    assert not result.needs_reservation
    assert f"through {RELAY.short}… came in" in str(result)


def test_behind_a_nat_only_a_probe_from_a_stranger_counts() -> None:
    assert judge(BEHIND_NAT, Evidence().with_probe(probe(True))).needs_reservation
    from_elsewhere = Evidence().with_probe(probe(True, contacted=False))
    assert not judge(BEHIND_NAT, from_elsewhere).needs_reservation


def test_a_neighbour_does_not_make_the_nat_go_away() -> None:
    where = around("192.168.1.2", external=(address("192.168.1.2"), address("20.1.0.1", 5000)))
    result = judge(where, Evidence().with_probe(probe(True)))
    assert result.needs_reservation
    assert "behind a NAT at 20.1.0.1" in str(result)


def test_what_is_seen_within_the_machine_or_site_makes_no_family() -> None:
    where = around("127.0.0.1", external=(address("127.0.0.1"), address("::1"), address("fd00::1")))
    assert judge(where, Evidence()) == Reachability()


def test_a_probe_that_does_not_arrive() -> None:
    result = judge(PUBLIC, Evidence().with_probe(probe(False)))
    assert str(result) == f"IPv4 unreachable: a probe through {RELAY.short}… did not come in"
    twice = Evidence().with_probe(probe(False)).with_probe(probe(False, relay=OTHER))
    assert str(judge(PUBLIC, twice)) == (
        f"IPv4 unreachable: 2 probes through {RELAY.short}…, {OTHER.short}… did not come in"
    )


def test_one_lost_probe_does_not_overrule_a_proof() -> None:
    evidence = Evidence().with_inbound(stranger("20.9.0.1", 1.0)).with_probe(probe(False, 2.0))
    assert not judge(PUBLIC, evidence).needs_reservation
    assert judge(PUBLIC, evidence.with_probe(probe(False, 3.0))).needs_reservation
    again = evidence.with_probe(probe(False, 3.0)).with_inbound(stranger("20.9.0.1", 4.0))
    assert not judge(PUBLIC, again).needs_reservation


def test_failures_before_a_proof_are_history() -> None:
    evidence = Evidence().with_probe(probe(False, 1.0)).with_probe(probe(False, 2.0))
    assert not judge(PUBLIC, evidence.with_probe(probe(True, 3.0))).needs_reservation


@pytest.mark.parametrize(
    ("where", "verdict", "reason"),
    [
        (BEHIND_NAT, "unknown", "behind a NAT at 20.1.0.1"),
        (
            around(
                "10.0.0.2",
                external=(address("20.1.0.1", 1),),
                mapping="address-and-port-dependent",
            ),
            "unreachable",
            "another port",
        ),
        (around("10.0.0.2"), "unknown", "no external address"),
        (around("10.0.0.2", udp_blocked=True), "unreachable", "UDP"),
    ],
)
def test_without_evidence(where: Surroundings, verdict: str, reason: str) -> None:
    (entry,) = judge(where, Evidence()).families
    assert entry.verdict == verdict
    assert reason in entry.reason


def test_the_kind_of_nat_is_no_matter_once_a_stranger_got_in() -> None:
    where = around(
        "10.0.0.2", external=(address("20.1.0.1", 1),), mapping="address-and-port-dependent"
    )
    assert not judge(where, Evidence().with_inbound(stranger("20.9.0.1"))).needs_reservation


@pytest.mark.parametrize(
    ("host", "families"),
    [
        (("127.0.0.1", "::1"), []),
        (("169.254.1.1", "fe80::1"), []),
        (("10.0.0.1", "fd00::1"), [4]),
        (("100.64.0.1", "2600:1::1"), [6, 4]),
    ],
)
def test_families_a_node_has(host: tuple[str, ...], families: list[int]) -> None:
    result = judge(around(*host), Evidence())
    assert list(verdicts(result)) == families
    assert result.needs_reservation == bool(families)


def test_a_node_alone_on_its_machine() -> None:
    assert str(judge(around("127.0.0.1"), Evidence())) == "no network: only this machine"


def test_an_external_address_makes_a_family() -> None:
    where = around("fd00::1", external=(address("2600:1::1"),))
    assert list(verdicts(judge(where, Evidence()))) == [6]


def test_evidence_is_bounded_per_family() -> None:
    evidence = Evidence().with_inbound(stranger("20.9.0.1", 0.0))
    for number in range(3 * MAX_EVIDENCE):
        evidence = evidence.with_inbound(stranger("2600:9::1", float(number)))
        evidence = evidence.with_probe(probe(False, float(number)))
    assert len(evidence.inbound) == MAX_EVIDENCE + 1
    assert len(evidence.probes) == MAX_EVIDENCE
    assert evidence.probes[-1].at == 3 * MAX_EVIDENCE - 1
    assert [entry.family for entry in evidence.without(6).inbound] == [4]
