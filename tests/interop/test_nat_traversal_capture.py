"""A capture of two nodes that punch, opened and judged with nothing of ours.

The secrets of one end, aioquic's packet protection, and a decoder written from the drafts: whatever
is in the packets between them is read, and it is what draft-seemann-quic-nat-traversal-02 and
draft-ietf-quic-address-discovery-00 say, in frames, fields, roles and order.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from netlab import kinds
from netlab.agent import Agent
from netlab.capture import capture
from netlab.requirements import netlab_required
from netlab.sites import LanHost
from netlab.topology import UPLINK
from netlab.world import pair

from .dissector import Dissection, Level, Packet, Session, dissect, read_secrets
from .extension_frames import (
    ADDRESS_DISCOVERY,
    N0_FRAME_TYPES,
    N0_NAT_TRAVERSAL,
    NAT_TRAVERSAL,
    AddAddress,
    ExtensionFrame,
    ObservedAddress,
    PunchMeNow,
    RemoveAddress,
    decode_concurrency_limit,
    decode_observation,
)
from .quic_frames import PathChallenge, PathResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from netlab.capture import Capture
    from netlab.sites import Site
    from netlab.world import World

pytestmark = [pytest.mark.netlab, pytest.mark.xdist_group("nat-traversal-capture")]

_PATIENCE = 20.0
_BULK = 300_000

_SSDP, _PCP = 1900, 5351
"""Ports at which a node asks the routers for a mapping."""

_OPENER = 0x0D
"""First byte of the datagrams beside QUIC that open NATs (docs/protocol.md)."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was captured at the host of the client.

    Attributes:
        near: the client's site, where its packets have inner addresses.
        far: the server's site.
        dissection: the capture in clear.
        session: the connection of the two nodes.
        far_address: the server's address as the internet saw it first.
    """

    near: Site
    far: Site
    dissection: Dissection
    session: Session
    far_address: str

    @property
    def packets(self) -> list[Packet]:
        """Those of the connection."""
        return self.dissection.of(self.session)

    def frames(self, kind: type[ExtensionFrame]) -> list[tuple[Packet, ExtensionFrame]]:
        """The frames of a kind with their packets, in the order of the capture."""
        return _frames(self.packets, kind)


def _frames(
    packets: list[Packet], kind: type[ExtensionFrame]
) -> list[tuple[Packet, ExtensionFrame]]:
    return [
        (packet, frame)
        for packet in packets
        for _, frame in packet.frames
        if isinstance(frame, kind)
    ]


@pytest.fixture(
    scope="module", params=[kinds.PORT_RESTRICTED, kinds.V6_FIREWALLED], ids=["ipv4", "ipv6"]
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two nodes punch, talk, and then the server loses an address."""
    netlab_required()
    folder = tmp_path_factory.mktemp("capture")
    with pair(request.param, request.param) as (world, near, far):
        near.host.environment["SSLKEYLOGFILE"] = str(folder / "secrets")
        version = 6 if request.param is kinds.V6_FIREWALLED else 4
        address = str(far.external(version))
        with capture(near.host, folder / "near.pcap") as captured, _spare(far, version) as lose:
            _punch_and_lose(world, near, far, lose)
            dissection = _dissect(captured, folder)
            # A server tells of the loss in its own time.
            deadline = time.monotonic() + _PATIENCE
            while not _frames(dissection.packets, RemoveAddress):
                assert time.monotonic() < deadline, "no REMOVE_ADDRESS"
                time.sleep(0.2)
                dissection = _dissect(captured, folder)
        (session,) = {
            id(packet.session): packet.session
            for packet, _ in _frames(dissection.packets, PunchMeNow)
        }.values()
        yield Run(near, far, dissection, session, address)


def _dissect(captured: Capture, folder: Path) -> Dissection:
    return dissect(captured.packets(), read_secrets(folder / "secrets"))


@contextlib.contextmanager
def _spare(site: Site, version: int) -> Iterator[Callable[[], None]]:
    """Have a candidate that can be lost while others stay; the value loses it."""
    if version == 4:
        yield site.readdress
        return
    host = site.host
    assert isinstance(host, LanHost)
    assert host.v6 is not None
    spare = f"address {{}} {host.v6 + 0x100}/64 dev {UPLINK} nodad"
    host.ip(spare.format("add"))
    yield lambda: host.ip(spare.format("delete").removesuffix(" nodad"))


def _punch_and_lose(world: World, near: Site, far: Site, lose: Callable[[], None]) -> None:
    # A node hears of a new address of its NAT when it next says something.
    options = {"bind_addr": "[::]:0", "keep_alive_interval": 1.0}
    a = Agent(near.host, known_peers=world.known_peers(near), **options, key_log=True)
    b = Agent(far.host, known_peers=world.known_peers(far), **options)
    for agent in (a, b):
        agent.wait_reserved(world.relays[0].node.peer_id)
    a.connect_by_id(b)
    a.wait_way(b, {"punched"})
    a.transfer(_BULK)
    lose()


def test_every_packet_was_opened(run: Run) -> None:
    assert len(run.dissection.packets) > 100
    for source, destination, payload in run.dissection.unopened + run.dissection.others:
        if not {_SSDP, _PCP}.intersection((source.port, destination.port)):
            assert payload[0] == _OPENER, "nothing else that a node sends"


