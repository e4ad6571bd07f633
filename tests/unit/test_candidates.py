"""Candidates: gathering, what is offered, and which pairs are tried."""

from __future__ import annotations

import pytest

from anyreach.addresses import IpMode, SocketAddress
from anyreach.candidates import (
    MAX_CANDIDATES,
    MAX_PAIRS,
    Candidate,
    CandidateKind,
    CandidatePolicy,
    DefaultCandidatePolicy,
    DropReason,
    InterfaceAddress,
    LocalNetwork,
    gather,
    offer,
    pair,
)


def at(host: str, port: int = 9000) -> SocketAddress:
    return SocketAddress.of(host, port)


def host(address: str) -> Candidate:
    return Candidate.of(at(address), CandidateKind.HOST)


def interface(name: str, address: str, prefix: int) -> InterfaceAddress:
    entry = InterfaceAddress.of(name, address, prefix)
    assert entry is not None
    return entry


INTERFACES = (
    interface("lo", "127.0.0.1", 8),
    interface("lo", "::1", 128),
    interface("eth0", "192.168.1.5", 24),
    interface("eth0", "2001:db8::5", 64),
    interface("eth0", "fe80::5", 64),
)


class TestPair:
    def test_the_table_of_adr_008(self) -> None:
        """ADR-008 section 5: three same-family pairs stay; the mapped address is no fourth."""
        local = [
            host("192.168.1.5"),
            host("2001:db8::5"),
            host("::ffff:192.168.1.5"),
        ]
        remote = [host("10.0.0.5"), host("2001:db8::1"), host("203.0.113.5")]
        result = pair(local, remote)
        assert {(p.local.address.host, p.remote.address.host) for p in result.kept} == {
            ("192.168.1.5", "10.0.0.5"),
            ("192.168.1.5", "203.0.113.5"),
            ("2001:db8::5", "2001:db8::1"),
        }
        assert {
            (d.local.address.host, d.remote.address.host, d.reason) for d in result.dropped
        } == {
            ("192.168.1.5", "2001:db8::1", DropReason.CROSS_FAMILY),
            ("2001:db8::5", "10.0.0.5", DropReason.CROSS_FAMILY),
            ("2001:db8::5", "203.0.113.5", DropReason.CROSS_FAMILY),
        }
        assert result.counts() == {"kept": 3, "cross_family": 3, "scope": 0, "limit": 0}

    @pytest.mark.parametrize(
        ("local", "remote", "reason"),
        [
            ("127.0.0.1", "127.0.0.1", None),
            ("127.0.0.1", "203.0.113.5", DropReason.SCOPE),
            ("192.168.1.5", "127.0.0.1", DropReason.SCOPE),
            ("::1", "::1", None),
            ("::1", "2001:db8::1", DropReason.SCOPE),
            ("fe80::5%eth0", "fe80::1", None),
            ("fe80::5%eth0", "fe80::1%eth0", None),
            ("fe80::5%eth0", "fe80::1%eth1", DropReason.SCOPE),
            ("fe80::5%eth0", "2001:db8::1", DropReason.SCOPE),
            ("2001:db8::5", "fe80::1%eth0", DropReason.SCOPE),
            ("169.254.1.1", "169.254.1.2", None),
            ("169.254.1.1", "192.168.1.5", DropReason.SCOPE),
            ("192.168.1.5", "224.0.0.1", DropReason.SCOPE),
            ("192.168.1.5", "0.0.0.0", DropReason.SCOPE),
            ("2001:db8::5", "fd00::1", None),
            ("100.64.0.1", "203.0.113.5", None),
            ("203.0.113.5", "2001:db8::1", DropReason.CROSS_FAMILY),
        ],
    )
    def test_scopes(self, local: str, remote: str, reason: DropReason | None) -> None:
        result = pair([host(local)], [host(remote)])
        assert [d.reason for d in result.dropped] == ([] if reason is None else [reason])
        assert len(result.kept) == (reason is None)

    def test_best_first(self) -> None:
        relayed = Candidate.of(at("203.0.113.99"), CandidateKind.RELAYED)
        result = pair(
            [host("192.168.1.5"), host("2001:db8::5")],
            [relayed, host("10.0.0.5"), host("203.0.113.5"), host("2001:db8::1")],
        )
        assert [str(address) for address in result.remotes] == [
            "[2001:db8::1]:9000",
            "203.0.113.5:9000",
            "10.0.0.5:9000",
            "203.0.113.99:9000",
        ]

    def test_priority_formula(self) -> None:
        """RFC 8445 6.1.2.3."""
        ours = Candidate(at("192.0.2.1"), CandidateKind.HOST, 10)
        theirs = Candidate(at("192.0.2.2"), CandidateKind.HOST, 7)
        (controlling,) = pair([ours], [theirs], controlling=True).kept
        (controlled,) = pair([ours], [theirs], controlling=False).kept
        assert controlling.priority == 2**32 * 7 + 2 * 10 + 1
        assert controlled.priority == 2**32 * 7 + 2 * 10

    def test_both_ends_break_ties_alike(self) -> None:
        ours = [host("192.0.2.1"), host("192.0.2.2")]
        theirs = [host("203.0.113.1"), host("203.0.113.2")]
        mine = pair(ours, theirs, controlling=True).kept
        yours = pair(theirs, ours, controlling=False).kept
        assert [(p.local, p.remote) for p in mine] == [(p.remote, p.local) for p in yours]

    def test_limits(self) -> None:
        local = [host(f"10.0.0.{n}") for n in range(1, 41)]
        remote = [host(f"10.0.1.{n}") for n in range(1, 4)]
        counts = pair(local, remote).counts()
        assert counts == {"kept": 96, "cross_family": 0, "scope": 0, "limit": 24}
        counts = pair(local, local).counts()
        assert counts["kept"] == MAX_PAIRS
        assert counts["limit"] == 40 * 40 - MAX_PAIRS

    def test_nothing_to_pair(self) -> None:
        assert pair([], [host("10.0.0.1")]).remotes == ()


