"""The connection flow on a scripted core: orderings that real endpoints only meet by chance."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from anyreach.address_book import AddressBook
from anyreach.addresses import HostPort, IpMode, SocketAddress
from anyreach.candidates import (
    DefaultCandidatePolicy,
    InterfaceAddress,
    LocalNetwork,
    PairingResult,
)
from anyreach.dialer import Dialer
from anyreach.errors import ConnectError, ConnectTimeout, NodeClosed, PeerIdMismatch
from anyreach.metrics import Recorder
from anyreach.peer import PeerAddress, PeerId

from .fake_core import FakeConnection, FakeEndpoint, FakePath

if TYPE_CHECKING:
    from anyreach import _core
    from anyreach.candidates import Candidate
    from anyreach.errors import Attempt

ME, PEER, OTHER = (PeerId(bytes([i]) * 32) for i in (1, 2, 3))
V6, V4, V4B = "[2001:db8::1]:9000", "192.0.2.1:9000", "192.0.2.2:9000"
FOREVER = 30.0


@dataclass
class Rig:
    """A dialer on a fake endpoint, with an interface of each family."""

    endpoint: FakeEndpoint = field(default_factory=FakeEndpoint)
    recorder: Recorder = field(default_factory=Recorder)
    book: AddressBook = field(default_factory=AddressBook)
    policy: DefaultCandidatePolicy = field(default_factory=DefaultCandidatePolicy)
    interfaces: tuple[str, ...] = ("203.0.113.5", "2001:db8:5::5")
    attempt_delay: float = 0.02
    won: list[tuple[_core.Connection, float, tuple[Attempt, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dialer = Dialer(
            ME,
            self.endpoint,
            self.endpoint.wait,
            book=self.book,
            policy=self.policy,
            local=self._local,
            attempt_delay=self.attempt_delay,
            handshake_timeout=10.0,
            won=lambda core, seconds, attempts: self.won.append((core, seconds, attempts)),
            recorder=self.recorder,
        )

    def call(
        self, *hosts: str, peer: PeerId | None = PEER, timeout: float = FOREVER
    ) -> asyncio.Task[_core.Connection]:
        address = PeerAddress(peer, tuple(map(HostPort.parse, hosts)))
        return asyncio.create_task(self.dialer.connect(address, timeout))

    def outcomes(self) -> dict[tuple[str, str], int]:
        return dict(self.recorder.snapshot(connections={}, rejected={}).candidates_total)

    def _local(self) -> tuple[Candidate, ...]:
        entries = (InterfaceAddress.of("eth0", ip, 24) for ip in self.interfaces)
        bound = (SocketAddress.of("::", 9000),)
        known = tuple(entry for entry in entries if entry is not None)
        return self.policy.gather(LocalNetwork(bound, IpMode.DUAL_STACK, known))


async def test_the_first_to_answer_wins_and_the_others_are_cancelled() -> None:
    rig = Rig()
    call = rig.call(V6, V4)
    first, second = await rig.endpoint.started(2)
    assert (first.address, second.address) == ("2001:db8::1 9000", "192.0.2.1 9000")
    connection = FakeConnection()
    second.win(connection)
    assert await call is connection.core()
    assert first.cancelled
    assert [core for core, _, _ in rig.won] == [connection.core()]
    assert rig.won[0][1] >= rig.attempt_delay
    assert rig.outcomes() == {("given", "connected"): 1, ("given", "cancelled"): 1}


async def test_two_that_answer_in_the_same_turn_are_one_winner() -> None:
    rig = Rig()
    call = rig.call(V6, V4)
    first, second = await rig.endpoint.started(2)
    winner, late = FakeConnection(id=1), FakeConnection(id=2)
    first.win(winner)
    second.win(late)
    assert await call is winner.core()
    assert len(rig.won) == 1


async def test_a_failure_starts_the_next_attempt_at_once() -> None:
    rig = Rig(attempt_delay=2.0)
    call = rig.call(V6, V4)
    (first,) = await rig.endpoint.started(1)
    first.fail("refused")
    _, second = await asyncio.wait_for(rig.endpoint.started(2), 1.0)
    second.win(FakeConnection())
    await call


async def test_attempts_are_listed_in_the_order_of_their_start() -> None:
    rig = Rig()
    call = rig.call(V6, V4, V4B)
    first, second, third = await rig.endpoint.started(3)
    third.fail("refused", "third")
    second.fail("tls", "second")
    first.fail("handshake-timeout", "first")
    with pytest.raises(ConnectError) as caught:
        await call
    assert type(caught.value) is ConnectError
    tried = [(a.address, a.reason, a.detail) for a in caught.value.attempts]
    assert tried == [
        (V6, "handshake-timeout", "first"),
        (V4, "tls", "second"),
        (V4B, "refused", "third"),
    ]


async def test_silence_everywhere_is_a_timeout() -> None:
    rig = Rig()
    call = rig.call(V6, V4)
    for dial in await rig.endpoint.started(2):
        dial.fail("handshake-timeout")
    with pytest.raises(ConnectTimeout, match="did not answer"):
        await call


async def test_somebody_else_answering_outranks_silence() -> None:
    rig = Rig()
    call = rig.call(V6, V4)
    first, second = await rig.endpoint.started(2)
    second.fail("peer-id-mismatch", "another", bytes(OTHER))
    first.fail("handshake-timeout")
    with pytest.raises(PeerIdMismatch) as caught:
        await call
    assert (caught.value.expected, caught.value.actual) == (str(PEER), str(OTHER))
    assert len(caught.value.attempts) == 2


async def test_somebody_else_answering_does_not_end_the_race() -> None:
    rig = Rig()
    call = rig.call(V6, V4)
    first, second = await rig.endpoint.started(2)
    first.fail("peer-id-mismatch", "another", bytes(OTHER))
    second.win(FakeConnection())
    await call


async def test_a_connection_lost_at_once_is_a_failed_attempt() -> None:
    rig = Rig()
    call = rig.call(V6, V4)
    first, second = await rig.endpoint.started(2)
    first.win(FakeConnection(close_reason=("closed", 1, "go away")))
    second.fail("refused")
    with pytest.raises(ConnectError) as caught:
        await call
    assert [a.reason for a in caught.value.attempts] == ["closed", "refused"]
    assert "go away" in caught.value.attempts[0].detail


async def test_an_arriving_connection_ends_the_race() -> None:
    rig = Rig()
    call = rig.call(V6)
    (dial,) = await rig.endpoint.started(1)
    arrived = FakeConnection(outbound=False)
    rig.dialer.arrived(FakeConnection().core(), OTHER)
    rig.dialer.arrived(arrived.core(), PEER)
    assert await call is arrived.core()
    assert dial.cancelled


async def test_a_connection_told_before_its_attempt_is_polled_is_left_to_the_attempt() -> None:
    rig = Rig()
    call = rig.call(V6, V4)
    _, second = await rig.endpoint.started(2)
    made = FakeConnection(route=[FakePath(remote=("192.0.2.1", 9000))])
    rig.dialer.arrived(made.core(), PEER)
    second.win(made)
    assert await call is made.core()
    assert second.kept
    assert not second.cancelled
    assert rig.outcomes() == {("given", "connected"): 1, ("given", "cancelled"): 1}


async def test_a_connection_another_caller_made_ends_a_race_that_has_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    rig = Rig()
    call = rig.call("peer.example:9000")
    await asyncio.sleep(0)
    made = FakeConnection()
    rig.endpoint.known[bytes(PEER)] = made
    rig.dialer.arrived(made.core(), PEER)
    assert await call is made.core()
    # Asked for, so that the other caller's change of mind does not close it.
    assert rig.endpoint.asked_for[-1] == made.peer_id


async def test_a_connection_another_caller_made_is_taken_though_our_attempts_hang() -> None:
    rig = Rig()
    call = rig.call(V6)
    await rig.endpoint.started(1)
    made = FakeConnection()
    rig.dialer.arrived(made.core(), PEER)
    assert await asyncio.wait_for(call, 5) is made.core()
    assert rig.endpoint.asked_for[-1] == made.peer_id
    assert rig.endpoint.dials[0].cancelled


async def test_somebody_else_where_the_peer_was_before_is_no_error_of_its_own() -> None:
    rig = Rig()
    rig.book.remember(PEER, SocketAddress.of("192.0.2.2", 9000), 0.005)
    call = rig.call()
    (dial,) = await rig.endpoint.started(1)
    dial.fail("peer-id-mismatch", "another", bytes(OTHER))
    with pytest.raises(ConnectError) as caught:
        await call
    assert not isinstance(caught.value, PeerIdMismatch)
    assert [a.reason for a in caught.value.attempts] == ["peer-id-mismatch"]


async def test_the_loser_of_a_tie_is_closed_by_its_attempt() -> None:
    rig = Rig()
    call = rig.call(V6, V4)
    first, second = await rig.endpoint.started(2)
    first.win(FakeConnection(id=1))
    second.win(FakeConnection(id=2, peer_id=bytes(OTHER)))
    await call
    assert (first.kept, first.cancelled) == (True, False)
    assert (second.kept, second.cancelled) == (False, True)


async def test_a_cancelled_call_keeps_nothing_whenever_it_comes() -> None:
    for steps in range(12):
        rig = Rig()
        call = rig.call(V4)
        (dial,) = await rig.endpoint.started(1)
        dial.win(FakeConnection())
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert dial.cancelled is call.cancelled()
        assert dial.kept is not call.cancelled()
        assert not rig.dialer._flows


async def test_a_caller_that_stays_keeps_what_another_gives_up() -> None:
    rig = Rig()
    calls = [rig.call(V4) for _ in range(2)]
    (dial,) = await rig.endpoint.started(1)
    dial.win(FakeConnection())
    calls[0].cancel()
    await calls[1]
    assert dial.kept
    assert not dial.cancelled


async def test_a_result_at_the_last_moment_counts() -> None:
    rig = Rig()
    call = rig.call(V4, timeout=0.5)
    (dial,) = await rig.endpoint.started(1)
    connection = FakeConnection()
    dial.win(connection)
    time.sleep(0.6)  # noqa: ASYNC251 (when the loop goes on, the time is up as well)
    assert await call is connection.core()
    assert dial.kept


def stale(**fields: Any) -> FakeConnection:
    """A connection nothing was heard on for an hour."""
    return FakeConnection(id=7, route=[FakePath(age=3600.0, rtt=0.004)], **fields)


async def asked(connection: FakeConnection, times: int = 1) -> None:
    async with asyncio.timeout(10):
        while connection.asked < times:  # noqa: ASYNC110 (the code under test does not tell)
            await asyncio.sleep(0)


async def test_a_silent_connection_is_returned_when_the_peer_answers() -> None:
    rig = Rig(attempt_delay=2.0)
    rig.endpoint.known[bytes(PEER)] = connection = stale()
    calls = [rig.call(V4) for _ in range(3)]
    await asked(connection)
    assert not any(call.done() for call in calls)
    connection.answers(True)
    assert {(await call).id for call in calls} == {7}
    assert connection.asked == 1
    # A moment later there is no need to ask again.
    assert (await rig.call(V4)).id == 7
    assert connection.asked == 1
    assert rig.endpoint.dials == []
    assert rig.outcomes() == {}


async def test_what_arrives_saves_the_question() -> None:
    rig = Rig()
    rig.endpoint.known[bytes(PEER)] = connection = stale()
    call = rig.call(V4)
    await asked(connection)
    connection.answers(True)
    await call
    connection.received_packets += 1
    await rig.call(V4)
    assert connection.asked == 1


async def test_a_new_address_is_a_reason_to_ask() -> None:
    rig = Rig(attempt_delay=2.0)
    rig.endpoint.known[bytes(PEER)] = connection = FakeConnection(id=7)
    for where in ((V4,), (), ("relay.example:9000",), (V4B, V4)):
        assert (await rig.call(*where)).id == 7
    assert connection.asked == 0
    call = rig.call(V4B)
    await asked(connection)
    connection.answers(True)
    assert (await call).id == 7


async def test_a_connection_without_an_answer_is_dialed_again() -> None:
    rig = Rig(attempt_delay=2.0)
    rig.endpoint.known[bytes(PEER)] = connection = stale()
    call = rig.call(V4)
    await asked(connection)
    connection.answers(False)
    (dial,) = await rig.endpoint.started(1)
    dial.win(FakeConnection(id=8))
    assert (await call).id == 8
    (_, _, attempts) = rig.won[0]
    assert [(a.reason, a.address) for a in attempts] == [
        ("no-answer", "192.0.2.1:9000"),
        ("ok", V4),
    ]


async def test_a_slow_answer_is_not_waited_for_alone() -> None:
    rig = Rig()
    rig.endpoint.known[bytes(PEER)] = connection = stale()
    call = rig.call(V4)
    (dial,) = await asyncio.wait_for(rig.endpoint.started(1), 1.0)
    connection.answers(True)
    assert (await call).id == 7
    assert dial.cancelled


async def test_a_connection_without_an_answer_or_an_address_is_an_error() -> None:
    rig = Rig()
    rig.endpoint.known[bytes(PEER)] = connection = stale()
    call = rig.call()
    await asked(connection)
    connection.answers(False)
    with pytest.raises(ConnectTimeout, match="does not answer"):
        await call


async def test_a_connection_that_ends_while_it_is_asked_is_dialed_again() -> None:
    rig = Rig(attempt_delay=2.0)
    rig.endpoint.known[bytes(PEER)] = connection = stale()
    call = rig.call(V4)
    await asked(connection)
    connection.close_reason = ("timeout", 0, "")
    connection.answers(True)
    (dial,) = await rig.endpoint.started(1)
    dial.fail("refused")
    with pytest.raises(ConnectError) as caught:
        await call
    assert [a.reason for a in caught.value.attempts] == ["no-answer", "refused"]


async def test_a_dead_arrival_does_not_end_the_race() -> None:
    rig = Rig()
    call = rig.call(V6)
    (dial,) = await rig.endpoint.started(1)
    rig.dialer.arrived(FakeConnection(close_reason=("reset", 0, "")).core(), PEER)
    dial.win(FakeConnection(id=2))
    assert (await call).id == 2


async def test_a_live_connection_is_returned_without_dialing() -> None:
    rig = Rig()
    rig.endpoint.known[bytes(PEER)] = FakeConnection(id=7)
    assert (await rig.call(V4)).id == 7
    assert rig.endpoint.dials == []


async def test_each_caller_has_its_own_time() -> None:
    rig = Rig()
    patient = rig.call(V4)
    (dial,) = await rig.endpoint.started(1)
    hasty = rig.call(V4, timeout=0.01)
    with pytest.raises(ConnectTimeout, match=r"0\.01 s") as caught:
        await hasty
    assert [a.reason for a in caught.value.attempts] == ["handshake-timeout"]
    assert not dial.cancelled
    dial.win(FakeConnection())
    await patient


async def test_the_last_caller_to_leave_ends_the_race() -> None:
    rig = Rig()
    calls = [rig.call(V4) for _ in range(3)]
    (dial,) = await rig.endpoint.started(1)
    for call in calls:
        assert not dial.cancelled
        call.cancel()
        await asyncio.wait([call])
    assert dial.cancelled
    again = rig.call(V4)  # and a new one starts afresh
    _, fresh = await rig.endpoint.started(2)
    fresh.win(FakeConnection())
    await again


async def test_a_later_caller_adds_its_addresses() -> None:
    rig = Rig()
    first = rig.call(V6)
    await rig.endpoint.started(1)
    second = rig.call(V6, V4)
    _, added = await rig.endpoint.started(2)
    added.win(FakeConnection())
    assert await first is await second
    assert len(rig.endpoint.dials) == 2


async def test_an_unexpected_error_reaches_every_caller() -> None:
    rig = Rig()
    calls = [rig.call(V4) for _ in range(2)]
    (dial,) = await rig.endpoint.started(1)
    dial.outcome.set_exception(ZeroDivisionError("a bug"))
    for call in calls:
        with pytest.raises(ZeroDivisionError):
            await call


async def test_closing_fails_all_callers_and_later_ones() -> None:
    rig = Rig()
    calls = [rig.call(V4), rig.call(V6, peer=OTHER), rig.call(V4, peer=None)]
    dials = await rig.endpoint.started(3)
    await rig.dialer.close()
    assert all(dial.cancelled for dial in dials)
    for call in (*calls, rig.call(V4)):
        with pytest.raises(NodeClosed):
            await call
    await rig.dialer.close()


async def test_addresses_that_join_from_a_slow_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def getaddrinfo(*_: object, family: int, **__: object) -> list[object]:
        if family == 2:  # AF_INET answers late
            await gate.wait()
            return [(family, 2, 17, "", ("192.0.2.9", 0))]
        return [(family, 2, 17, "", ("2001:db8::9", 0, 0, 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    rig = Rig()
    call = rig.call("peer.example:9000")
    (first,) = await rig.endpoint.started(1)
    assert first.address == "2001:db8::9 9000"
    first.fail("refused")
    await asyncio.sleep(0)
    assert not call.done()  # the resolver may still find something
    gate.set()
    _, second = await rig.endpoint.started(2)
    assert second.address == "192.0.2.9 9000"
    second.win(FakeConnection())
    await call
    assert rig.outcomes() == {("dns", "failed"): 1, ("dns", "connected"): 1}


async def test_time_running_out_during_resolution_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    with pytest.raises(ConnectTimeout) as caught:
        await Rig().call("peer.example:9000", timeout=0.01)
    assert [(a.address, a.reason) for a in caught.value.attempts] == [
        ("peer.example:9000", "name-resolution")
    ]


async def test_the_fastest_known_address_is_tried_first() -> None:
    rig = Rig()
    rig.book.remember(PEER, SocketAddress.of("192.0.2.2", 9000), 0.005)
    call = rig.call(V6, V4, V4B)
    (first, *_) = await rig.endpoint.started(1)
    assert first.address == "192.0.2.2 9000"
    first.win(FakeConnection())
    await call


async def test_the_limit_of_pairs_does_not_lose_an_address() -> None:
    # Thirty interfaces pair thirty times with each address, beyond what pairing keeps.
    rig = Rig(interfaces=tuple(f"198.51.100.{i}" for i in range(30)))
    hosts = [f"192.0.2.{i}:9000" for i in range(1, 9)]
    call = rig.call(*hosts)
    for dial in await rig.endpoint.started(8):
        dial.fail("refused")
    with pytest.raises(ConnectError) as caught:
        await call
    assert [a.address for a in caught.value.attempts] == hosts


async def test_a_host_that_names_no_address_of_its_own_dials_all_the_same() -> None:
    rig = Rig(interfaces=())
    call = rig.call(V4)
    (dial,) = await rig.endpoint.started(1)
    dial.fail("unreachable", "no route")
    with pytest.raises(ConnectError, match="no route"):
        await call


async def test_a_policy_may_veto_an_address() -> None:
    class Nowhere(DefaultCandidatePolicy):
        def pair(self, *_: object, **__: object) -> PairingResult:
            return PairingResult((), ())

    with pytest.raises(ConnectError) as caught:
        await Rig(policy=Nowhere()).call(V4)
    assert [a.reason for a in caught.value.attempts] == ["unreachable"]


async def test_an_unknown_zone_is_one_failed_attempt() -> None:
    with pytest.raises(ConnectError) as caught:
        await Rig(interfaces=()).call("[fe80::1%none0]:9000")
    (attempt,) = caught.value.attempts
    assert attempt.reason == "unreachable"
    assert "none0" in attempt.detail


async def test_a_zone_is_given_to_the_core_as_a_number() -> None:
    rig = Rig(interfaces=())
    call = rig.call("[fe80::1%lo]:9000")
    (dial,) = await rig.endpoint.started(1)
    assert dial.address == f"fe80::1%{socket.if_nametoindex('lo')} 9000"
    dial.win(FakeConnection())
    await call


async def test_nothing_is_left_of_a_race() -> None:
    rig = Rig()
    before = asyncio.all_tasks()
    call = rig.call(V6, V4)
    first, _ = await rig.endpoint.started(2)
    first.win(FakeConnection())
    await call
    assert asyncio.all_tasks() == before
    assert not rig.dialer._flows