def test_the_extensions_are_negotiated_by_the_drafts(run: Run) -> None:
    client = run.session.parameters(of_client=True)
    server = run.session.parameters(of_client=False)
    assert decode_concurrency_limit(client[NAT_TRAVERSAL], from_client=True) is None
    limit = decode_concurrency_limit(server[NAT_TRAVERSAL], from_client=False)
    assert limit is not None
    for parameters in (client, server):
        assert decode_observation(parameters[ADDRESS_DISCOVERY]) == (True, True)


def test_nothing_of_the_engines_own_variant_is_on_the_wire(run: Run) -> None:
    for session in run.dissection.sessions():
        for of_client in (True, False):
            assert N0_NAT_TRAVERSAL not in session.parameters(of_client=of_client)
    types = {kind for packet in run.dissection.packets for kind, _ in packet.frames}
    assert not types.intersection(N0_FRAME_TYPES)


def test_extension_frames_travel_under_application_keys(run: Run) -> None:
    for kind in (ObservedAddress, AddAddress, PunchMeNow, RemoveAddress):
        found = run.frames(kind)
        assert found, kind.__name__
        assert all(packet.space.level is Level.ONE_RTT for packet, _ in found)


def test_candidates_come_from_the_server_and_rounds_from_the_client(run: Run) -> None:
    for kind, from_client in ((AddAddress, False), (RemoveAddress, False), (PunchMeNow, True)):
        senders = {packet.space.from_client for packet, _ in run.frames(kind)}
        assert senders == {from_client}, kind.__name__
    observers = {packet.space.from_client for packet, _ in run.frames(ObservedAddress)}
    assert observers == {True, False}


def test_the_server_tells_where_it_is_before_the_client_starts(run: Run) -> None:
    added = run.frames(AddAddress)
    assert added[0][0].index < run.frames(PunchMeNow)[0][0].index
    assert added[0][0].space.path == 0, "over the relay"
    addresses = {str(frame.ip) for _, frame in added if isinstance(frame, AddAddress)}
    assert run.far_address in addresses
    # A number stands for one address for ever.
    numbers: dict[int, AddAddress] = {}
    for _, frame in added:
        assert isinstance(frame, AddAddress)
        assert numbers.setdefault(frame.sequence, frame) == frame


def test_rounds_pair_addresses_the_server_has_told(run: Run) -> None:
    known: set[int] = set()
    rounds = []
    limit = decode_concurrency_limit(
        run.session.parameters(of_client=False)[NAT_TRAVERSAL], from_client=False
    )
    for packet in run.packets:
        for _, frame in packet.frames:
            if isinstance(frame, AddAddress):
                known.add(frame.sequence)
            elif isinstance(frame, PunchMeNow):
                assert frame.paired_with in known
                rounds.append(frame)
    assert [frame.round for frame in rounds] == sorted(frame.round for frame in rounds)
    assert limit is not None
    for number in {frame.round for frame in rounds}:
        # Section 4.4. A frame may be sent again when it is lost, with the same contents.
        assert len({frame for frame in rounds if frame.round == number}) <= limit
    external = str(run.near.external(rounds[0].ip.version))
    assert external in {str(frame.ip) for frame in rounds}


def test_both_ends_probe_and_the_path_is_proved(run: Run) -> None:
    straight = [
        packet
        for packet in run.packets
        if run.far_address in {str(packet.source.ip), str(packet.destination.ip)}
    ]
    for from_client in (True, False):
        sent = [packet for packet in straight if packet.space.from_client is from_client]
        probes = {
            frame.data
            for packet in sent
            for _, frame in packet.frames
            if isinstance(frame, PathChallenge)
        }
        answers = {
            frame.data
            for packet in straight
            if packet.space.from_client is not from_client
            for _, frame in packet.frames
            if isinstance(frame, PathResponse)
        }
        assert probes & answers, "a challenge, and its answer from there"
    assert {packet.space.path for packet in straight} - {0}, "a path of its own"


def test_each_end_tells_the_other_where_it_sees_it_on_every_path(run: Run) -> None:
    paths = {packet.space.path for packet in run.packets if packet.space.level is Level.ONE_RTT}
    for from_client in (True, False):
        found = [
            (packet, frame)
            for packet, frame in run.frames(ObservedAddress)
            if packet.space.from_client is from_client and isinstance(frame, ObservedAddress)
        ]
        assert {packet.space.path for packet, _ in found} == paths
        numbers = [frame.sequence for _, frame in sorted(found, key=_order)]
        assert numbers == sorted(numbers)
        for packet, frame in found:
            if from_client:
                # What the client sees is what it sends to.
                assert (frame.ip, frame.port) == packet.destination
            elif packet.space.path and str(packet.source.ip) == run.far_address:
                # The server sees the client behind its NAT, which keeps the port.
                assert frame.ip == run.near.external(frame.ip.version)
                assert frame.port == packet.destination.port


def _order(entry: tuple[Packet, ObservedAddress]) -> int:
    return entry[0].index


def test_a_lost_address_is_taken_back_once_and_was_told_before(run: Run) -> None:
    told: set[int] = set()
    removed = []
    for packet in run.packets:
        for _, frame in packet.frames:
            if isinstance(frame, AddAddress):
                assert frame.sequence not in removed, "numbers are not used again"
                told.add(frame.sequence)
            elif isinstance(frame, RemoveAddress):
                assert frame.sequence in told
                removed.append(frame.sequence)
    assert removed