class TestPriority:
    def test_of_a_host_address(self) -> None:
        """RFC 8445 5.1.2.1: 2^24 type + 2^8 local + 256 - component."""
        candidate = Candidate.of(at("203.0.113.5"), CandidateKind.HOST)
        assert candidate.priority >> 24 == 126
        assert candidate.priority & 0xFF == 255
        assert 0 < candidate.priority < 2**31

    def test_order_of_kinds(self) -> None:
        ranked = sorted(CandidateKind, key=lambda k: -Candidate.of(at("203.0.113.5"), k).priority)
        assert ranked == [
            CandidateKind.HOST,
            CandidateKind.GIVEN,
            CandidateKind.MAPPED,
            CandidateKind.OBSERVED,
            CandidateKind.PREDICTED,
            CandidateKind.RELAYED,
        ]

    def test_given_addresses_keep_their_order(self) -> None:
        hosts = ["10.0.0.1", "203.0.113.1", "2001:db8::1", "127.0.0.1"]
        given = [Candidate.of(at(h), CandidateKind.GIVEN, i) for i, h in enumerate(hosts)]
        own = [host("10.0.0.9"), host("2001:db8::9"), host("127.0.0.1")]
        assert [a.host for a in pair(own, given).remotes] == hosts

    def test_scope_family_and_place(self) -> None:
        def rank(address: str, index: int = 0) -> int:
            return Candidate.of(at(address), CandidateKind.HOST, index).priority

        assert rank("2001:db8::1") > rank("203.0.113.1") > rank("203.0.113.1", 1)
        assert rank("203.0.113.1") > rank("100.64.0.1") > rank("fd00::1") > rank("10.0.0.1")
        assert rank("10.0.0.1") > rank("fe80::1") > rank("127.0.0.1") > 0
        assert rank("127.0.0.1", 10**6) > 0


