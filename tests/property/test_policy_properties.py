"""Pairing, racing, backing off and believing hold their promises for any input."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from anyreach.addresses import IpMode, Scope, SocketAddress
from anyreach.backoff import LAST_CEILING, retry_delay
from anyreach.candidates import (
    MAX_CANDIDATES,
    MAX_PAIRS,
    Candidate,
    CandidateKind,
    InterfaceAddress,
    LocalNetwork,
    gather,
    offer,
    pair,
)
from anyreach.happy_eyeballs import (
    MIN_ATTEMPT_SPACING,
    Exhausted,
    Finished,
    Race,
    Start,
    Wait,
    order,
    schedule,
)
from anyreach.observed import MAX_OBSERVERS, ObservedAddresses
from anyreach.peer import PeerId

if TYPE_CHECKING:
    from collections.abc import Iterable

# Few distinct values, so that collisions and every scope are common.
ips = st.ip_addresses() | st.sampled_from(
    [
        SocketAddress.of(host, 1).ip
        for host in (
            "127.0.0.1",
            "10.0.0.1",
            "192.168.1.5",
            "100.64.0.1",
            "203.0.113.5",
            "198.51.100.1",
            "169.254.0.1",
            "224.0.0.1",
            "0.0.0.0",
            "::1",
            "::",
            "fe80::1",
            "fe80::1%eth0",
            "fe80::2%eth1",
            "fd00::1",
            "2001:db8::1",
            "2001:db9::1",
            "ff02::1",
            "::ffff:203.0.113.5",
        )
    ]
)
addresses = st.builds(SocketAddress, ips, st.sampled_from([1, 9000]))
candidates = st.lists(
    st.builds(Candidate.of, addresses, st.sampled_from(CandidateKind), st.integers(0, 5000)),
    max_size=40,
)
rtts = st.dictionaries(addresses, st.floats(0.0001, 5.0), max_size=5)


class TestPairing:
    @given(candidates, candidates)
    def test_pairs_never_cross_families_or_scopes(
        self, local: list[Candidate], remote: list[Candidate]
    ) -> None:
        result = pair(local, remote)
        assert len(result.kept) <= MAX_PAIRS
        for kept in result.kept:
            ends = kept.local.address, kept.remote.address
            assert len({end.version for end in ends}) == 1
            assert all(end.scope.dialable for end in ends)
            for narrow in (Scope.LOOPBACK, Scope.LINK_LOCAL):
                assert len({end.scope is narrow for end in ends}) == 1
        ranks = [kept.priority for kept in result.kept]
        assert ranks == sorted(ranks, reverse=True)

    @given(candidates, candidates)
    def test_every_pair_has_one_outcome(
        self, local: list[Candidate], remote: list[Candidate]
    ) -> None:
        result = pair(local, remote)
        seen = [(kept.local.address, kept.remote.address) for kept in result.kept]
        seen += [(dropped.local.address, dropped.remote.address) for dropped in result.dropped]
        assert len(seen) == len(set(seen)) == sum(result.counts().values())
        assert set(seen) == {(a.address, b.address) for a in local for b in remote}

    @given(candidates, candidates)
    def test_both_ends_agree(self, local: list[Candidate], remote: list[Candidate]) -> None:
        ours = pair(local, remote, controlling=True)
        theirs = pair(remote, local, controlling=False)
        assert [(p.priority, p.local, p.remote) for p in ours.kept] == [
            (p.priority, p.remote, p.local) for p in theirs.kept
        ]
        assert ours.counts() == theirs.counts()

    @given(
        st.lists(addresses, max_size=3),
        st.sampled_from(IpMode),
        st.lists(st.builds(InterfaceAddress, st.just("eth0"), ips, st.just(24)), max_size=40),
        st.lists(addresses, max_size=12),
    )
    def test_gathering(
        self,
        bound: list[SocketAddress],
        mode: IpMode,
        interfaces: list[InterfaceAddress],
        observed: list[SocketAddress],
    ) -> None:
        network = LocalNetwork(tuple(bound), mode, tuple(interfaces), tuple(observed))
        found = gather(network)
        assert len(found) <= MAX_CANDIDATES
        assert len({c.address for c in found}) == len(found)
        assert all(c.address.scope.dialable for c in found)
        offered = offer(found)
        assert set(offered) <= set(found)
        assert all(c.address.scope is not Scope.LINK_LOCAL for c in offered)


class TestOrder:
    @given(st.lists(addresses, max_size=20), rtts, st.sampled_from([4, 6]))
    def test_every_address_once_and_families_alternate(
        self, given_: list[SocketAddress], known: dict[SocketAddress, float], prefer: int
    ) -> None:
        ranked = order(given_, rtts=known, prefer=4 if prefer == 4 else 6)
        assert sorted(ranked, key=lambda a: a.sort_key) == sorted(
            set(given_), key=lambda a: a.sort_key
        )
        versions = [a.version for a in ranked]
        fewer = min(versions.count(4), versions.count(6))
        assert all(a != b for a, b in pairwise(versions[: 2 * fewer]))

    @given(st.lists(addresses, max_size=20), rtts, st.floats(0.01, 2.0))
    def test_schedules_keep_the_delays(
        self, given_: list[SocketAddress], known: dict[SocketAddress, float], delay: float
    ) -> None:
        plan = schedule(given_, attempt_delay=delay, rtts=known)
        offsets = [offset for offset, _ in plan]
        for earlier, later in pairwise(offsets):
            assert min(delay, 0.1) - 1e-9 <= later - earlier <= delay + 1e-9


class TestRace:
    @given(
        st.lists(addresses, max_size=12),
        st.floats(0.01, 2.0),
        rtts,
        st.dictionaries(addresses, st.floats(0.0, 3.0), max_size=12),
    )
    def test_all_fail(
        self,
        given_: list[SocketAddress],
        delay: float,
        known: dict[SocketAddress, float],
        fails_after: dict[SocketAddress, float],
    ) -> None:
        """Every address is started exactly once, spaced, and never later than the delay asks."""
        starts = drive(Race(given_, attempt_delay=delay, rtts=known), fails_after)
        assert {address for _, address in starts} == set(given_)
        assert len(starts) == len(set(given_))
        times = [at for at, _ in starts]
        for earlier, later in pairwise(times):
            assert MIN_ATTEMPT_SPACING - 1e-9 <= later - earlier <= delay + 1e-9

    @given(
        st.lists(addresses.filter(lambda a: a.version == 6), min_size=1, max_size=6),
        st.lists(addresses.filter(lambda a: a.version == 4), min_size=1, max_size=6),
        st.floats(0.01, 2.0),
    )
    def test_a_silent_first_family_costs_one_delay(
        self, dead: list[SocketAddress], alive: list[SocketAddress], delay: float
    ) -> None:
        starts = drive(Race([*dead, *alive], attempt_delay=delay), {})
        first = min(at for at, address in starts if address.version == 4)
        assert first <= delay + 1e-9

    @given(st.lists(addresses, min_size=1, max_size=8, unique=True), st.data())
    def test_a_winner_ends_it(self, given_: list[SocketAddress], data: st.DataObject) -> None:
        race = Race(given_)
        now = 0.0
        for _ in range(data.draw(st.integers(1, len(given_)))):
            assert isinstance(race.next_action(now), Start)
            now += 0.25
        started = race.started
        winner = data.draw(st.sampled_from(started))
        assert set(race.won(winner)) == set(started) - {winner}
        assert race.next_action(now + 99) == Finished(winner)
        assert race.running == ()
        assert race.started == started

    @given(st.lists(st.lists(addresses, max_size=4), max_size=5), st.floats(0.01, 2.0))
    def test_late_answers_are_all_tried_once(
        self, batches: list[list[SocketAddress]], delay: float
    ) -> None:
        race = Race(attempt_delay=delay)
        now, starts = 0.0, []
        for batch in batches:
            race.add(batch)
            action = race.next_action(now)
            if isinstance(action, Start):
                starts.append(action.address)
            now += delay / 3
        starts += [address for _, address in drive(race, {}, now)]
        assert len(starts) == len(set(starts))
        assert set(starts) == {address for batch in batches for address in batch}


def drive(
    race: Race, fails_after: dict[SocketAddress, float], now: float = 0.0
) -> list[tuple[float, SocketAddress]]:
    """Run a race nobody wins in virtual time; attempts fail after the given seconds or never."""
    starts: list[tuple[float, SocketAddress]] = []
    failures: list[tuple[float, SocketAddress]] = []
    while True:
        action = race.next_action(now)
        if isinstance(action, Start):
            starts.append((now, action.address))
            if action.address in fails_after:
                failures.append((now + fails_after[action.address], action.address))
                failures.sort(key=lambda failure: failure[0])
            continue
        if isinstance(action, Exhausted):
            return starts
        assert isinstance(action, Wait)
        due = action.until
        if failures and (due is None or failures[0][0] <= due):
            now, address = failures.pop(0)
            race.failed(address, now)
        elif due is None:
            return starts
        else:
            assert due > now
            now = due


@given(st.integers(-5, 10**6), st.floats(0.0, 1.0))
def test_back_off_stays_within_its_bounds(failures: int, fraction: float) -> None:
    delay = retry_delay(failures, fraction)
    assert 0.1 <= delay <= LAST_CEILING
    assert delay <= retry_delay(failures + 1, fraction)


reports = st.tuples(st.integers(0, 120), addresses, addresses)


class TestObserved:
    @given(st.lists(reports | st.integers(0, 120), max_size=150))
    def test_beliefs(self, steps: Iterable[tuple[int, SocketAddress, SocketAddress] | int]) -> None:
        """Events replayed give the state; beliefs always have support; memory is bounded."""
        seen = ObservedAddresses()
        adopted: set[SocketAddress] = set()
        believed: set[SocketAddress] = set()
        for now, step in enumerate(steps):
            if isinstance(step, int):
                changes = seen.remove(peer(step))
            else:
                number, observer_address, address = step
                changes = seen.report(peer(number), observer_address, address, now)
            for change in changes:
                assert change.observers == seen.observers(change.address)
                if change.kind == "adopted":
                    assert change.address not in adopted
                    adopted.add(change.address)
                elif change.kind == "believed":
                    assert change.observers >= 2
                    believed.add(change.address)
                else:
                    adopted.remove(change.address)
                    believed.discard(change.address)
            assert set(seen.candidates()) == adopted
            assert set(seen.believed()) == believed
            assert believed <= adopted
            assert len(seen.observations()) <= MAX_OBSERVERS
            assert all(address.scope.dialable for address in adopted)


def peer(number: int) -> PeerId:
    return PeerId.from_public_key(number.to_bytes(4, "big"))
