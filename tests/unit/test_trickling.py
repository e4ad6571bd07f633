"""What a peer is told, what it may share with us, and which pairs are punched."""

from __future__ import annotations

import pytest

from anyreach.addresses import IpMode, SocketAddress
from anyreach.candidates import (
    MAX_CANDIDATES,
    Candidate,
    CandidateKind,
    DropReason,
    InterfaceAddress,
    LocalNetwork,
    gather,
    pair,
)
from anyreach.near import SITE_PREFIXES, is_on_link, may_share, near_prefixes, shared_prefixes
from anyreach.trickling import for_peer, for_round

HOST, OBSERVED = CandidateKind.HOST, CandidateKind.OBSERVED
MAPPED, PREDICTED = CandidateKind.MAPPED, CandidateKind.PREDICTED


def at(text: str) -> SocketAddress:
    """``"IP PORT"``, or an IP with port 9000."""
    ip, _, port = text.partition(" ")
    return SocketAddress.of(ip, int(port or 9000))


def candidate(text: str, kind: CandidateKind = HOST, index: int = 0) -> Candidate:
    return Candidate.of(at(text), kind, index)


def interface(text: str, name: str = "eth0") -> InterfaceAddress:
    ip, _, length = text.partition("/")
    found = InterfaceAddress.of(name, ip, int(length))
    assert found is not None
    return found


class TestGathering:
    def test_all_kinds(self) -> None:
        network = LocalNetwork(
            bound=(at("::"),),
            interfaces=(interface("192.168.1.5/24"), interface("2001:db8::5/64")),
            mapped=(at("203.0.113.1 7000"),),
            observed=(at("203.0.113.1 4000"), at("2001:db8::5")),
            predicted=(at("203.0.113.1 4001"), at("203.0.113.1 4002"), at("203.0.113.1 4000")),
        )
        assert [(str(c.address), c.kind) for c in gather(network)] == [
            ("[2001:db8::5]:9000", HOST),
            ("192.168.1.5:9000", HOST),
            ("203.0.113.1:7000", MAPPED),
            ("203.0.113.1:4000", OBSERVED),
            ("203.0.113.1:4001", PREDICTED),
            ("203.0.113.1:4002", PREDICTED),
        ]

    def test_predictions_keep_the_order_of_the_counter(self) -> None:
        down = tuple(at(f"203.0.113.1 {port}") for port in (1025, 1024, 65535, 65534))
        found = gather(LocalNetwork(bound=(), predicted=down))
        assert tuple(c.address for c in found) == down
        priorities = [c.priority for c in found]
        assert priorities == sorted(priorities, reverse=True)

    def test_limits(self) -> None:
        network = LocalNetwork(
            bound=(at("0.0.0.0"),),
            ip_mode=IpMode.IPV4_ONLY,
            interfaces=tuple(interface(f"10.0.{i}.1/24") for i in range(40)),
            mapped=tuple(at(f"203.0.113.1 {port}") for port in range(2000, 2010)),
            observed=tuple(at(f"203.0.113.1 {port}") for port in range(3000, 3020)),
            predicted=tuple(at(f"203.0.113.1 {port}") for port in range(4000, 4040)),
        )
        found = gather(network)
        kinds = [c.kind for c in found]
        assert len(found) == MAX_CANDIDATES
        assert [kinds.count(k) for k in (HOST, MAPPED, OBSERVED, PREDICTED)] == [4, 4, 8, 16]

    def test_families_nobody_serves_are_left_out(self) -> None:
        network = LocalNetwork(
            bound=(at("0.0.0.0"),),
            ip_mode=IpMode.IPV4_ONLY,
            mapped=(at("2001:db8::1 7000"),),
            predicted=(at("2001:db8::1 7001"),),
        )
        assert gather(network) == ()


class TestNear:
    HOME = (interface("192.168.1.5/24"), interface("fe80::1/64"), interface("127.0.0.1/8", "lo"))

    def test_prefixes_of_this_host(self) -> None:
        interfaces = (*self.HOME, interface("fd00::5/64"), interface("10.8.0.1/32", "tun0"))
        assert near_prefixes(interfaces) == ("192.168.1.0/24", "fd00::/64")
        assert near_prefixes([interface("10.1.2.3/1"), interface("192.168.1.9/24")]) == (
            "192.168.1.0/24",
        )

    @pytest.mark.parametrize(
        ("external", "peer", "shares"),
        [
            # Behind one address.
            ("203.0.113.1", "203.0.113.1 5000", True),
            ("203.0.113.1", "203.0.113.2 5000", False),
            # On one prefix, whatever is outside.
            ("203.0.113.1", "192.168.1.77", True),
            ("203.0.113.1", "192.168.2.77", False),
            # IPv6 sites have a prefix in common.
            ("2001:db8:1:2::5", "2001:db8:1:3::6", True),
            ("2001:db8:1:2::5", "2001:db8:2:2::6", False),
            # Private addresses as such mean nothing, nor does our own machine.
            ("10.1.1.1", "10.1.1.1 5000", False),
            ("203.0.113.1", "127.0.0.2", False),
            ("203.0.113.1", "fe80::2%eth0", False),
        ],
    )
    def test_who_may_be_on_our_network(self, external: str, peer: str, shares: bool) -> None:
        seen = [at(external).ip]
        assert may_share(self.HOME, seen, [at(peer)]) is shares

    def test_one_outside_opens_all_private_networks_a_prefix_none(self) -> None:
        outside, neighbour = at("203.0.113.1 5000"), at("192.168.1.77")
        assert shared_prefixes(self.HOME, [outside.ip], [outside]) == SITE_PREFIXES
        assert shared_prefixes(self.HOME, [outside.ip], [neighbour]) == ()

    def test_a_public_host_shares_with_a_nat_that_has_its_address(self) -> None:
        router = (interface("203.0.113.1/24"),)
        assert may_share(router, [], [at("203.0.113.1 999")])

    def test_on_link(self) -> None:
        assert is_on_link(at("192.168.1.200").ip, self.HOME)
        assert not is_on_link(at("192.168.2.1").ip, self.HOME)
        assert not is_on_link(at("2001:db8::1").ip, [interface("2001:db8::5/0")])