class TestGather:
    def test_a_wildcard_is_every_interface(self) -> None:
        candidates = gather(LocalNetwork((at("::"),), interfaces=INTERFACES))
        assert [str(c.address) for c in candidates] == [
            "[2001:db8::5]:9000",
            "192.168.1.5:9000",
            "[fe80::5%eth0]:9000",
            "[::1]:9000",
            "127.0.0.1:9000",
        ]
        assert {c.kind for c in candidates} == {CandidateKind.HOST}

    @pytest.mark.parametrize(
        ("bound", "mode", "versions"),
        [
            ("::", IpMode.IPV6_ONLY, {6}),
            ("0.0.0.0", IpMode.IPV4_ONLY, {4}),
            ("0.0.0.0", IpMode.DUAL_STACK, {4}),
            ("::", IpMode.DUAL_STACK, {4, 6}),
        ],
    )
    def test_families(self, bound: str, mode: IpMode, versions: set[int]) -> None:
        found = gather(LocalNetwork((at(bound),), mode, INTERFACES))
        assert {c.address.version for c in found} == versions

    def test_an_explicit_address_is_just_that(self) -> None:
        found = gather(LocalNetwork((at("127.0.0.1", 7),), interfaces=INTERFACES))
        assert [str(c.address) for c in found] == ["127.0.0.1:7"]

    def test_observed_addresses_join(self) -> None:
        network = LocalNetwork(
            (at("::"),),
            interfaces=INTERFACES,
            observed=(at("203.0.113.7", 40001), at("2001:db8::5"), at("0.0.0.0")),
        )
        observed = [c for c in gather(network) if c.kind is CandidateKind.OBSERVED]
        assert [str(c.address) for c in observed] == ["203.0.113.7:40001"]

    def test_observed_addresses_of_an_unused_family(self) -> None:
        network = LocalNetwork((at("::"),), IpMode.IPV6_ONLY, observed=(at("203.0.113.7"),))
        assert gather(network) == ()

    def test_many_interfaces_leave_room_for_observed_addresses(self) -> None:
        bridges = tuple(interface(f"br{n}", f"172.17.{n}.1", 24) for n in range(100))
        observed = tuple(at("203.0.113.7", port) for port in range(1, 20))
        found = gather(LocalNetwork((at("::"),), interfaces=bridges, observed=observed))
        assert len(found) == MAX_CANDIDATES
        assert [c.address for c in found if c.kind is CandidateKind.OBSERVED] == list(observed[:8])

    def test_zones(self) -> None:
        zoned = InterfaceAddress("eth0", at("fe80::9%eth0").ip, 64)
        found = gather(LocalNetwork((at("::"),), interfaces=(zoned,)))
        assert [str(c.address) for c in found] == ["[fe80::9%eth0]:9000"]

    def test_interface_addresses_from_text(self) -> None:
        entry = interface("eth0", "fe80::5%eth0", 64)
        assert str(entry.ip) == "fe80::5"
        assert InterfaceAddress.of("eth0", "not an address", 64) is None


class TestOffer:
    def test_only_what_others_can_use(self) -> None:
        offered = offer(gather(LocalNetwork((at("::"),), interfaces=INTERFACES)))
        assert [c.address.host for c in offered] == ["2001:db8::5", "192.168.1.5"]

    def test_loopback_if_there_is_nothing_else(self) -> None:
        offered = offer(gather(LocalNetwork((at("127.0.0.1"),))))
        assert [c.address.host for c in offered] == ["127.0.0.1"]


def test_the_default_policy_is_these_functions() -> None:
    policy: CandidatePolicy = DefaultCandidatePolicy()
    assert isinstance(policy, CandidatePolicy)
    network = LocalNetwork((at("::"),), interfaces=INTERFACES)
    own = policy.gather(network)
    assert own == gather(network)
    assert policy.offer(own) == offer(own)
    assert policy.pair(own, own, controlling=False) == pair(own, own, controlling=False)
