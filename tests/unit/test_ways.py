"""Finding peers through peers and relays, on a scripted core and a clock that jumps."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from anyreach._proving import Contacts
from anyreach._tunnels import Tunnels
from anyreach._way import MAX_RELAYED_WAYS
from anyreach._ways import ASK_AGAIN, ASK_SECONDS, LAST_RESORT, MAX_ASKED, MAX_RELAYS, Ways
from anyreach.address_book import AddressBook
from anyreach.addresses import HostPort, IpMode, SocketAddress
from anyreach.candidates import DefaultCandidatePolicy, InterfaceAddress, LocalNetwork
from anyreach.dialer import Dialer
from anyreach.errors import ConnectError, ConnectionLost, PeerIdMismatch
from anyreach.metrics import Recorder
from anyreach.peer import PeerAddress, PeerId
from anyreach.proxies import ProxySettings

from .fake_core import FakeConnection, FakeDial, FakeEndpoint, FakePath, settle, until
from .virtual_time import in_virtual_time

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach import _core
    from anyreach._tunnels import Tunnel
    from anyreach.addresses import IpAddress
    from anyreach.candidates import Candidate

ME, PEER, RELAY, RELAY2 = (PeerId(bytes([i]) * 32) for i in (1, 2, 3, 4))
DIRECT, DIRECT6 = ("192.0.2.9", 9000), ("2001:db8::9", 9000)
BOUND, BOUND6 = ("198.51.100.1", 5000), ("2001:db8:1::1", 5000)
DELAY = 0.25


@dataclass
class Around:
    """What the node knows about itself."""

    external: frozenset[IpAddress] = frozenset()
    interfaces: tuple[InterfaceAddress, ...] = ()
    usable: frozenset[int] = frozenset((4, 6))


class Joining:
    """Known peers on their first attempt."""

    def __init__(self) -> None:
        self.expected = False
        self._waiting: list[asyncio.Future[bool]] = []

    def __call__(self) -> asyncio.Future[bool]:
        future = asyncio.get_running_loop().create_future()
        if self.expected:
            self._waiting.append(future)
        else:
            future.set_result(False)
        return future

    def tell(self, more: bool) -> None:
        self.expected = more
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(more)


@dataclass
class Rig:
    """A dialer that knows ways, on a fake endpoint, with an interface of each family."""

    direct: bool = True
    relayed: bool = True
    mode: IpMode = IpMode.DUAL_STACK
    proxy: str | None = None
    endpoint: FakeEndpoint = field(default_factory=FakeEndpoint)
    around: Around = field(default_factory=Around)
    joining: Joining = field(default_factory=Joining)
    policy: DefaultCandidatePolicy = field(default_factory=DefaultCandidatePolicy)
    used: set[Tunnel] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tunnels = Tunnels(
            self.endpoint,
            self.endpoint.wait,
            mode=self.mode,
            proxies=ProxySettings.of(self.proxy),
            ca_file=None,
            allow_tls_inspection=False,
            network=frozenset,
            used=lambda tunnel: tunnel in self.used,
            changed=lambda _: None,
            contacts=Contacts(),
            recorder=Recorder(),
        )
        self.dialer = Dialer(
            ME,
            self.endpoint,
            self.endpoint.wait,
            book=AddressBook(),
            policy=self.policy,
            local=self._local,
            direct=self.direct,
            attempt_delay=DELAY,
            handshake_timeout=10.0,
            won=lambda *_: None,
            recorder=Recorder(),
            ways=Ways(
                ME,
                self.endpoint,
                self.endpoint.wait,
                tunnels=self.tunnels,
                mode=self.mode,
                around=self.around,
                joining=self.joining,
                direct=self.direct,
                relayed=self.relayed,
                delay=DELAY,
            ),
        )

    def _local(self) -> tuple[Candidate, ...]:
        entries = (InterfaceAddress.of("eth0", ip, 24) for ip in ("203.0.113.5", "2001:db8:5::5"))
        known = tuple(entry for entry in entries if entry is not None)
        return self.policy.gather(LocalNetwork((SocketAddress.of("::", 9000),), self.mode, known))

    def call(
        self, *hosts: str, timeout: float = 60.0, search: bool = True
    ) -> asyncio.Task[_core.Connection]:
        address = PeerAddress(PEER, tuple(map(HostPort.parse, hosts)))
        return asyncio.create_task(self.dialer.connect(address, timeout, search=search))

    def peer(self, number: int, **fields: Any) -> FakeConnection:
        """A connected peer, each number another one."""
        route = [FakePath(remote=(f"192.0.2.{100 + number}", 9000))]
        defaults: dict[str, Any] = {
            "route": route,
            "capabilities": ("relay",),
            "peer_id": bytes([100 + number]) * 32,
        }
        connection = FakeConnection(id=100 + number, **(defaults | fields))
        return self.endpoint.meet(connection)

    def dialed(self) -> list[str]:
        """Where was dialed, how, in order."""
        return [described(dial) for dial in self.endpoint.dials]

    async def end(self) -> None:
        await self.dialer.close()
        await self.tunnels.end()


def described(dial: FakeDial) -> str:
    how = " bound" if dial.relayed else ""
    return dial.address + how + (" by tunnel" if dial.via is not None else "")


def bound_at(
    *addresses: tuple[str, int], relay: PeerId = RELAY
) -> list[tuple[bytes, list[tuple[str, int]]]]:
    return [(bytes(relay), list(addresses))]


async def failed(call: asyncio.Task[Any]) -> list[tuple[str, str, str]]:
    """The attempts of a call that must fail."""
    with pytest.raises(ConnectError) as caught:
        await call
    return [(a.address, a.reason, a.detail) for a in caught.value.attempts]


def now() -> float:
    return asyncio.get_running_loop().time()


# Asking


@in_virtual_time
async def test_every_connected_peer_is_asked() -> None:
    rig = Rig()
    peers = [rig.peer(i) for i in range(3)]
    call = rig.call()
    await until(lambda: all(peer.questions for peer in peers))
    assert {peer.questions[0].wanted for peer in peers} == {bytes(PEER)}
    peers[1].questions[0].answer(seen=DIRECT)
    (dial,) = await rig.endpoint.started(1)
    assert described(dial) == "192.0.2.9 9000"
    dial.win(FakeConnection())
    await call
    await rig.end()


@in_virtual_time
async def test_nobody_who_knows_is_an_error_that_says_who_was_asked() -> None:
    rig = Rig()
    for number, status in enumerate(("unknown", "not-findable", "limit", "busy")):
        rig.peer(number).says(status)
    closing = rig.peer(4)
    call = rig.call()
    await until(lambda: closing.questions)
    lost = ConnectionLost("gone", reason="timeout", code=0)
    closing.questions[0].outcome.set_exception(lost)
    begun = now()
    attempts = await failed(call)
    who = [f"peer {PeerId(bytes([100 + i]) * 32).short}…" for i in range(5)]
    assert sorted(attempts) == sorted(
        [
            (who[0], "unknown-peer", "it does not know the peer"),
            (who[1], "unknown-peer", "the peer does not want to be found through it"),
            (who[2], "unknown-peer", "it was asked too much lately"),
            (who[3], "unknown-peer", "it says busy"),
            (who[4], "no-answer", "it was asked for the peer and did not answer"),
        ]
    )
    assert now() - begun < ASK_SECONDS
    await rig.end()


@in_virtual_time
async def test_a_silent_peer_is_not_waited_for_forever() -> None:
    rig = Rig()
    rig.peer(0)
    begun = now()
    ((_, reason, _),) = await failed(rig.call())
    assert reason == "no-answer"
    assert now() - begun == pytest.approx(ASK_SECONDS, abs=0.01)
    await rig.end()


@in_virtual_time
async def test_without_peers_there_is_nobody_to_ask() -> None:
    rig = Rig()
    begun = now()
    with pytest.raises(ConnectError, match="no address is known"):
        await rig.call()
    assert now() == begun
    await rig.end()


@in_virtual_time
async def test_peers_that_come_while_some_are_expected_are_asked_as_well() -> None:
    rig = Rig()
    rig.joining.expected = True
    first = rig.peer(0).says("unknown")
    call = rig.call()
    await asyncio.sleep(5)
    assert not call.done()
    second = rig.peer(1)
    rig.joining.tell(True)
    await until(lambda: second.questions)
    assert len(first.questions) <= 2, "nobody is asked anew because somebody else came"
    second.questions[0].answer(seen=DIRECT)
    (dial,) = await rig.endpoint.started(1)
    dial.win(FakeConnection())
    await call
    await rig.end()


@in_virtual_time
async def test_the_search_ends_when_nobody_is_expected_any_more() -> None:
    rig = Rig()
    rig.joining.expected = True
    call = rig.call()
    await asyncio.sleep(5)
    rig.joining.tell(False)
    begun = now()
    with pytest.raises(ConnectError, match="no peer knows it"):
        await call
    assert now() == begun
    await rig.end()


@in_virtual_time
async def test_a_search_asks_so_many_and_no_more() -> None:
    for count in (MAX_ASKED, MAX_ASKED + 1):
        rig = Rig()
        peers = [rig.peer(i).says("unknown") for i in range(count)]
        await failed(rig.call())
        assert sum(bool(peer.questions) for peer in peers) == MAX_ASKED
        await rig.end()


@in_virtual_time
async def test_neither_the_wanted_peer_nor_a_dead_connection_is_asked() -> None:
    rig = Rig()
    wanted = rig.endpoint.meet(FakeConnection(id=7, peer_id=bytes(PEER)))
    wanted.route[0].age = 3600.0
    dead = rig.peer(0, close_reason=("timeout", 0, ""))
    call = rig.call()
    await until(lambda: wanted.asked)
    await asyncio.sleep(1)
    wanted.answers(False)
    await failed(call)
    assert wanted.questions == dead.questions == []
    await rig.end()


@in_virtual_time
async def test_a_peer_that_has_just_joined_is_asked_for_again() -> None:
    rig = Rig()
    helper = rig.peer(0).says("unknown")
    call = rig.call()
    await until(lambda: helper.questions)
    await settle()
    helper.says(seen=DIRECT)
    begun = now()
    (dial,) = await rig.endpoint.started(1)
    assert now() - begun == pytest.approx(ASK_AGAIN[0], abs=0.01)
    # It gets an address at a relay a moment later.
    helper.says(seen=DIRECT, bound=bound_at(BOUND))
    await rig.endpoint.started(2)
    assert rig.dialed() == ["192.0.2.9 9000", "198.51.100.1 5000 bound"]
    dial.win(FakeConnection())
    await call
    await asyncio.sleep(10)
    assert len(helper.questions) <= 1 + len(ASK_AGAIN)
    await rig.end()


# Ways through relays


@in_virtual_time
async def test_relayed_and_direct_ways_are_tried_together() -> None:
    rig = Rig()
    rig.peer(0).says(direct=[DIRECT], bound=bound_at(BOUND, BOUND6))
    begun = now()
    call = rig.call()
    await rig.endpoint.started(3)
    assert now() - begun < 0.01
    assert sorted(rig.dialed()) == [
        "192.0.2.9 9000",
        "198.51.100.1 5000 bound",
        "2001:db8:1::1 5000 bound",
    ]
    assert all(dial.peer_id == bytes(PEER) for dial in rig.endpoint.dials)
    (relayed,) = [dial for dial in rig.endpoint.dials if dial.address == "198.51.100.1 5000"]
    relayed.win(FakeConnection(route=[FakePath(remote=BOUND, method="relayed")]))
    await call
    assert [dial.cancelled for dial in rig.endpoint.dials if dial is not relayed] == [True, True]
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_a_failed_relayed_way_is_an_attempt() -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(bound=bound_at(BOUND))
    call = rig.call()
    (dial,) = await rig.endpoint.started(1)
    dial.fail("handshake-timeout", "nobody there")
    with pytest.raises(ConnectError) as caught:
        await call
    (attempt,) = caught.value.attempts
    assert attempt.method == "relayed"
    assert attempt.address == f"198.51.100.1:5000 at relay {str(RELAY)[:8]}"
    assert attempt.detail == "nobody there"
    await rig.end()


@in_virtual_time
async def test_addresses_at_ourselves_are_left_out() -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(
        bound=[*bound_at(BOUND, relay=ME), *bound_at(BOUND6, relay=RELAY)]
    )
    call = rig.call()
    await rig.endpoint.started(1)
    await asyncio.sleep(1)
    assert rig.dialed() == ["2001:db8:1::1 5000 bound"]
    rig.endpoint.dials[0].win(FakeConnection())
    await call
    await rig.end()


@pytest.mark.parametrize("port", [53, 123, 0])
@pytest.mark.parametrize("host", ["224.0.0.1", "192.0.2.9", "0.0.0.0"])
@in_virtual_time
async def test_what_is_no_address_of_a_relay_is_not_sent_to(host: str, port: int) -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(bound=bound_at((host, port)))
    assert await failed(rig.call()) == []
    assert rig.endpoint.dials == []
    await rig.end()


@in_virtual_time
async def test_so_many_relays_of_a_peer_are_tried() -> None:
    for count in (MAX_RELAYS, MAX_RELAYS + 1):
        rig = Rig()
        relays = [(bytes([i]) * 32, [(f"198.51.100.{i}", 5000)]) for i in range(10, 10 + count)]
        rig.peer(0, capabilities=()).says(bound=relays)
        call = rig.call()
        await rig.endpoint.started(MAX_RELAYS)
        await settle()
        assert len(rig.endpoint.dials) == MAX_RELAYS
        call.cancel()
        await asyncio.wait([call])
        await rig.end()


@in_virtual_time
async def test_so_many_relayed_ways_are_tried() -> None:
    for count in (MAX_RELAYED_WAYS, MAX_RELAYED_WAYS + 1):
        rig = Rig()
        addresses = [(f"198.51.100.{i}", 5000) for i in range(count)]
        rig.peer(0, capabilities=()).says(bound=bound_at(*addresses))
        call = rig.call()
        await rig.endpoint.started(MAX_RELAYED_WAYS)
        await settle()
        assert len(rig.endpoint.dials) == MAX_RELAYED_WAYS
        call.cancel()
        await asyncio.wait([call])
        await rig.end()


@in_virtual_time
async def test_one_way_named_by_many_is_tried_once() -> None:
    rig = Rig()
    for number in range(3):
        rig.peer(number).says(seen=DIRECT, bound=bound_at(BOUND))
    call = rig.call()
    await rig.endpoint.started(2)
    await asyncio.sleep(LAST_RESORT / 2)
    assert len(rig.endpoint.dials) == 2
    rig.endpoint.dials[0].win(FakeConnection())
    await call
    await rig.end()


@in_virtual_time
async def test_the_relayed_way_that_made_the_connection_says_so_itself() -> None:
    rig = Rig()
    rig.peer(0).says(bound=bound_at(BOUND))
    call = rig.call()
    (dial,) = await rig.endpoint.started(1)
    made = FakeConnection(peer_id=bytes(PEER), route=[FakePath(remote=BOUND, method="relayed")])
    rig.dialer.arrived(made.core(), PEER)
    await settle()
    dial.win(made)
    assert await call is made.core()
    assert dial.kept
    assert not dial.cancelled
    await rig.end()


@in_virtual_time
async def test_somebody_else_at_a_found_address_is_no_error_of_its_own() -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(seen=DIRECT, bound=bound_at(BOUND))
    call = rig.call()
    for dial in await rig.endpoint.started(2):
        dial.fail("peer-id-mismatch", "another", bytes(RELAY))
    with pytest.raises(ConnectError) as caught:
        await call
    assert not isinstance(caught.value, PeerIdMismatch)
    assert [a.reason for a in caught.value.attempts] == ["peer-id-mismatch"] * 2
    await rig.end()


# Ways through tunnels of our own


@in_virtual_time
async def test_tunnels_are_a_last_resort_where_udp_works() -> None:
    rig = Rig()
    rig.peer(0).says(bound=bound_at(BOUND))
    begun = now()
    call = rig.call()
    (tunnel,) = await rig.endpoint.dug(1)
    assert now() - begun == pytest.approx(LAST_RESORT, abs=0.01)
    assert tunnel.options["udp"] == [("192.0.2.100", 9000)]
    tunnel.up(bytes([100]) * 32, "203.0.113.1 6000")
    _, second = await rig.endpoint.started(2)
    assert rig.dialed()[1] == "198.51.100.1 5000 bound by tunnel"
    second.win(FakeConnection())
    await call
    assert next(iter(rig.tunnels)).holders == set()
    await rig.end()


@in_virtual_time
async def test_whoever_answers_in_time_saves_the_tunnel() -> None:
    rig = Rig()
    rig.peer(0).says(seen=DIRECT)
    call = rig.call()
    (dial,) = await rig.endpoint.started(1)
    await asyncio.sleep(LAST_RESORT - 0.1)
    dial.win(FakeConnection())
    await call
    await asyncio.sleep(10)
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_a_tunnel_is_tried_at_once_where_no_family_fits() -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.peer(0).says(seen=DIRECT6, bound=bound_at(BOUND6))
    begun = now()
    call = rig.call()
    (tunnel,) = await rig.endpoint.dug(1)
    assert now() - begun < 0.01
    tunnel.up(bytes([100]) * 32, "203.0.113.1 6000", "2001:db8:2::1 6000")
    await until(lambda: sum(dial.via is not None for dial in rig.endpoint.dials) == 2)
    tunnelled = [described(dial) for dial in rig.endpoint.dials if dial.via is not None]
    assert tunnelled == [
        "2001:db8:1::1 5000 bound by tunnel",
        "2001:db8::9 9000 by tunnel",
    ]
    call.cancel()
    await asyncio.wait([call])
    await rig.end()


@in_virtual_time
async def test_a_tunnel_leads_only_where_its_relay_has_addresses() -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.peer(0).says(bound=bound_at(BOUND6))
    call = rig.call()
    (tunnel,) = await rig.endpoint.dug(1)
    tunnel.up(bytes([100]) * 32, "203.0.113.1 6000")
    assert await failed(call) == []
    assert rig.endpoint.dials == []
    await rig.end()


def blocked(rig: Rig) -> FakeConnection:
    """A peer reached through a tunnel over TCP: UDP is blocked here."""
    path = FakePath(
        remote=("192.0.2.100", 9000), method="relayed", via=bytes(RELAY2), tunnelled=True
    )
    return rig.peer(0, peer_id=bytes(RELAY2), route=[path])


async def tunnel_to(rig: Rig, relay: PeerId, *public: str, carrier: str = "h2") -> Tunnel:
    """A tunnel that is up already, as a reservation."""
    tunnel = rig.tunnels.hold(target_of(relay), "somebody")
    rig.endpoint.tunnels[-1].up(bytes(relay), *public, carrier=carrier)
    await settle()
    return tunnel


def target_of(relay: PeerId) -> Any:
    from anyreach._tunnels import Target  # noqa: PLC0415

    address = SocketAddress.of("192.0.2.100", 443)
    return Target(HostPort("192.0.2.100", 443), (address,), relay)


@in_virtual_time
async def test_where_udp_is_blocked_everything_goes_through_the_tunnel_there_is() -> None:
    rig = Rig()
    await tunnel_to(rig, RELAY2, "203.0.113.1 6000")
    blocked(rig).says(seen=DIRECT, bound=bound_at(BOUND))
    begun = now()
    call = rig.call()
    await until(lambda: sum(dial.via is not None for dial in rig.endpoint.dials) == 2)
    assert now() - begun < 0.01
    tunnelled = [described(dial) for dial in rig.endpoint.dials if dial.via is not None]
    assert tunnelled == ["198.51.100.1 5000 bound by tunnel", "192.0.2.9 9000 by tunnel"]
    assert not any(dial.relayed and dial.via is None for dial in rig.endpoint.dials)
    assert len(rig.endpoint.tunnels) == 1
    call.cancel()
    await asyncio.wait([call])
    await rig.end()


@in_virtual_time
async def test_private_addresses_are_not_asked_of_a_relay() -> None:
    rig = Rig(around=Around(usable=frozenset((4,)), interfaces=interfaces("10.0.0.5")))
    await tunnel_to(rig, RELAY2, "203.0.113.1 6000")
    blocked(rig).says(seen=("10.0.0.9", 9000), bound=bound_at(BOUND))
    call = rig.call()
    await until(lambda: any(dial.via is not None for dial in rig.endpoint.dials))
    await settle()
    tunnelled = [described(dial) for dial in rig.endpoint.dials if dial.via is not None]
    assert tunnelled == ["198.51.100.1 5000 bound by tunnel"]
    call.cancel()
    await asyncio.wait([call])
    await rig.end()


def interfaces(*ips: str) -> tuple[InterfaceAddress, ...]:
    entries: Iterable[InterfaceAddress | None] = (InterfaceAddress.of("eth0", ip, 24) for ip in ips)
    return tuple(entry for entry in entries if entry is not None)


@in_virtual_time
async def test_only_peers_that_relay_and_are_reached_directly_are_asked_for_a_tunnel() -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.peer(0, capabilities=()).says(bound=bound_at(BOUND6))
    rig.peer(1, route=[FakePath(remote=BOUND, method="relayed")]).says("unknown")
    rig.peer(2, route=[]).says("unknown")
    rig.peer(3).says("unknown")
    call = rig.call()
    (tunnel,) = await rig.endpoint.dug(1)
    assert tunnel.options["peer_id"] == bytes([103]) * 32
    call.cancel()
    await asyncio.wait([call])
    assert len(rig.endpoint.tunnels) == 1
    await rig.end()


@in_virtual_time
async def test_a_tunnel_that_fails_is_explained_and_the_next_relay_asked() -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.peer(0).says(bound=bound_at(BOUND6))
    rig.peer(1).says("unknown")
    call = rig.call()
    (first,) = await rig.endpoint.dug(1)
    first.fail(
        ("h3", "192.0.2.100:9000", "handshake-timeout", "no answer", 3.0),
        ("h2", "", "refused", "connection refused", 0.1),
    )
    _, second = await rig.endpoint.dug(2)
    second.fail()
    attempts = [entry for entry in await failed(call) if not entry[0].startswith("peer ")]
    assert attempts == [
        ("192.0.2.100:9000 by h3", "handshake-timeout", "no answer"),
        ("192.0.2.100:9000 by h2", "refused", "connection refused"),
    ]
    await rig.end()


@in_virtual_time
async def test_no_relays_means_no_relays() -> None:
    rig = Rig(relayed=False)
    rig.peer(0).says(seen=DIRECT, bound=bound_at(BOUND))
    call = rig.call("192.0.2.50:9000")
    await rig.endpoint.started(2)
    for dial in rig.endpoint.dials:
        dial.fail("handshake-timeout")
    await failed(call)
    assert sorted(rig.dialed()) == ["192.0.2.50 9000", "192.0.2.9 9000"]
    assert rig.endpoint.tunnels == []
    await rig.end()


# Detours


@in_virtual_time
async def test_a_given_address_is_tried_over_tcp_a_moment_later() -> None:
    rig = Rig()
    begun = now()
    call = rig.call("192.0.2.50:9000")
    (tunnel,) = await rig.endpoint.dug(1)
    assert now() - begun == pytest.approx(DELAY, abs=0.01)
    assert tunnel.options["peer_id"] == bytes(PEER)
    assert [carrier for carrier, _ in tunnel.options["plan"]] == ["h2"]
    tunnel.node_addresses = [("127.0.0.1", 9000), ("192.0.2.50", 9000)]
    tunnel.up(bytes(PEER), "192.0.2.50 6000", carrier="h2")
    await rig.endpoint.started(3)
    assert rig.dialed() == [
        "192.0.2.50 9000",
        "127.0.0.1 9000 by tunnel",
        "192.0.2.50 9000 by tunnel",
    ]
    rig.endpoint.dials[1].win(FakeConnection())
    await call
    await rig.end()


@pytest.mark.parametrize("reason", ["peer-id-mismatch", "refused", "tls"])
@in_virtual_time
async def test_no_detour_around_somebody_who_said_no(reason: str) -> None:
    rig = Rig()
    call = rig.call("192.0.2.50:9000")
    (dial,) = await rig.endpoint.started(1)
    dial.fail(reason, "no", bytes(RELAY) if reason == "peer-id-mismatch" else None)
    await failed(call)
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_no_detour_once_somebody_answered() -> None:
    rig = Rig()
    call = rig.call("192.0.2.50:9000")
    (dial,) = await rig.endpoint.started(1)
    dial.win(FakeConnection())
    await call
    await asyncio.sleep(10)
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_silence_and_missing_routes_are_worth_a_detour() -> None:
    for reason in ("handshake-timeout", "unreachable"):
        rig = Rig()
        call = rig.call("192.0.2.50:9000")
        (dial,) = await rig.endpoint.started(1)
        dial.fail(reason)
        (tunnel,) = await rig.endpoint.dug(1)
        tunnel.fail(("h2", "192.0.2.50:9000", "refused", "connection refused", 0.1))
        assert [reason for _, reason, _ in await failed(call)] == [reason, "refused"]
        await rig.end()


@in_virtual_time
async def test_addresses_that_cannot_be_sent_to_get_no_detour() -> None:
    rig = Rig(mode=IpMode.IPV4_ONLY, endpoint=FakeEndpoint("v4"))
    assert [reason for _, reason, _ in await failed(rig.call("[2001:db8::50]:9000"))] == ["family"]
    assert rig.endpoint.tunnels == []
    await rig.end()


@in_virtual_time
async def test_addresses_peers_name_get_no_detour() -> None:
    rig = Rig()
    rig.peer(0, capabilities=()).says(seen=DIRECT)
    call = rig.call()
    (dial,) = await rig.endpoint.started(1)
    await asyncio.sleep(5)
    assert rig.endpoint.tunnels == []
    dial.fail("handshake-timeout")
    await failed(call)
    await rig.end()


# Without direct paths


@in_virtual_time
async def test_nothing_is_dialed_directly_if_that_is_off() -> None:
    rig = Rig(direct=False)
    rig.peer(0).says(seen=DIRECT, direct=[DIRECT6], bound=bound_at(BOUND))
    call = rig.call("192.0.2.50:9000")
    (detour,) = await rig.endpoint.dug(1)
    assert [carrier for carrier, _ in detour.options["plan"]] == ["h3", "h2"]
    (dial,) = await rig.endpoint.started(1)
    assert rig.dialed() == ["198.51.100.1 5000 bound"]
    await asyncio.sleep(5)
    assert all(dial.relayed or dial.via is not None for dial in rig.endpoint.dials)
    dial.win(FakeConnection())
    await call
    await rig.end()


@in_virtual_time
async def test_known_peers_are_dialed_all_the_same() -> None:
    rig = Rig(direct=False)
    user, known = rig.call("192.0.2.50:9000"), rig.call("192.0.2.51:9000", search=False)
    await rig.endpoint.started(2)
    assert rig.dialed() == ["192.0.2.50 9000", "192.0.2.51 9000"]
    rig.endpoint.dials[0].win(FakeConnection())
    assert await user is await known
    await rig.end()


@in_virtual_time
async def test_known_peers_get_no_tunnel_before_they_had_time_to_answer() -> None:
    rig = Rig(direct=False)
    begun = now()
    call = rig.call("192.0.2.51:9000", search=False)
    (tunnel,) = await rig.endpoint.dug(1)
    assert now() - begun == pytest.approx(DELAY, abs=0.01)
    assert [carrier for carrier, _ in tunnel.options["plan"]] == ["h2"]
    rig.endpoint.dials[0].win(FakeConnection())
    await call
    await rig.end()


# The end


@pytest.mark.parametrize("stage", range(7))
@in_virtual_time
async def test_a_cancelled_call_leaves_nothing_whatever_it_waited_for(stage: int) -> None:
    rig = Rig(around=Around(usable=frozenset((4,))))
    rig.joining.expected = stage == 0
    helper = rig.peer(0)
    before = asyncio.all_tasks()
    call = rig.call("192.0.2.50:9000")
    await until(lambda: helper.questions)
    if stage > 1:
        helper.questions[0].answer(bound=bound_at(BOUND, BOUND6))
        await rig.endpoint.started(2)
    if stage > 2:
        await rig.endpoint.dug(2)  # a detour, and a way to the other family
    if stage > 3:
        for tunnel in rig.endpoint.tunnels:
            tunnel.up(bytes([100]) * 32, "203.0.113.1 6000", "2001:db8:2::1 6000")
    if stage > 4:
        await until(lambda: any(dial.via is not None for dial in rig.endpoint.dials))
    if stage > 5:
        await asyncio.sleep(5)
    call.cancel()
    await asyncio.wait([call])
    assert all(tunnel.holders == set() for tunnel in rig.tunnels)
    assert all(dial.cancelled for dial in rig.endpoint.dials)
    assert not rig.dialer._flows
    await rig.end()
    await settle()
    assert asyncio.all_tasks() == before


@in_virtual_time
async def test_time_running_out_says_what_was_under_way() -> None:
    rig = Rig()
    rig.peer(0).says(bound=bound_at(BOUND))
    call = rig.call("192.0.2.50:9000", timeout=3.0)
    attempts = await failed(call)
    assert {(address, reason) for address, reason, _ in attempts} >= {
        ("192.0.2.50:9000", "handshake-timeout"),
        (f"198.51.100.1:5000 at relay {str(RELAY)[:8]}", "handshake-timeout"),
        ("relay 192.0.2.50:9000", "handshake-timeout"),
        ("relay 192.0.2.100:9000", "handshake-timeout"),
    }
    await rig.end()
