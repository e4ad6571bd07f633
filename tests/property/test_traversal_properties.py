"""Judging NATs, predicting ports, planning rounds and ranking paths hold for any input."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, get_args

from hypothesis import given
from hypothesis import strategies as st

from anyreach.addresses import Scope, SocketAddress
from anyreach.candidates import MAX_CANDIDATES, Candidate, CandidateKind, DropReason, pair
from anyreach.nat import MAX_REFLECTIONS, Behaviour, NatEvidence, NatReport, Reflected, assess
from anyreach.near import NARROW
from anyreach.paths import DefaultPathPolicy, PathMethod, PathSituation, PathView
from anyreach.ports import FIRST_PORT, LAST_PORT, PortBehaviour, classify_ports, distance, moved
from anyreach.prediction import MAX_PREDICTED, likely_gaps, predict
from anyreach.punching import BIRTHDAY_METHODS, Plan, plan
from anyreach.rounds import (
    FAST_SECONDS,
    LONGEST_PAUSE,
    ROUND_SPACING,
    BirthdayBudget,
    Round,
    Schedule,
)
from anyreach.trickling import for_peer, for_round

if TYPE_CHECKING:
    from collections.abc import Callable

ports = st.integers(FIRST_PORT, LAST_PORT)
any_port = st.integers(1, 65535)
times = st.floats(0, 1e6)
steps = st.sampled_from([1, 2, -1, -2, 3, 8])
behaviours = st.sampled_from(get_args(Behaviour))
reports = st.builds(
    NatReport, behaviours, behaviours, ports=st.sampled_from(get_args(PortBehaviour))
)


class TestPorts:
    @given(ports, st.integers(-(10**6), 10**6))
    def test_moving_stays_in_the_range_and_back_is_back(self, port: int, by: int) -> None:
        there = moved(port, by)
        assert FIRST_PORT <= there <= LAST_PORT
        assert moved(there, -by) == port

    @given(ports, ports)
    def test_distance_leads_there(self, before: int, after: int) -> None:
        assert moved(before, distance(before, after)) == after

    @given(ports, steps, st.lists(st.integers(0, 20), min_size=2, max_size=8))
    def test_a_counter_is_seen_to_count(self, port: int, step: int, others: list[int]) -> None:
        row, samples = port, []
        for more in others:
            row = moved(row, step * (1 + more))
            samples.append((0, row))
        kind, found = classify_ports(samples)
        if len(samples) > 2:
            assert kind == "sequential"
        if kind == "sequential":
            assert found * step > 0
            assert found % step == 0 or abs(found) == 1
        if len(samples) > 2 and 0 in others[1:]:
            assert found == step

    @given(st.integers(0, 2**64))
    def test_random_ports_are_rarely_taken_for_a_counter(self, seed: int) -> None:
        # Seeded: a search for bad luck finds it.
        dice = random.Random(seed)
        wrong = sum(
            classify_ports([(0, dice.randint(FIRST_PORT, LAST_PORT)) for _ in range(4)])[0]
            != "random"
            for _ in range(1000)
        )
        assert wrong <= 10


class TestPrediction:
    @given(
        st.lists(st.tuples(times, any_port), max_size=20),
        times,
        st.integers(-1000, 1000),
        st.floats(-10, 1000),
        st.tuples(st.integers(0, 100), st.integers(-5, 100)),
    )
    def test_never_outside_the_range_nor_too_many(
        self,
        samples: list[tuple[float, int]],
        now: float,
        step: int,
        lead: float,
        wanted: tuple[int, int],
    ) -> None:
        own, count = wanted
        found = predict(samples, now, step=step, lead=lead, own=own, count=count)
        assert len(found) <= max(0, min(count, MAX_PREDICTED))
        assert len(set(found)) == len(found)
        assert all(FIRST_PORT <= port <= LAST_PORT for port in found)
        if step:
            assert all(distance(a, b) == step for a, b in pairwise(found))

    @given(ports, steps, st.integers(1, 8), st.integers(1, MAX_PREDICTED))
    def test_alone_the_next_port_comes_first(
        self, port: int, step: int, samples: int, count: int
    ) -> None:
        row = [moved(port, step * i) for i in range(samples)]
        found = predict(list(enumerate(row)), samples - 1, step=step, lead=0.02, count=count)
        assert found[0] == moved(row[-1], step)

    @given(st.floats(0, 1e4), st.floats(0, 100), st.floats(0, 100), st.integers(1, 40))
    def test_gaps_are_neighbours(
        self, events: float, seconds: float, ahead: float, count: int
    ) -> None:
        window = likely_gaps(events, seconds, ahead, count)
        assert len(window) == count
        assert window.start >= 0
        # A smaller window is a part of it.
        assert set(likely_gaps(events, seconds, ahead, 1)) <= set(window)

    @given(st.randoms(use_true_random=False), st.floats(0, 25), steps)
    def test_a_counter_in_traffic_is_met(self, dice: random.Random, rate: float, step: int) -> None:
        """Samples of six round trips of 30 ms, then a packet after 100 ms."""
        hits = 0
        for _ in range(40):
            nat = _traffic(dice, rate, step)
            samples = [(i * 0.03, nat(i * 0.03)) for i in range(6)]
            found = predict(samples, 0.15, step=step, lead=0.1)
            hits += nat(0.25) in found
        assert hits >= 36


def _traffic(dice: random.Random, rate: float, step: int) -> Callable[[float], int]:
    """A NAT that counts, for us and ``rate`` others a second; gives the port of a new mapping."""
    port = dice.randint(FIRST_PORT, LAST_PORT)
    due = dice.expovariate(rate) if rate > 1e-3 else float("inf")

    def new_mapping(now: float) -> int:
        nonlocal port, due
        while due <= now:
            port = moved(port, step)
            due += dice.expovariate(rate)
        port = moved(port, step)
        return port

    return new_mapping


addresses = st.tuples(st.sampled_from(["203.0.113.5", "192.168.1.5", "2001:db8::5"]), any_port)
reflections = st.builds(
    Reflected,
    times,
    addresses,
    addresses,
    any_port,
    st.booleans(),
)


class TestNat:
    @given(st.lists(reflections, max_size=60))
    def test_evidence_is_bounded(self, given_: list[Reflected]) -> None:
        evidence = NatEvidence()
        for reflected in given_:
            evidence = evidence.with_reflection(reflected)
            assert reflected in evidence.reflections
        for family in (4, 6):
            same = [r for r in evidence.reflections if r.family == family]
            assert len(same) <= MAX_REFLECTIONS
        destinations = [d for d, _ in evidence.observations]
        assert len(destinations) == len(set(destinations))

    @given(st.lists(reflections, max_size=20), st.lists(st.tuples(addresses, addresses)))
    def test_a_report_is_stable(
        self,
        given_: list[Reflected],
        observations: list[tuple[tuple[str, int], tuple[str, int]]],
    ) -> None:
        """The same evidence again changes nothing; no evidence, nothing either."""
        evidence = NatEvidence()
        for reflected in given_:
            evidence = evidence.with_reflection(reflected)
        first = assess(observations, (), experiments=evidence)
        assert assess(observations, (), experiments=evidence, before=first) == first
        assert assess((), (), before=first) == first
        assert (first.step != 0) == (first.ports == "sequential")


class TestPlan:
    @given(reports, reports | st.none(), st.booleans(), st.booleans(), st.booleans())
    def test_switches_are_heeded(
        self, own: NatReport, peer: NatReport | None, client: bool, predict_: bool, birthday: bool
    ) -> None:
        found = plan(own, peer, client=client, predict=predict_, birthday=birthday)
        assert predict_ or "predict" not in found.methods
        assert birthday or not BIRTHDAY_METHODS & set(found.methods)
        assert found.reason
        # Whatever is tried beside, the cheap way is tried, too.
        assert not found.methods or "simple" in found.methods
        other = plan(own, peer, client=client, elsewhere=True)
        assert other.method == "simple"

    @given(reports, reports, st.booleans())
    def test_both_ends_agree(self, own: NatReport, peer: NatReport, birthday: bool) -> None:
        ours = plan(own, peer, client=True, birthday=birthday)
        theirs = plan(peer, own, client=False, birthday=birthday)
        assert ours.methods == theirs.methods


class TestSchedule:
    @given(
        st.lists(
            st.tuples(
                st.floats(0, 400),
                st.sampled_from(
                    ["failed", "refused", "direct", "lost", "news", "network", "plan", "nothing"]
                ),
                st.sampled_from(
                    [(), ("simple",), ("predict", "simple"), ("pool", "simple"), ("spray",)]
                ),
            ),
            max_size=60,
        ),
        st.integers(0, 6),
        st.floats(0, 5),
    )
    def test_rounds_keep_their_distance(
        self, steps_: list[tuple[float, str, tuple[str, ...]]], per_hour: int, rtt: float
    ) -> None:
        schedule = Schedule(BirthdayBudget(per_hour))
        now, starts, birthdays = 0.0, [], []
        direct = False
        schedule.planned(Plan(("simple",), ""), now)
        schedule.candidates(now, usable=True)
        for pause, event, methods in [*steps_, (3 * LONGEST_PAUSE, "nothing", ())]:
            until = now + pause
            while True:
                action = schedule.next(now, rtt)
                if isinstance(action, Round):
                    assert not direct
                    assert 0 <= action.hold <= 1.0
                    assert action.opener_ttl in range(256)
                    starts.append(now)
                    if action.method in BIRTHDAY_METHODS:
                        birthdays.append(now)
                    continue
                assert action.until is None or action.until > now
                if action.until is None or action.until > until:
                    break
                now = action.until
            now = until
            if event == "failed":
                schedule.finished("failed", now)
            elif event == "refused":
                schedule.finished("refused", now)
            elif event == "direct":
                schedule.direct_up(now)
                direct = True
            elif event == "lost" and direct:
                schedule.direct_lost(now)
                direct = False
            elif event == "news":
                schedule.candidates(now, usable=True)
            elif event == "network":
                schedule.network_changed(now)
            elif event == "plan":
                schedule.planned(Plan(tuple(methods), ""), now)  # type: ignore[arg-type]
        assert all(b - a >= ROUND_SPACING - 1e-9 for a, b in pairwise(starts))
        for began in birthdays:
            assert sum(began <= at < began + 3600 for at in birthdays) <= per_hour
        if not direct:
            # It never ends: there was one in the quiet time after all that happened.
            assert starts
            assert starts[-1] >= now - 3 * LONGEST_PAUSE

    @given(st.floats(0.01, 5.0), st.floats(0.0, FAST_SECONDS - 5.0), st.floats(0.001, 1.0))
    def test_direct_is_back_soon(self, lasts: float, cut: float, rtt: float) -> None:
        """Whenever a cut ends within a minute, a round begins within four seconds."""
        schedule = Schedule(BirthdayBudget(4))
        schedule.planned(Plan(("simple",), ""), 0.0)
        schedule.candidates(0.0, usable=True)
        schedule.next(0.0, rtt)
        schedule.direct_up(0.1)
        now = lost = 1000.0
        schedule.direct_lost(now)
        ends = float("inf")
        while now < lost + FAST_SECONDS:
            action = schedule.next(now, rtt)
            if isinstance(action, Round):
                if now >= lost + cut:
                    assert now <= lost + cut + 4.0
                    return
                ends = now + lasts
                continue
            due = min(action.until or ends, ends)
            assert due > now
            now = due
            if now == ends:
                schedule.finished("failed", now)
                ends = float("inf")
        raise AssertionError


methods = st.sampled_from(get_args(PathMethod))
trips = st.floats(0, 2.0)


def views(rates: st.SearchStrategy[float | None]) -> st.SearchStrategy[list[PathView]]:
    return st.lists(
        st.builds(
            PathView,
            id=st.integers(0, 9),
            method=methods,
            family=st.sampled_from((4, 6)),
            rtt=trips,
            age=st.floats(0, 1000),
            delivery_rate=rates,
            mtu=st.sampled_from((1200, 1452)),
            loss=st.none() | st.floats(0, 1),
            carries=st.sampled_from((None, None, True, False)),
            black_hole=st.booleans(),
            flaps=st.integers(0, 6),
        ),
        max_size=8,
        unique_by=lambda path: path.id,
    )


paths = views(st.none() | st.floats(0, 1e9))
current = st.none() | st.integers(0, 9)
POLICY = DefaultPathPolicy()


class TestPaths:
    @given(paths, current, st.floats(0, 100), st.floats(0, 1000), st.randoms())
    def test_the_order_of_the_question_does_not_matter(
        self,
        given_: list[PathView],
        used: int | None,
        standby: float,
        idle: float,
        dice: random.Random,
    ) -> None:
        decision = POLICY.decide(PathSituation(tuple(given_), used, standby, idle))
        shuffled = list(given_)
        dice.shuffle(shuffled)
        assert POLICY.decide(PathSituation(tuple(shuffled), used, standby, idle)) == decision
        assert [rank for _, rank in decision.ranking] == list(range(len(given_)))
        assert {id_ for id_, _ in decision.ranking} == {path.id for path in given_}

    @given(paths, current)
    def test_a_better_tier_always_wins(self, given_: list[PathView], used: int | None) -> None:
        order = POLICY.order(given_, used)
        tiers = [POLICY.tier(path) for path in order]
        assert not tiers or tiers[0] == min(tiers)
        assert tiers == sorted(tiers)
        sound = [p for p in given_ if POLICY.tier(p) == 0]
        assert not sound or order[0].method != "relayed"

    @given(views(st.none()) | views(st.floats(1, 1e9)), current)
    def test_choices_settle(self, given_: list[PathView], used: int | None) -> None:
        """As long as nothing is measured anew, one choice does not lead to the next for ever."""
        for _ in range(len(given_) + 1):
            order = POLICY.order(given_, used)
            first = order[0].id if order else None
            if first == used:
                return
            used = first
        assert not given_

    @given(
        st.lists(st.floats(0.0005, 0.5), min_size=2, max_size=5),
        st.lists(st.lists(st.floats(-1, 1), min_size=5, max_size=5), min_size=1, max_size=30),
    )
    def test_noise_makes_no_path_flap(self, trips_: list[float], noise: list[list[float]]) -> None:
        """Round trips that vary by less than half of what a switch must gain: one switch, if any
        path is better, and none back to a path that was left."""
        calm = [PathView(i, "direct", 4, rtt, 100.0) for i, rtt in enumerate(trips_)]
        used: int | None = None
        left: set[int] = set()
        for row in noise:
            noisy = [
                PathView(p.id, "direct", 4, p.rtt + by * _noise(p.rtt), 100.0)
                for p, by in zip(calm, row, strict=False)
            ]
            first = POLICY.order(noisy, used)[0].id
            if used is not None and first != used:
                left.add(used)
            assert first not in left
            used = first

    @given(paths, current, st.floats(0, 100), st.floats(0, 1000))
    def test_what_is_closed_is_a_standby(
        self, given_: list[PathView], used: int | None, standby: float, idle: float
    ) -> None:
        decision = POLICY.decide(PathSituation(tuple(given_), used, standby, idle))
        by_id = {path.id: path for path in given_}
        for id_ in decision.close:
            assert by_id[id_].method == "relayed"
        if decision.close:
            assert by_id[decision.ranking[0][0]].method != "relayed"
        assert decision.again_in is None or decision.again_in > 0


def _noise(rtt: float) -> float:
    """Just below half of the gain that is worth a switch from or to such a path."""
    return 0.45 * min(0.005, max(0.0005, 0.09 * rtt))


ips = st.sampled_from(
    ["203.0.113.5", "198.51.100.1", "192.168.1.5", "10.0.0.1", "100.64.0.1", "127.0.0.1",
     "169.254.0.1", "0.0.0.0", "224.0.0.1", "2001:db8::1", "fd00::1", "fe80::1", "::1"]
)  # fmt: skip
candidates = st.lists(
    st.builds(
        Candidate.of,
        st.builds(SocketAddress.of, ips, st.integers(0, 50)),
        st.sampled_from(CandidateKind),
        st.integers(0, 50),
    ),
    max_size=60,
)


class TestTrickling:
    @given(candidates, st.booleans(), st.sets(st.sampled_from((4, 6))), st.integers(0, 40))
    def test_what_is_told(
        self, given_: list[Candidate], shared: bool, families: set[int], limit: int
    ) -> None:
        told = for_peer(given_, shared=shared, families=families, limit=limit)
        assert len(told.candidates) <= limit
        assert len(set(told.addresses)) == len(told.addresses)
        everything = {c.address for c in given_}
        withheld = {c.address for c, _ in told.withheld}
        assert set(told.addresses) | withheld == everything
        assert not set(told.addresses) & withheld
        for candidate in told.candidates:
            address = candidate.address
            assert candidate.kind is not CandidateKind.RELAYED
            assert address.scope.dialable
            assert address.port
            assert address.scope not in (Scope.LOOPBACK, Scope.LINK_LOCAL)
            assert shared or address.scope not in NARROW
            assert address.version in families
        ranks = [c.priority for c in told.candidates]
        assert ranks == sorted(ranks, reverse=True)
        if any(reason is DropReason.LIMIT for _, reason in told.withheld):
            assert len(told.candidates) == limit

    @given(candidates, candidates)
    def test_pairs_of_a_round(self, ours: list[Candidate], theirs: list[Candidate]) -> None:
        pairs = pair(ours[:MAX_CANDIDATES], theirs[:MAX_CANDIDATES])
        punched = for_round(pairs)
        assert set(punched.kept) <= set(pairs.kept)
        assert sum(punched.counts().values()) == sum(pairs.counts().values())
        for kept in punched.kept:
            ends = kept.local.address.scope, kept.remote.address.scope
            assert len({scope is Scope.GLOBAL for scope in ends}) == 1
