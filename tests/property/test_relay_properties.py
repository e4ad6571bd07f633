"""Relay policy, scores and reachability hold their promises for any input."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from anyreach.addresses import SocketAddress
from anyreach.candidates import InterfaceAddress
from anyreach.nat import NatReport
from anyreach.peer import PeerId
from anyreach.reachability import (
    MAX_EVIDENCE,
    Evidence,
    Inbound,
    SelfProbe,
    Surroundings,
    judge,
)
from anyreach.relays import (
    POOR_RECORD,
    DefaultRelayPolicy,
    RelayCandidate,
    RelaySituation,
    Reservation,
)
from anyreach.scores import MAX_WEIGHT, Score, Scores

POLICY = DefaultRelayPolicy()
PEERS = [PeerId.from_public_key(bytes([number])) for number in range(7)]
ME = PEERS[0]

peers = st.sampled_from(PEERS)
times = st.floats(0.0, 1e5)
outcomes = st.lists(st.tuples(st.booleans(), times), max_size=80)
hosts = st.sampled_from(
    ["20.1.0.1", "20.1.0.2", "20.2.0.1", "20.3.0.1", "2600:1:2::1", "2600:2::1", "10.0.0.1"]
)
addresses = st.builds(SocketAddress.of, hosts, st.just(9000))
scores = st.builds(Score, st.floats(0.0, 16.0), st.floats(0.0, 16.0), times)
families = st.frozensets(st.sampled_from([4, 6]))
relays = st.builds(
    RelayCandidate,
    peers,
    st.lists(addresses, min_size=1, max_size=3).map(tuple),
    st.none() | st.floats(0.0, 2.0),
    scores,
    families,
    st.none() | st.floats(allow_nan=False),
    st.frozensets(st.sampled_from(["h3", "h2", "h2-proxy"])),
    st.booleans(),
)
reservations = st.builds(
    Reservation,
    st.sampled_from(PEERS[1:]),
    st.sampled_from(["requested", "reserved", "lost"]),
    times,
    st.none() | st.floats(0.0, 2.0),
    st.integers(0, 40),
)
situations = st.builds(
    RelaySituation,
    st.just(ME),
    st.lists(relays, max_size=7, unique_by=lambda c: c.peer_id).map(tuple),
    st.lists(reservations, max_size=7, unique_by=lambda r: r.relay).map(tuple),
    times,
    st.integers(0, 4),
    families,
)


class TestRelays:
    @given(situations)
    def test_decisions_make_sense(self, situation: RelaySituation) -> None:
        decision = POLICY.decide(situation)
        offered = {c.peer_id for c in situation.candidates}
        live = {r.relay for r in situation.reservations if r.live}
        assert len(set(decision.reserve)) == len(decision.reserve)
        assert set(decision.reserve) <= offered - live - {ME}
        assert set(decision.release) <= live
        # At most one more than wanted, while it replaces another.
        missing = max(0, situation.wanted - len(live))
        assert len(decision.reserve) <= max(missing, 1)
        assert not decision.reserve or situation.wanted
        if decision.again_at is not None:
            assert decision.again_at > situation.now

    @given(situations)
    def test_nothing_is_given_up_before_its_successor_works(
        self, situation: RelaySituation
    ) -> None:
        decision = POLICY.decide(situation)
        working = {r.relay for r in situation.reservations if r.state == "reserved"}
        if decision.release:
            assert len(working - set(decision.release)) >= min(situation.wanted, len(working))

    @given(situations)
    def test_waits_are_kept(self, situation: RelaySituation) -> None:
        decision = POLICY.decide(situation)
        known = {c.peer_id for c in situation.candidates} - {ME}
        for held in situation.reservations:
            if held.live and held.relay in decision.release and situation.wanted:
                assert (
                    situation.now >= held.since + POLICY.dwell
                    or len([r for r in situation.reservations if r.live]) > situation.wanted
                )
            if not held.live and held.relay in decision.reserve:
                alone = not any(r.live for r in situation.reservations) and known <= {
                    r.relay for r in situation.reservations
                }
                assert POLICY.retry_at(held, ME, alone=alone) <= situation.now

    @given(situations)
    def test_empty_places_are_filled_if_anybody_can(self, situation: RelaySituation) -> None:
        decision = POLICY.decide(situation)
        tried = {r.relay for r in situation.reservations}
        fresh = {c.peer_id for c in situation.candidates} - tried - {ME}
        live = [r for r in situation.reservations if r.live]
        missing = max(0, situation.wanted - len(live))
        assert len(decision.reserve) >= min(missing, len(fresh))

    @given(situations)
    def test_networks_are_distinct_where_they_can_be(self, situation: RelaySituation) -> None:
        candidates = tuple(
            replace(c, score=Score(), families=frozenset((4, 6)))
            for c in situation.candidates
            if c.peer_id != ME
        )
        first = POLICY.decide(replace(situation, candidates=candidates, reservations=(), wanted=1))
        both = POLICY.decide(replace(situation, candidates=candidates, reservations=(), wanted=2))
        assert Score().mean(0) > POOR_RECORD
        if len(both.reserve) == 2:
            networks = {c.peer_id: c.networks for c in candidates}
            assert both.reserve[0] == first.reserve[0]
            one, two = (networks[relay] for relay in both.reserve)
            others = [n for relay, n in networks.items() if relay not in both.reserve]
            assert not one & two or all(one & other for other in others)

    @settings(max_examples=200)
    @given(situations, st.floats(0.0, 300.0))
    def test_it_comes_to_rest(self, situation: RelaySituation, step: float) -> None:
        """With unchanging measurements and requests that succeed, addresses stop changing."""
        changes = 0
        for _ in range(40):
            decision = POLICY.decide(situation)
            changes += bool(decision.reserve or decision.release)
            table = {r.relay: r for r in situation.reservations}
            table = {
                relay: replace(r, state="reserved", failures=0) if r.state == "requested" else r
                for relay, r in table.items()
                if relay not in decision.release
            }
            for relay in decision.reserve:
                table[relay] = Reservation(relay, "requested", situation.now)
            again = situation.now + 10.0 + step if decision.again_at is None else decision.again_at
            # Frozen scores: what fades is not what is tested here.
            situation = replace(
                situation, reservations=tuple(table.values()), now=max(again, situation.now + step)
            )
            situation = replace(
                situation,
                candidates=tuple(
                    replace(c, score=replace(c.score, at=situation.now))
                    for c in situation.candidates
                ),
            )
        assert changes <= 24
        final = POLICY.decide(situation)
        assert not final.reserve
        assert not final.release

    @given(situations)
    def test_the_order_of_the_input_does_not_matter(self, situation: RelaySituation) -> None:
        shuffled = replace(situation, candidates=situation.candidates[::-1])
        assert POLICY.decide(shuffled).reserve == POLICY.decide(situation).reserve


class TestScores:
    @given(outcomes)
    def test_probabilities_stay_within_bounds(self, history: list[tuple[bool, float]]) -> None:
        score = Score()
        for outcome, now in history:
            before = score
            score = score.updated(outcome, now)
            assert 0.0 < score.mean(now) < 1.0
            assert 0.0 <= score.weight(score.at) <= MAX_WEIGHT + 1e-9
            if outcome:
                assert score.mean(score.at) >= before.mean(score.at) - 1e-12
            else:
                assert score.mean(score.at) <= before.mean(score.at) + 1e-12

    @given(scores, times, times)
    def test_time_leads_back_to_not_knowing(self, score: Score, one: float, two: float) -> None:
        early, late = sorted((one, two))
        assert abs(score.mean(late) - 0.5) <= abs(score.mean(early) - 0.5) + 1e-12
        assert score.weight(late) <= score.weight(early) + 1e-12

    @given(st.lists(st.tuples(peers, st.booleans()), max_size=60), st.integers(-1, 5))
    def test_the_table_is_bounded(self, history: list[tuple[PeerId, bool]], limit: int) -> None:
        table = Scores(limit)
        for now, (peer, outcome) in enumerate(history):
            score = table.record(peer, "relay", outcome, float(now))
            assert table.of(peer, "relay") == score
            assert len(table) <= max(1, limit)


outside = st.sampled_from(["20.1.0.1", "20.9.0.1", "10.0.0.9", "192.168.1.9", "2600:1:2::1"])
remotes = st.builds(SocketAddress.of, outside, st.integers(1, 65535))
probes = st.builds(SelfProbe, st.sampled_from([4, 6]), peers, st.booleans(), times, st.booleans())
inbounds = st.builds(Inbound, remotes, times)
surroundings = st.builds(
    Surroundings,
    st.lists(remotes, max_size=3).map(tuple),
    st.lists(remotes, max_size=2).map(tuple),
    st.builds(
        NatReport,
        st.sampled_from(["none", "endpoint-independent", "address-and-port-dependent", "unknown"]),
    ),
    st.lists(
        st.builds(
            InterfaceAddress, st.just("eth0"), remotes.map(lambda a: a.ip), st.integers(0, 128)
        ),
        max_size=2,
    ).map(tuple),
    st.booleans(),
)


def evidence_of(entries: list[SelfProbe | Inbound]) -> Evidence:
    evidence = Evidence()
    for entry in entries:
        if isinstance(entry, SelfProbe):
            evidence = evidence.with_probe(entry)
        else:
            evidence = evidence.with_inbound(entry)
    return evidence


class TestReachability:
    @given(surroundings, st.lists(probes | inbounds, max_size=80))
    def test_verdicts(self, around: Surroundings, entries: list[SelfProbe | Inbound]) -> None:
        evidence = evidence_of(entries)
        assert len(evidence.probes) <= 2 * MAX_EVIDENCE
        assert len(evidence.inbound) <= 2 * MAX_EVIDENCE
        result = judge(around, evidence)
        versions = [entry.family for entry in result.families]
        assert versions in ([], [4], [6], [6, 4])
        assert all(entry.reason for entry in result.families)
        assert str(result)
        proved = {entry.family for entry in result.families if entry.verdict == "reachable"}
        assert result.needs_reservation == (proved != set(versions))
        assert result.cover == (frozenset((4, 6)) - proved if proved != set(versions) else set())
        # Nothing is reachable without a proof of its own family.
        for family in proved:
            assert not around.udp_blocked
            assert any(p.arrived for p in evidence.probes if p.family == family) or any(
                i.family == family for i in evidence.inbound
            )

    @given(surroundings, st.lists(probes | inbounds, max_size=20), st.sampled_from([4, 6]))
    def test_families_do_not_mix(
        self, around: Surroundings, entries: list[SelfProbe | Inbound], family: int
    ) -> None:
        evidence = evidence_of(entries)
        other = {e.family: e for e in judge(around, evidence).families if e.family != family}
        without = judge(around, evidence.without(6 if family == 6 else 4))
        assert {e.family: e for e in without.families if e.family != family} == other
