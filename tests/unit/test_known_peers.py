"""When known peers are dialed again, on a scripted dialer and without waiting."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from anyreach import known_peers
from anyreach.errors import Attempt, ConnectError, ConnectionLost, NodeClosed
from anyreach.events import KnownPeerState
from anyreach.known_peers import KnownPeers
from anyreach.peer import KnownPeer, PeerAddress, PeerId

if TYPE_CHECKING:
    from anyreach.connection import Connection
    from anyreach.events import Event

ME, PEER = PeerId(bytes([1]) * 32), PeerId(bytes([2]) * 32)
ENTRY = KnownPeer.parse("192.0.2.1:9000")


class FakeConnection:
    """A connection that ends when the test says so."""

    def __init__(self, peer_id: PeerId = PEER) -> None:
        self.peer_id = peer_id
        self.ended = asyncio.Event()

        self.reason = "closed"

    async def wait_closed(self) -> ConnectionLost:
        await self.ended.wait()
        return ConnectionLost("over", reason=self.reason)


class Script:
    """Answers the calls to connect one by one; each waits for its turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: asyncio.Queue[PeerAddress] = asyncio.Queue()
        self.answers: asyncio.Queue[FakeConnection | Exception] = asyncio.Queue()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.pauses: list[float] = []
        self.connected = False
        self.keeper = KnownPeers(
            ME, self._connect, lambda _: self.connected, self.events.put_nowait, lambda: 0.5
        )
        # Pauses are noted instead of slept.
        monkeypatch.setattr(self.keeper, "_pause", self._pause)

    async def _pause(self, _entry: KnownPeer, _peer: PeerId | None, seconds: float) -> None:
        self.pauses.append(seconds)

    async def _connect(self, peer: PeerAddress) -> Connection:
        self.calls.put_nowait(peer)
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return cast("Connection", answer)

    async def event(self) -> KnownPeerState:
        event = await asyncio.wait_for(self.events.get(), 5)
        assert isinstance(event, KnownPeerState)
        return event


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


def failure(*reasons: str) -> ConnectError:
    return ConnectError("no", [Attempt("192.0.2.1:9000", "direct", r, r, 1.0) for r in reasons])


async def test_pauses_grow_while_nobody_answers(script: Script) -> None:
    task = asyncio.create_task(script.keeper.keep(ENTRY))
    for _ in range(8):
        script.answers.put_nowait(failure("handshake-timeout"))
        told = await script.event()
        assert (told.state, told.address, told.peer_id) == ("failed", "192.0.2.1:9000", None)
    task.cancel()
    # Half of 1, 2, 4 ... seconds, at most half a minute: the jitter is fixed at one half.
    assert script.pauses[:7] == [0.5, 1, 2, 4, 8, 16, 30]


async def test_a_lost_connection_is_dialed_again_at_once(script: Script) -> None:
    task = asyncio.create_task(script.keeper.keep(ENTRY))
    connection = FakeConnection()
    script.answers.put_nowait(connection)
    assert (await script.event()).state == "connected"
    connection.ended.set()
    await script.calls.get()
    await asyncio.wait_for(script.calls.get(), 5)
    assert script.pauses == []
    task.cancel()


async def test_a_peer_that_keeps_dropping_us_is_dialed_less_and_less(script: Script) -> None:
    task = asyncio.create_task(script.keeper.keep(ENTRY))
    for _ in range(5):
        connection = FakeConnection()
        connection.ended.set()
        script.answers.put_nowait(connection)
        assert (await script.event()).state == "connected"
    await asyncio.sleep(0)
    task.cancel()
    assert script.pauses[:3] == [1, 2, 4]


