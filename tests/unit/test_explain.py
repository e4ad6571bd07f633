"""Why a connection is relayed, from an account of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from anyreach.connection import Path
from anyreach.explain import Account, PunchAttempt, explain, nat_text
from anyreach.nat import NatReport
from anyreach.punching import plan

RANDOM = NatReport("address-and-port-dependent", "address-and-port-dependent", ports="random")
COUNTING = NatReport(
    "address-and-port-dependent", "address-and-port-dependent", ports="sequential", step=2
)
STRICT = NatReport("endpoint-independent", "address-and-port-dependent", ports="preserving")

OWN, PEER = "192.0.2.9:40000", "198.51.100.7:9000"


def path(**fields: Any) -> Path:
    defaults: dict[str, Any] = {
        "id": 0,
        "method": "relayed",
        "remote": "203.0.113.1:5000",
        "local": None,
        "current": True,
        "relay": "r" * 52,
        "observed": None,
    }
    numbers = dict.fromkeys(
        (
            "rtt",
            "send_rate",
            "receive_rate",
            "since",
            "mtu",
            "congestion_window",
            "sent_bytes",
            "received_bytes",
            "lost_packets",
        ),
        0,
    )
    return Path(**(numbers | defaults | fields))


def attempt(**fields: Any) -> PunchAttempt:
    defaults: dict[str, Any] = {
        "technique": "simple",
        "round": 1,
        "started": 1000.0,
        "seconds": 4.0,
        "local": (OWN,),
        "remote": (PEER,),
        "outcome": "failed",
        "reason": "nothing came back",
    }
    return PunchAttempt(**(defaults | fields))


def account(**fields: Any) -> Account:
    defaults: dict[str, Any] = {
        "peer_id": "p" * 52,
        "outbound": True,
        "paths": (path(),),
        "own": STRICT,
        "peer": STRICT,
        "own_candidates": ((OWN, "observed"),),
        "peer_candidates": (PEER,),
    }
    fields = defaults | fields
    fields.setdefault("plan", plan(fields["own"], fields["peer"], client=True))
    return Account(**fields)


def test_a_direct_path_needs_no_help() -> None:
    direct = path(method="punched", remote=PEER, relay=None, observed=OWN)
    told = explain(account(paths=(direct, path(current=False)), own=RANDOM, peer=RANDOM))
    assert told.is_direct
    assert told.method == "punched"
    assert told.helps == ()
    assert [(note.side, note.outcome) for note in told.candidates] == [
        ("own", "works"),
        ("peer", "works"),
    ]
    assert str(told).startswith(f"pppppppppp… is punched, at {PEER}\n")


def test_two_random_nats_are_told_what_would_help() -> None:
    told = explain(account(own=RANDOM, peer=RANDOM))
    assert told.plan == "hopeless"
    (text,) = told.helps
    assert text == (
        "both ends are behind NATs with random ports: enable port mapping on one router, "
        "or IPv6 on both ends"
    )
    assert "through relay rrrrrrrrrr…" in str(told)


@pytest.mark.parametrize(
    ("own", "peer", "words"),
    [
        (RANDOM, STRICT, "the NAT of this side draws random ports"),
        (STRICT, RANDOM, "the NAT of the peer draws random ports"),
        (RANDOM, COUNTING, "that change ports, one at random"),
        (COUNTING, STRICT, "ports have to be predicted"),
        (STRICT, STRICT, "a firewall may be"),
    ],
)
def test_each_pair_has_its_own_advice(own: NatReport, peer: NatReport, words: str) -> None:
    (text,) = explain(account(own=own, peer=peer, attempts=(attempt(),))).helps
    assert words in text


def test_what_is_turned_off_comes_first() -> None:
    assert "turned off" in explain(account(direct=False)).helps[0]
    first, *_ = explain(account(own=RANDOM, birthday=False)).helps
    assert "birthday attempts are turned off" in first
    assert explain(account(udp_blocked=True, own=RANDOM)).helps == (
        "UDP does not get out of the network of this side: have it let out",
    )
    assert "NAT traversal" in explain(account(can_punch=False)).helps[0]


def test_families_that_do_not_meet() -> None:
    told = explain(account(peer_candidates=("[2001:db8::1]:9000",)))
    assert told.helps == ("this side has IPv4 only and the peer IPv6 only: give one of them both",)


def test_too_little_is_known() -> None:
    (text,) = explain(account(own_candidates=(), peer_candidates=())).helps
    assert "more known peers" in text


def test_refused_addresses_are_told() -> None:
    told = explain(account(refused=(("private", 1), ("port", 2))))
    assert told.helps == (
        "1 address of the peer was not tried: private",
        "2 addresses of the peer were not tried: port",
    )


def test_each_candidate_has_its_fate() -> None:
    others = ("192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3", "192.0.2.4:4")
    told = explain(
        account(
            peer_candidates=(PEER, *others),
            no_pair=((others[0], "no address of its family"),),
            attempts=(
                attempt(remote=(PEER, others[2])),
                attempt(round=2, remote=(PEER,), reason="still nothing"),
                attempt(remote=(others[1],), outcome=None, seconds=None),
                attempt(remote=(others[2],), outcome="direct"),
            ),
        )
    )
    notes = {note.address: (note.outcome, note.detail) for note in told.candidates}
    assert notes[PEER] == ("no-answer", "tried 2 times, the last time: still nothing")
    assert notes[others[0]] == ("no-pair", "no address of its family")
    assert notes[others[1]][0] == "pending"
    assert notes[others[2]][0] == "worked"
    assert notes[others[3]] == ("untried", "not tried so far")


def test_a_birthday_attempt_ends_at_another_port() -> None:
    direct = path(method="punched", remote="198.51.100.7:50123", relay=None)
    told = explain(
        account(paths=(direct,), attempts=(attempt(technique="pool", outcome="direct"),))
    )
    (note, works) = [note for note in told.candidates if note.side == "peer"]
    assert (note.outcome, note.detail) == ("worked", "it led to a path at another port")
    assert (works.address, works.outcome) == ("198.51.100.7:50123", "works")


def test_an_own_address_without_its_port_is_recognised() -> None:
    direct = path(method="direct", remote=PEER, relay=None, local="192.0.2.9")
    told = explain(account(paths=(direct,)))
    assert told.candidates[0].outcome == "works"


def test_the_text_has_everything_and_ends_somewhere() -> None:
    many = tuple(
        attempt(round=i, remote=tuple(f"192.0.2.{n}:1" for n in range(5))) for i in range(20)
    )
    text = str(explain(account(own=RANDOM, attempts=many)))
    assert "here: address-and-port-dependent mapping" in text
    assert "peer: endpoint-independent mapping" in text
    assert "attempts: (the latest of 20)" in text
    assert (
        "simple 19 to 192.0.2.0:1, 192.0.2.1:1, 192.0.2.2:1 and 2 more: failed after 4000 ms"
        in text
    )
    assert "simple 3 " not in text
    assert "what would help:" in text


def test_a_connection_without_paths_says_so() -> None:
    told = explain(account(paths=(), peer=None))
    assert not told.is_direct
    assert told.method is None
    assert "has no path now" in str(told)
    assert "peer: nothing is known of a NAT" in str(told)


def test_what_was_never_relayed_has_no_plan() -> None:
    told = explain(Account("p" * 52, outbound=True, paths=(path(method="direct", relay=None),)))
    assert (told.plan, told.why, told.certain) == (None, "", False)
    assert "plan" not in str(told)


@pytest.mark.parametrize(
    ("nat", "text"),
    [
        (None, "nothing is known of a NAT"),
        (NatReport("none"), "no NAT"),
        (NatReport("none", "endpoint-independent"), "no NAT, and strangers get in"),
        (
            NatReport("none", "address-and-port-dependent"),
            "no NAT, but a firewall with address-and-port-dependent filtering",
        ),
        (
            COUNTING,
            "address-and-port-dependent filtering, sequential ports (step +2)",
        ),
        (replace(COUNTING, step=-1), "sequential ports (step -1)"),
    ],
)
def test_nats_in_words(nat: NatReport | None, text: str) -> None:
    assert nat_text(nat).endswith(text)
