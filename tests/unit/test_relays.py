"""The relay policy: near, proven, distinct relays, and no wandering between them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anyreach.addresses import SocketAddress
from anyreach.peer import PeerId
from anyreach.relays import (
    DefaultRelayPolicy,
    RelayCandidate,
    RelayDecision,
    RelayPolicy,
    RelaySituation,
    Reservation,
    ReservationState,
)
from anyreach.scores import Score

POLICY = DefaultRelayPolicy()
NOW = 10_000.0
LONG_AGO = NOW - 1000.0


def peer(name: str) -> PeerId:
    return PeerId.from_public_key(name.encode())


ME = peer("me")


def at(host: str) -> tuple[SocketAddress, ...]:
    return (SocketAddress.of(host, 9000),)


def relay(
    name: str,
    host: str = "",
    *,
    ms: float | None = 50,
    record: str = "",
    load: float | None = None,
    known: bool = False,
) -> RelayCandidate:
    score = Score()
    for outcome in record:
        score = score.updated(outcome == "+", NOW)
    return RelayCandidate(
        peer(name),
        at(host or f"{20 + sum(name.encode()) % 100}.{ord(name[0])}.0.1"),
        None if ms is None else ms / 1000,
        score,
        frozenset((4, 6)),
        load,
        known=known,
    )


def held(
    name: str,
    state: ReservationState = "reserved",
    *,
    since: float = LONG_AGO,
    ms: float | None = None,
    failures: int = 0,
) -> Reservation:
    return Reservation(peer(name), state, since, None if ms is None else ms / 1000, failures)


def decide(
    *parts: RelayCandidate | Reservation, wanted: int = 2, now: float = NOW
) -> RelayDecision:
    return POLICY.decide(situation(*parts, wanted=wanted, now=now))


def situation(
    *parts: RelayCandidate | Reservation, wanted: int = 2, now: float = NOW
) -> RelaySituation:
    return RelaySituation(
        ME,
        tuple(part for part in parts if isinstance(part, RelayCandidate)),
        tuple(part for part in parts if isinstance(part, Reservation)),
        now,
        wanted,
    )


def names(*wanted: str) -> tuple[PeerId, ...]:
    return tuple(map(peer, wanted))


def test_nothing_to_choose_from() -> None:
    assert decide() == RelayDecision()


def test_the_nearest_first() -> None:
    decision = decide(relay("far", ms=200), relay("near", ms=10), relay("middle", ms=60))
    assert decision.reserve == names("near", "middle")
    assert decision.release == ()


def test_the_node_itself_is_no_relay() -> None:
    assert decide(relay("me")).reserve == ()


def test_unmeasured_goes_after_near_and_before_far() -> None:
    decision = decide(
        relay("unmeasured", ms=None), relay("far", ms=400), relay("near", ms=100), wanted=3
    )
    assert decision.reserve == names("near", "unmeasured", "far")


def test_a_record_is_worth_distance() -> None:
    decision = decide(relay("flaky", ms=40, record="+--+--"), relay("solid", ms=60, record="++++"))
    assert decision.reserve == names("solid", "flaky")


def test_a_poor_record_is_the_last_resort() -> None:
    poor, far = relay("poor", ms=1, record="---"), relay("far", ms=900)
    assert decide(poor, far).reserve == names("far", "poor")
    assert decide(poor).reserve == names("poor")


def test_two_networks() -> None:
    near, same = relay("near", "20.1.0.1", ms=10), relay("same", "20.1.9.9", ms=11)
    other = relay("other", "20.2.0.1", ms=150)
    assert decide(near, same, other).reserve == names("near", "other")
    assert decide(near, same).reserve == names("near", "same")


def test_sharing_one_family_is_sharing() -> None:
    both = relay("both", "20.1.0.1", ms=10)
    both = replace(both, addresses=both.addresses + at("2600:1:2::1"))
    six = relay("six", "2600:1:3::1", ms=20)
    four = relay("four", "20.2.0.1", ms=60)
    assert decide(both, six, four).reserve == names("both", "four")


def test_a_family_nobody_can_use_needs_a_relay_that_serves_it() -> None:
    near = replace(relay("near", "20.1.0.1", ms=10), families=frozenset())
    dual = relay("dual", "20.2.0.1", ms=90)
    assert decide(near, dual, wanted=1).reserve == names("dual")
    only_four = replace(situation(near, dual, wanted=1), cover=frozenset((4,)))
    assert POLICY.decide(only_four).reserve == names("near")


def test_load_decides_between_equals_only() -> None:
    idle, busy = relay("idle", ms=41, load=0.1), relay("busy", ms=40, load=0.9)
    assert decide(idle, busy, wanted=1).reserve == names("idle")
    assert decide(idle, relay("busy", ms=20, load=0.9), wanted=1).reserve == names("busy")


@pytest.mark.parametrize("load", [-1e9, 0.0, 1.0, 1e9, float("inf"), float("-inf")])
def test_no_claim_beats_a_measurement(load: float) -> None:
    liar = relay("liar", ms=100, load=load)
    assert decide(liar, relay("near", ms=30), wanted=1).reserve == names("near")


def test_relays_the_user_named_go_before_equals() -> None:
    assert decide(relay("other", ms=40), relay("mine", ms=41, known=True), wanted=1).reserve == (
        names("mine")
    )


def test_tcp_only_costs() -> None:
    tcp = replace(relay("tcp", ms=40), carriers=frozenset(("h2",)))
    udp = replace(relay("udp", ms=50), carriers=frozenset(("h2", "h3")))
    assert decide(tcp, udp, wanted=1).reserve == names("udp")


class TestKeeping:
    def test_what_works_stays(self) -> None:
        decision = decide(
            relay("a", ms=50), relay("b", ms=60), relay("c", ms=45), held("a"), held("b")
        )
        assert decision == RelayDecision()

    @pytest.mark.parametrize(
        ("ms", "replaced"), [(90, False), (75, False), (40, True), (69, False)]
    )
    def test_only_the_clearly_better_replaces(self, ms: float, replaced: bool) -> None:
        # Costs are twice these: nobody has a record.
        decision = decide(relay("old", ms=100), relay("new", ms=ms), held("old"), wanted=1)
        assert decision.reserve == (names("new") if replaced else ())
        assert decision.release == ()

    def test_a_share_of_little_is_nothing(self) -> None:
        decision = decide(relay("old", ms=8), relay("new", ms=1), held("old"), wanted=1)
        assert decision == RelayDecision()

    def test_the_old_one_goes_when_the_new_one_works(self) -> None:
        old, new = relay("old", ms=100), relay("new", ms=10)
        pending = decide(old, new, held("old"), held("new", "requested", since=NOW), wanted=1)
        assert (pending.reserve, pending.release) == ((), ())
        done = decide(old, new, held("old"), held("new", since=NOW), wanted=1)
        assert (done.reserve, done.release) == ((), names("old"))

    def test_a_replacement_that_fails_costs_nothing(self) -> None:
        old, new = relay("old", ms=100), relay("new", ms=10)
        failed = held("new", "lost", since=NOW, failures=1)
        decision = decide(old, new, held("old"), failed, wanted=1)
        assert (decision.reserve, decision.release) == ((), ())
        assert decision.again_at is not None
        assert NOW < decision.again_at <= NOW + POLICY.cool_down

    def test_one_replacement_at_a_time(self) -> None:
        candidates = [relay("a", ms=300), relay("b", ms=310), relay("c", ms=10), relay("d", ms=11)]
        decision = decide(*candidates, held("a"), held("b"))
        assert decision.reserve == names("c")
        decision = decide(*candidates, held("a"), held("b"), held("c", "requested", since=NOW))
        assert decision.reserve == ()

    def test_a_young_reservation_stays(self) -> None:
        old, new = relay("old", ms=100), relay("new", ms=10)
        young = held("old", since=NOW - POLICY.dwell + 1)
        decision = decide(old, new, young, wanted=1)
        assert decision == RelayDecision(again_at=NOW + 1)
        assert decide(old, new, young, wanted=1, now=NOW + 1).reserve == names("new")

    def test_the_carrier_knows_the_distance_best(self) -> None:
        slow = held("a", ms=400)
        decision = decide(relay("a", ms=10), relay("b", ms=50), slow, wanted=1)
        assert decision.reserve == names("b")

    def test_a_relay_nobody_offers_any_more_may_still_work(self) -> None:
        assert decide(relay("b", ms=50), held("a", ms=40), held("b")) == RelayDecision()

    def test_no_need_any_more(self) -> None:
        old, young = held("a"), held("b", since=NOW - 1)
        decision = decide(relay("a"), relay("b"), old, young, wanted=0)
        assert decision.release == names("a", "b")

    def test_fewer_wanted(self) -> None:
        decision = decide(relay("a", ms=50), relay("b", ms=60), held("a"), held("b"), wanted=1)
        assert (decision.reserve, decision.release) == ((), names("b"))

    def test_asking_once_is_enough(self) -> None:
        asked = [held("a", "requested", since=NOW), held("b", "requested", since=NOW)]
        decision = decide(relay("a"), relay("b"), relay("c"), *asked)
        assert (decision.reserve, decision.release) == ((), ())


class TestLosing:
    def test_a_lost_one_is_replaced_at_once(self) -> None:
        candidates = relay("a", ms=10), relay("b", ms=20), relay("c", ms=200)
        lost = held("a", "lost", since=NOW, failures=1)
        assert decide(*candidates, lost, held("b")).reserve == names("c")

    def test_an_empty_place_is_filled_beside_a_request(self) -> None:
        candidates = relay("a"), relay("b"), relay("c")
        decision = decide(
            *candidates,
            held("a", "requested", since=NOW),
            held("b", "lost", since=NOW, failures=1),
        )
        assert decision.reserve == names("c")

    @pytest.mark.parametrize("failures", [1, 2, 5, 9, 10**6])
    def test_the_wait_doubles_up_to_a_limit(self, failures: int) -> None:
        lost = held("a", "lost", since=NOW, failures=failures)
        wait = POLICY.retry_at(lost, ME) - NOW
        full = min(POLICY.longest_cool_down, POLICY.cool_down * 2.0 ** min(failures - 1, 60))
        assert full / 2 <= wait <= full
        other = held("b", since=LONG_AGO)
        early = decide(relay("a"), relay("b"), lost, other, now=NOW + wait * 0.99)
        assert early.reserve == ()
        assert early.again_at == pytest.approx(NOW + wait)
        assert decide(relay("a"), relay("b"), lost, other, now=NOW + wait).reserve == names("a")

    def test_nodes_do_not_come_back_together(self) -> None:
        lost = held("a", "lost", since=NOW, failures=5)
        assert POLICY.retry_at(lost, peer("x")) != POLICY.retry_at(lost, peer("y"))

    def test_the_only_relay_is_asked_again_soon(self) -> None:
        lost = held("a", "lost", since=NOW, failures=50)
        later = NOW + POLICY.longest_alone
        assert decide(relay("a"), lost, now=later).reserve == names("a")
        assert decide(relay("a"), relay("b"), lost, held("b"), now=later).reserve == ()


def test_users_bring_their_own() -> None:
    class Always:
        def decide(self, situation: RelaySituation) -> RelayDecision:
            return RelayDecision(tuple(c.peer_id for c in situation.candidates))

    assert isinstance(Always(), RelayPolicy)
    assert isinstance(POLICY, RelayPolicy)
