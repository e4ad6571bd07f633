"""What proves that others can reach the node, and what does not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from anyreach._proving import MAX_CONTACTS, MAX_PROBES, Contacts, Proving
from anyreach._tunnels import Tunnel
from anyreach.peer import PeerId

from .fake_core import FakeConnection, FakeDial, FakeEndpoint, FakePath, FakeTunnel, settle
from .fake_local import FakeLocal, FakeObserved, address
from .virtual_time import in_virtual_time

RELAYS = [PeerId(bytes([i]) * 32) for i in range(1, 9)]
OWN4, OWN6, NAT4 = "198.51.100.7", "2001:db8:7::7", "203.0.113.77"
STRANGER = ("192.0.2.200", 4000)


@dataclass
class Rig:
    """Evidence about a node with a public address of each family."""

    local: FakeLocal = field(default_factory=lambda: FakeLocal.at(OWN4, OWN6))
    endpoint: FakeEndpoint = field(default_factory=FakeEndpoint)
    contacts: Contacts = field(default_factory=Contacts)
    changes: int = 0

    def __post_init__(self) -> None:
        self.proving = Proving(
            self.endpoint,
            self.endpoint.wait,
            local=self.local.view(),
            contacts=self.contacts,
            changed=self._changed,
        )

    def _changed(self) -> None:
        self.changes += 1

    def verdicts(self, *, udp_blocked: bool = False) -> dict[int, str]:
        judged = self.proving.reachability(udp_blocked=udp_blocked)
        return {entry.family: entry.verdict for entry in judged.families}

    def tunnel(self, number: int = 0, *public: str, remote: str | None = None) -> Tunnel:
        """A tunnel to a relay that is up."""
        core = FakeTunnel()
        core.remote = (remote or f"192.0.2.{number + 1}", 9000)
        public = public or (f"192.0.2.{number + 1} 5000", f"2001:db8:{number + 1}::1 5000")
        core.up(RELAYS[number].raw, *public)
        return Tunnel(core.core(), RELAYS[number])

    def probe(self, number: int = 0) -> None:
        self.proving.probe(RELAYS[number], self.tunnel(number))

    async def dials(self, count: int) -> list[FakeDial]:
        await self.endpoint.started(count)
        await settle()
        assert len(self.endpoint.dials) == count
        return self.endpoint.dials


def visitor(remote: tuple[str, int] = STRANGER, **fields: object) -> FakeConnection:
    connection = FakeConnection(outbound=False, route=[FakePath(remote=remote)])
    for name, value in fields.items():
        setattr(connection, name, value)
    return connection


@in_virtual_time
async def test_a_stranger_who_comes_in_is_a_proof() -> None:
    rig = Rig()
    assert rig.verdicts() == {6: "unknown", 4: "unknown"}
    rig.proving.arrived(visitor().core())
    assert rig.verdicts() == {6: "unknown", 4: "reachable"}


@pytest.mark.parametrize(
    "connection",
    [
        FakeConnection(outbound=True, route=[FakePath(remote=STRANGER)]),
        FakeConnection(outbound=False, route=[FakePath(remote=STRANGER, method="relayed")]),
        FakeConnection(outbound=False, route=[FakePath(remote=STRANGER, method="punched")]),
        FakeConnection(outbound=False, route=[]),
        FakeConnection(outbound=False, route=[FakePath(remote=("198.51.100.99", 4000))]),
    ],
    ids=["we dialed", "through a relay", "punched", "gone already", "neighbour"],
)
@in_virtual_time
async def test_who_does_not_come_by_himself_from_outside_proves_nothing(
    connection: FakeConnection,
) -> None:
    rig = Rig()
    rig.proving.arrived(connection.core())
    assert rig.verdicts() == {6: "unknown", 4: "unknown"}


@in_virtual_time
async def test_an_answer_to_what_we_sent_proves_nothing() -> None:
    rig = Rig()
    rig.contacts.add(ip_address(STRANGER[0]))
    rig.proving.arrived(visitor().core())
    assert rig.verdicts()[4] == "unknown"


@in_virtual_time
async def test_a_probe_goes_to_every_address_the_relay_can_send_to() -> None:
    rig = Rig(local=FakeLocal.at(OWN4, OWN6, "10.0.0.7", seen=(NAT4,)))
    rig.proving.probe(RELAYS[0], rig.tunnel(0))
    dials = await rig.dials(2)
    # A family peers have seen is probed where they saw it.
    assert {dial.address for dial in dials} == {f"{NAT4} 9000", f"{OWN6} 9000"}
    assert all(dial.via is not None and not dial.relayed for dial in dials)
    assert all(dial.peer_id is None for dial in dials)
    await rig.proving.end()


@in_virtual_time
async def test_a_relay_of_one_family_probes_that_only() -> None:
    rig = Rig()
    rig.proving.probe(RELAYS[0], rig.tunnel(0, "192.0.2.1 5000"))
    (dial,) = await rig.dials(1)
    assert dial.address == f"{OWN4} 9000"
    await rig.proving.end()


@in_virtual_time
async def test_a_probe_that_comes_in_is_a_proof() -> None:
    rig = Rig()
    rig.probe()
    for dial in await rig.dials(2):
        # Nobody else has the key of this node.
        dial.fail("self" if dial.address.startswith(OWN4) else "handshake-timeout")
    await settle()
    assert rig.verdicts() == {6: "unreachable", 4: "reachable"}
    assert rig.changes == 2
    assert all(dial.cancelled for dial in rig.endpoint.dials[:2])
    await rig.proving.end()


@in_virtual_time
async def test_somebody_else_at_our_address_is_no_proof() -> None:
    rig = Rig(local=FakeLocal.at(OWN4))
    rig.probe()
    (dial,) = await rig.dials(1)
    dial.win(FakeConnection())
    await settle()
    assert rig.verdicts() == {4: "unreachable"}
    assert dial.cancelled
    await rig.proving.end()


@in_virtual_time
async def test_behind_a_nat_only_a_relay_we_never_sent_to_proves_anything() -> None:
    for contacted, verdict in ((True, "unknown"), (False, "reachable")):
        rig = Rig(local=FakeLocal.at("10.0.0.7", seen=(NAT4,)))
        if contacted:
            rig.contacts.add(ip_address("192.0.2.1"))
        rig.probe()
        (dial,) = await rig.dials(1)
        rig.contacts.add(ip_address("192.0.2.1"))  # our answer to the probe is no lure
        dial.fail("self")
        await settle()
        assert rig.verdicts() == {4: verdict}
        await rig.proving.end()


@in_virtual_time
async def test_what_counts_is_the_address_the_probe_comes_from() -> None:
    rig = Rig(local=FakeLocal.at("10.0.0.7", seen=(NAT4,)))
    rig.contacts.add(ip_address("192.0.2.99"))
    # The relay is dialed at one address, and lends another.
    rig.proving.probe(RELAYS[0], rig.tunnel(0, "192.0.2.99 5000", remote="192.0.2.1"))
    (dial,) = await rig.dials(1)
    dial.fail("self")
    await settle()
    assert rig.verdicts() == {4: "unknown"}
    await rig.proving.end()


@in_virtual_time
async def test_through_a_proxy_nobody_knows_what_was_contacted() -> None:
    rig = Rig(local=FakeLocal.at("10.0.0.7", seen=(NAT4,)))
    core = FakeTunnel()
    core.up(RELAYS[0].raw, "192.0.2.1 5000", carrier="h2-proxy")
    assert core.remote is None
    rig.proving.probe(RELAYS[0], Tunnel(core.core(), RELAYS[0]))
    (dial,) = await rig.dials(1)
    dial.fail("self")
    await settle()
    assert rig.verdicts() == {4: "unknown"}
    await rig.proving.end()


@pytest.mark.parametrize("reason", ["closed", "cancelled"])
@in_virtual_time
async def test_a_tunnel_that_goes_away_says_nothing(reason: str) -> None:
    rig = Rig(local=FakeLocal.at(OWN4))
    rig.probe()
    (dial,) = await rig.dials(1)
    dial.fail(reason)
    await settle()
    assert rig.verdicts() == {4: "unknown"}
    assert rig.changes == 0
    await rig.dials(1)


@in_virtual_time
async def test_lost_probes_are_repeated_so_often() -> None:
    rig = Rig(local=FakeLocal.at(OWN4))
    rig.probe()
    for number in range(1, MAX_PROBES + 1):
        (await rig.dials(number))[-1].fail("handshake-timeout")
        await settle()
    rig.probe(1)
    await rig.dials(MAX_PROBES)
    assert rig.verdicts() == {4: "unreachable"}


@in_virtual_time
async def test_each_relay_probes_an_address_once() -> None:
    rig = Rig(local=FakeLocal.at(OWN4))
    for number in (0, 0, 1, 0):
        rig.probe(number)
    for dial in await rig.dials(2):
        dial.fail("self")
    await settle()
    rig.probe(0)
    await rig.dials(2)
    assert rig.verdicts() == {4: "reachable"}


@in_virtual_time
async def test_a_lost_address_takes_its_proofs_with_it() -> None:
    rig = Rig()
    rig.proving.arrived(visitor().core())
    rig.proving.arrived(visitor(("2001:db8:99::1", 4000)).core())
    rig.probe()
    await rig.dials(2)
    rig.proving.address_gone(address(OWN4))
    assert rig.verdicts() == {6: "reachable", 4: "unknown"}
    for dial in rig.endpoint.dials:
        if not dial.outcome.done():
            dial.fail("self")
    await settle()
    # What was under way to the old address says nothing about the new one.
    assert rig.verdicts()[4] == "unknown"
    rig.local.own = (address("198.51.100.8"), address(OWN6))
    rig.probe()
    assert (await rig.dials(3))[-1].address == "198.51.100.8 9000"
    await rig.proving.end()


@in_virtual_time
async def test_in_another_network_everything_is_open_again() -> None:
    rig = Rig()
    rig.proving.arrived(visitor().core())
    rig.probe()
    await rig.dials(2)
    rig.proving.network_changed()
    await settle()
    assert all(dial.cancelled for dial in rig.endpoint.dials)
    assert rig.verdicts() == {6: "unknown", 4: "unknown"}
    assert rig.changes == 0
    rig.probe()
    await rig.dials(4)
    await rig.proving.end()


@in_virtual_time
async def test_addresses_nobody_outside_could_reach_are_not_probed() -> None:
    rig = Rig(local=FakeLocal.at("127.0.0.1", "10.0.0.7", "fd00::7"))
    rig.probe()
    rig.local.observed = FakeObserved((address("10.0.0.7"),))
    rig.probe()
    await rig.dials(0)
    assert rig.verdicts() == {4: "unknown"}


@in_virtual_time
async def test_the_end_leaves_no_probe() -> None:
    rig = Rig()
    before = asyncio.all_tasks()
    rig.probe()
    await rig.dials(2)
    await rig.proving.end()
    assert asyncio.all_tasks() == before
    assert all(dial.cancelled for dial in rig.endpoint.dials)


def test_contacts_are_remembered_up_to_a_limit() -> None:
    contacts = Contacts()
    for number in range(MAX_CONTACTS):
        contacts.add(ip_address(number))
    contacts.add(ip_address(0))  # again, so that it is not the oldest any more
    assert all(ip_address(number) in contacts for number in range(MAX_CONTACTS))
    contacts.add(ip_address(MAX_CONTACTS))
    assert ip_address(0) in contacts
    assert ip_address(1) not in contacts
    assert ip_address(MAX_CONTACTS) in contacts