async def test_another_node_with_our_key_gets_out_of_its_way(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    task = asyncio.create_task(script.keeper.keep(ENTRY))
    for _ in range(3):
        connection = FakeConnection()
        connection.reason = "replaced"
        connection.ended.set()
        script.answers.put_nowait(connection)
        assert (await script.event()).state == "connected"
        told = await script.event()
        assert (told.state, told.peer_id) == ("failed", PEER)
        assert "same key" in str(told.error)
    task.cancel()
    # Each time a moment for a connection of our own to turn up, then three quarters of the longest.
    assert script.pauses == [1, 3, 1, 24, 1, 45]
    assert any("same key" in record.message for record in caplog.records)


async def test_a_connection_replaced_by_one_of_ours_is_no_failure(script: Script) -> None:
    task = asyncio.create_task(script.keeper.keep(ENTRY))
    script.connected = True
    connection = FakeConnection()
    connection.reason = "replaced"
    connection.ended.set()
    script.answers.put_nowait(connection)
    script.answers.put_nowait(FakeConnection())
    for _ in range(2):
        assert (await script.event()).state == "connected"
    assert script.pauses == []
    task.cancel()


async def test_a_long_connection_forgives_earlier_failures(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = asyncio.create_task(script.keeper.keep(ENTRY))
    for _ in range(3):
        script.answers.put_nowait(failure("handshake-timeout"))
        await script.event()
    monkeypatch.setattr(known_peers, "next_failures", lambda _, lasted: 1 if lasted else 9)
    connection = FakeConnection()
    script.answers.put_nowait(connection)
    await script.event()
    await asyncio.sleep(0.001)
    connection.ended.set()
    for _ in range(5):
        await asyncio.wait_for(script.calls.get(), 5)
    assert len(script.pauses) == 3  # none after the connection
    task.cancel()


async def test_the_peer_id_is_remembered_for_later_failures(script: Script) -> None:
    task = asyncio.create_task(script.keeper.keep(ENTRY))
    connection = FakeConnection()
    script.answers.put_nowait(connection)
    await script.event()
    connection.ended.set()
    script.answers.put_nowait(failure("handshake-timeout"))
    told = await script.event()
    assert (told.state, told.peer_id) == ("failed", PEER)
    # The entry stays a place: whoever lives there later is welcome.
    assert [script.calls.get_nowait() for _ in range(2)] == [PeerAddress(None, ENTRY.addresses)] * 2
    task.cancel()


@pytest.mark.parametrize("reasons", [("self",), ("family", "self"), ("unreachable", "self")])
async def test_an_entry_that_is_the_node_itself_is_dropped(
    script: Script, reasons: tuple[str, ...]
) -> None:
    script.answers.put_nowait(failure(*reasons))
    await asyncio.wait_for(script.keeper.keep(ENTRY), 5)
    assert "itself" in str((await script.event()).error)


async def test_an_entry_that_may_be_somebody_else_is_not_dropped(script: Script) -> None:
    task = asyncio.create_task(script.keeper.keep(ENTRY))
    script.answers.put_nowait(failure("self", "handshake-timeout"))
    await script.event()
    script.answers.put_nowait(FakeConnection())
    assert (await script.event()).state == "connected"
    task.cancel()


async def test_an_entry_with_our_own_id_is_dropped(script: Script) -> None:
    script.answers.put_nowait(ConnectError("own"))
    await asyncio.wait_for(script.keeper.keep(KnownPeer(ME, ENTRY.addresses)), 5)
    assert "itself" in str((await script.event()).error)


async def test_two_entries_of_one_peer_speak_with_one_voice(script: Script) -> None:
    other = KnownPeer.parse("[2001:db8::1]:9000")
    tasks = [asyncio.create_task(script.keeper.keep(entry)) for entry in (ENTRY, other)]
    connection = FakeConnection()
    for _ in tasks:
        script.answers.put_nowait(connection)
    assert (await script.event()).address == "192.0.2.1:9000"
    for _ in range(5):
        await asyncio.sleep(0)
    assert script.events.empty()
    # When the connection ends, either may speak for the next one.
    connection.ended.set()
    again = FakeConnection()
    for _ in tasks:
        script.answers.put_nowait(again)
    assert (await script.event()).state == "connected"
    for _ in range(5):
        await asyncio.sleep(0)
    assert script.events.empty()
    for task in tasks:
        task.cancel()


async def test_a_closed_node_ends_the_keeping(script: Script) -> None:
    script.answers.put_nowait(NodeClosed("closed"))
    await asyncio.wait_for(script.keeper.keep(ENTRY), 5)
    assert script.events.empty()


async def test_a_pause_ends_when_the_peer_arrives() -> None:
    keeper = KnownPeers(ME, Script._connect, bool, lambda _: None)  # type: ignore[arg-type]
    pause = asyncio.create_task(keeper._pause(ENTRY, PEER, 3600))
    await asyncio.sleep(0)
    keeper.arrived(ME)
    await asyncio.sleep(0)
    assert not pause.done()
    keeper.arrived(PEER)
    await asyncio.wait_for(pause, 5)
    assert not keeper._pausing


OTHERS = [KnownPeer.parse(f"192.0.2.{i}:9000") for i in (2, 3)]


async def test_without_entries_nobody_is_expected(script: Script) -> None:
    assert await script.keeper.joining() is False
    script.keeper.expect([])
    assert await script.keeper.joining() is False


async def test_whoever_waits_hears_of_each_peer_and_of_the_last_failure(script: Script) -> None:
    keeper = script.keeper
    keeper.expect(OTHERS)
    keeping = [asyncio.create_task(keeper.keep(entry)) for entry in OTHERS]
    waiting = keeper.joining()
    await script.calls.get()
    await script.calls.get()
    assert not waiting.done()
    keeper.arrived(PEER)
    assert await waiting is True
    script.answers.put_nowait(FakeConnection())
    waiting = keeper.joining()
    await script.event()
    assert not waiting.done(), "the other one is still on its first attempt"
    script.answers.put_nowait(refused())
    assert await asyncio.wait_for(waiting, 5) is False
    assert await keeper.joining() is False, "later attempts are nothing to wait for"
    for task in keeping:
        task.cancel()
    await asyncio.wait(keeping)


async def test_who_gave_up_waiting_is_forgotten(script: Script) -> None:
    script.keeper.expect(OTHERS)
    waiting = script.keeper.joining()
    waiting.cancel()
    await asyncio.sleep(0)
    assert not script.keeper._expecting
    script.keeper.arrived(PEER)


async def test_a_peer_is_known_by_id_or_by_place(script: Script) -> None:
    keeper = script.keeper
    named = KnownPeer.parse(f"{ME}@192.0.2.9:9000")
    keeper.expect([named, ENTRY])
    assert keeper.is_known(ME)
    assert not keeper.is_known(PEER)
    keeping = asyncio.create_task(keeper.keep(ENTRY))
    connection = FakeConnection()
    script.answers.put_nowait(connection)
    await script.event()
    assert keeper.is_known(PEER)
    connection.ended.set()
    script.answers.put_nowait(refused())
    await script.event()
    assert keeper.is_known(PEER), "it lives there still, for all we know"
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_the_latest_failures_are_kept_until_somebody_answers(script: Script) -> None:
    keeper = script.keeper
    keeper.expect([ENTRY])
    assert keeper.failures() == ()
    keeping = asyncio.create_task(keeper.keep(ENTRY))
    for _ in range(2):
        script.answers.put_nowait(refused())
        await script.event()
        assert [attempt.reason for attempt in keeper.failures()] == ["refused"]
    script.answers.put_nowait(FakeConnection())
    await script.event()
    assert keeper.failures() == ()
    keeping.cancel()
    await asyncio.wait([keeping])


def refused() -> ConnectError:
    return ConnectError("no", (Attempt("192.0.2.1:9000", "direct", "refused", "no", 1.0),))