class TestTold:
    OWN = (
        candidate("2001:db8::5"),
        candidate("192.168.1.5"),
        candidate("fe80::1%eth0"),
        candidate("127.0.0.1"),
        candidate("100.64.0.9 7000", MAPPED),
        candidate("203.0.113.1 4000", OBSERVED),
        candidate("198.51.100.1 3000", CandidateKind.RELAYED),
    )

    def test_strangers_learn_no_private_addresses(self) -> None:
        told = for_peer(self.OWN, shared=False)
        assert list(map(str, told.addresses)) == ["[2001:db8::5]:9000", "203.0.113.1:4000"]
        assert {reason for _, reason in told.withheld} == {DropReason.SCOPE}
        assert told.counts() == {"kept": 2, "scope": 5}

    def test_neighbours_do(self) -> None:
        told = for_peer(self.OWN, shared=True)
        assert list(map(str, told.addresses)) == [
            "[2001:db8::5]:9000",
            "192.168.1.5:9000",
            "100.64.0.9:7000",
            "203.0.113.1:4000",
        ]

    def test_only_families_of_the_peer(self) -> None:
        told = for_peer(self.OWN, shared=False, families=(4,))
        assert list(map(str, told.addresses)) == ["203.0.113.1:4000"]
        assert told.counts() == {"kept": 1, "scope": 5, "cross_family": 1}

    def test_predictions_leave_room_for_what_is_known(self) -> None:
        known = [candidate(f"203.0.113.{i}") for i in range(1, 31)]
        seen = [candidate(f"203.0.113.99 {i}", OBSERVED, i) for i in range(1, 5)]
        guesses = [candidate(f"203.0.113.99 {4000 + i}", PREDICTED, i) for i in range(16)]
        told = for_peer([*known, *seen, *guesses], shared=False)
        kinds = [c.kind for c in told.candidates]
        assert [kinds.count(k) for k in (HOST, OBSERVED, PREDICTED)] == [12, 4, 16]
        assert told.counts() == {"kept": 32, "limit": 18}
        # What is predicted first is the likeliest to match.
        assert [c.address.port for c in told.candidates[16:]] == list(range(4000, 4016))

    def test_limit(self) -> None:
        guesses = [candidate(f"203.0.113.99 {4000 + i}", PREDICTED, i) for i in range(16)]
        assert len(for_peer(guesses, shared=False, limit=5).candidates) == 5
        assert for_peer(guesses, shared=False, limit=0).candidates == ()

    def test_one_address_is_told_once(self) -> None:
        twice = [candidate("203.0.113.1", OBSERVED), candidate("203.0.113.1", HOST)]
        assert [c.kind for c in for_peer(twice, shared=False).candidates] == [HOST]


class TestRoundPairs:
    @pytest.mark.parametrize(
        ("ours", "theirs", "kept"),
        [
            ("203.0.113.1", "198.51.100.1", True),
            ("192.168.1.5", "192.168.1.6", True),
            ("192.168.1.5", "198.51.100.1", False),
            ("198.51.100.1", "192.168.1.5", False),
            ("100.64.0.5", "100.64.0.6", True),
            ("100.64.0.5", "198.51.100.1", False),
            ("fd00::1", "fd00::2", True),
            ("fd00::1", "2001:db8::1", False),
            ("203.0.113.1", "203.0.113.1 4001", True),
        ],
    )
    def test_both_ends_can_send(self, ours: str, theirs: str, kept: bool) -> None:
        pairs = for_round(pair([candidate(ours)], [candidate(theirs)]))
        assert bool(pairs.kept) is kept
        assert pairs.counts()["scope"] == (not kept)

    def test_relayed_ends_are_not_punched(self) -> None:
        pairs = pair([candidate("203.0.113.1")], [candidate("198.51.100.1", CandidateKind.RELAYED)])
        assert not for_round(pairs).kept

    def test_the_order_stays(self) -> None:
        ours = [candidate("203.0.113.1"), candidate("2001:db8::1"), candidate("192.168.1.5")]
        theirs = [candidate("198.51.100.1", OBSERVED), candidate("2001:db9::1")]
        pairs = pair(ours, theirs)
        assert [p for p in pairs.kept if p in for_round(pairs).kept] == list(for_round(pairs).kept)
