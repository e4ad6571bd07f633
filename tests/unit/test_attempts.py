"""What people are told when a peer was not reached."""

from __future__ import annotations

import pytest

from anyreach._attempts import NO_ANSWER, SELF, UNKNOWN, AttemptLog
from anyreach.errors import Attempt, ConnectError, ConnectTimeout, PeerIdMismatch
from anyreach.peer import PeerAddress, PeerId, parse_peer

PEER = PeerAddress(PeerId(bytes([2]) * 32))
V4 = "192.0.2.1:9000"


class Clock:
    """Time as a test says."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def log_of(*attempts: tuple[str, str, str]) -> AttemptLog:
    """A log of (address, method, reason) that are all over."""
    log = AttemptLog(Clock())
    for address, method, reason in attempts:
        log.end(log.begin(address, method), reason, f"because of {reason}")
    return log


@pytest.mark.parametrize(
    ("attempts", "kind", "text"),
    [
        ((), ConnectError, "no address is known"),
        (((V4, "direct", NO_ANSWER),), ConnectTimeout, "does not answer on the connection"),
        (((V4, "direct", "handshake-timeout"),), ConnectTimeout, "did not answer"),
        (
            ((V4, "direct", NO_ANSWER), (V4, "direct", "handshake-timeout")),
            ConnectTimeout,
            "did not answer",
        ),
        (((V4, "direct", SELF),), ConnectError, "is this node itself"),
        (
            (("peer a", "relayed", UNKNOWN), ("peer b", "relayed", UNKNOWN)),
            ConnectError,
            "no peer that was asked tells where",
        ),
        (
            (("peer a", "relayed", UNKNOWN), (V4, "direct", "handshake-timeout")),
            ConnectTimeout,
            "did not answer",
        ),
        (
            (("peer a", "relayed", UNKNOWN), ("peer b", "relayed", NO_ANSWER)),
            ConnectError,
            "could not be reached",
        ),
        (((V4, "relayed", "handshake-timeout"),), ConnectError, "could not be reached"),
        (
            ((V4, "direct", "refused"), (V4, "direct", "handshake-timeout")),
            ConnectError,
            "could not be reached",
        ),
        (((V4, "relayed", SELF),), ConnectError, "could not be reached"),
    ],
)
def test_what_is_said(
    attempts: tuple[tuple[str, str, str], ...], kind: type[ConnectError], text: str
) -> None:
    error = log_of(*attempts).failure(PEER)
    assert type(error) is kind
    assert text in str(error)
    assert str(PEER) in str(error)
    assert [(a.address, a.method, a.reason) for a in error.attempts] == list(attempts)


def test_somebody_else_outranks_everything() -> None:
    log = log_of((V4, "direct", "handshake-timeout"))
    record = log.begin("192.0.2.2:9000", "relayed")
    record.actual = bytes([3]) * 32
    log.end(record, "peer-id-mismatch", "another")
    for error in (log.failure(PEER), log.failure(PEER, 5.0)):
        assert isinstance(error, PeerIdMismatch)
        assert error.expected == str(PEER.peer_id)
        assert error.actual == str(PeerId(bytes([3]) * 32))
        assert len(error.attempts) == 2


def test_time_is_up() -> None:
    error = log_of((V4, "direct", "refused")).failure(PEER, 2.5)
    assert isinstance(error, ConnectTimeout)
    assert "within 2.5 s" in str(error)


def test_what_was_under_way_is_told_with_what_failed_in_it_already() -> None:
    clock = Clock()
    log = AttemptLog(clock)
    silent = log.begin(V4)
    tunnel = log.begin("relay 192.0.2.2:9000", "relayed")
    failed: list[tuple[str, str]] = []
    tunnel.so_far = lambda: failed[-1] if failed else None
    clock.now += 1.5
    assert [a.reason for a in log.attempts()] == ["handshake-timeout"] * 2
    assert [a.ms for a in log.attempts()] == [1500.0] * 2
    failed.append(("refused", "h2: connection refused"))
    assert [(a.reason, a.detail) for a in log.attempts()][1] == failed[0]
    pending = ("cancelled", "another way was faster")
    assert {(a.reason, a.detail) for a in log.attempts(pending)} == {pending}
    log.end(silent, "ok", "connected")
    clock.now += 1.5
    assert [(a.reason, a.ms) for a in log.attempts(pending)] == [
        ("ok", 1500.0),
        ("cancelled", 3000.0),
    ]


def test_a_repeated_question_is_one_attempt() -> None:
    log = AttemptLog(Clock())
    log.replace(log.begin("peer a", "relayed"), UNKNOWN, "first")
    log.replace(log.begin("peer b", "relayed"), UNKNOWN, "other")
    log.replace(log.begin("peer a", "relayed"), UNKNOWN, "second")
    assert [(a.address, a.detail) for a in log.attempts()] == [
        ("peer b", "other"),
        ("peer a", "second"),
    ]


def test_what_was_nothing_is_forgotten() -> None:
    log = AttemptLog(Clock())
    record = log.begin("relay.example:9000")
    log.forget(record)
    log.forget(record)
    assert log.attempts() == ()
    log.begin(V4)
    log.clear()
    assert log.attempts() == ()


def test_known_peers_that_could_have_helped_are_named_where_nothing_else_was_tried() -> None:
    joining = (Attempt("192.0.2.50:9000", "direct", "refused", "connection refused", 3.0),)
    error = log_of().failure(PEER, joining=joining)
    assert [a.address for a in error.attempts] == ["known peer 192.0.2.50:9000"]
    assert "could not be reached" in str(error)
    error = log_of((V4, "direct", "handshake-timeout")).failure(PEER, joining=joining)
    assert [a.address for a in error.attempts] == [V4]


def test_a_place_without_a_peer_id_is_named_as_given() -> None:
    error = log_of((V4, "direct", "handshake-timeout")).failure(parse_peer(V4))
    assert V4 in str(error)
