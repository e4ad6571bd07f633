"""aioquic as a node: the extension frames and transport parameters, in both roles.

Another QUIC, other TLS, other ML-KEM and ML-DSA than ours on the other side: over X25519MLKEM768,
with raw ML-DSA-65 keys proved by both. What the drafts forbid ends the connection with their error.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from aioquic.quic.packet import QuicErrorCode

from anyreach import ConnectError, Connection, Node

from .aioquic_mlkem import Group, mlkem
from .aioquic_node import HOST, MULTIPATH, Peer, dial, listen
from .aioquic_raw_keys import raw_keys
from .extension_frames import (
    ADDRESS_DISCOVERY,
    N0_FRAME_TYPES,
    N0_NAT_TRAVERSAL,
    NAT_TRAVERSAL,
    AddAddress,
    FrameType,
    ObservedAddress,
    PunchMeNow,
    RemoveAddress,
    decode_concurrency_limit,
    decode_observation,
    encode_varint,
)
from .nodes import config, echo_node, eventually, port_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from .nodes import EchoNode

OBSERVING = {ADDRESS_DISCOVERY: b"\x02"}
CLIENT = {**OBSERVING, **MULTIPATH, NAT_TRAVERSAL: b""}
SERVER = {**OBSERVING, **MULTIPATH, NAT_TRAVERSAL: encode_varint(16)}

SOMEWHERE = IPv4Address("203.0.113.7")
SOMEWHERE_V6 = IPv6Address("2001:db8::7")


@asynccontextmanager
async def client_of_ours(parameters: Mapping[int, bytes]) -> AsyncIterator[tuple[Peer, EchoNode]]:
    """aioquic that has dialed a node."""
    with mlkem(Group.X25519MLKEM768), raw_keys(parameters):
        async with echo_node() as echo, dial(echo.port) as peer:
            yield peer, echo


@asynccontextmanager
async def server_of_ours(
    parameters: Mapping[int, bytes],
) -> AsyncIterator[tuple[Peer, Connection, Node]]:
    """aioquic that a node has dialed."""
    with mlkem(Group.X25519MLKEM768), raw_keys(parameters):
        async with listen() as listener, Node(config()) as node:
            connection = await node.connect(listener.address)
            yield await listener.accept(), connection, node


class TestAgreement:
    async def test_a_node_that_is_dialed(self) -> None:
        async with client_of_ours(CLIENT) as (peer, echo):
            await peer.greeting()
            assert peer.key.peer_id == echo.node.peer_id
            limit = decode_concurrency_limit(peer.parameters[NAT_TRAVERSAL], from_client=False)
            assert limit is not None
            assert decode_observation(peer.parameters[ADDRESS_DISCOVERY]) == (True, True)
            assert N0_NAT_TRAVERSAL not in peer.parameters

            seen = await peer.frame()
            assert seen == ObservedAddress(0, IPv4Address(HOST), peer.local_port)

            await eventually(lambda: bool(echo.connections))
            (connection,) = echo.connections
            assert connection.key_exchange_group == "X25519MLKEM768"
            peer.send_frame(ObservedAddress(0, SOMEWHERE, 4711).encode())
            await eventually(lambda: connection.observed_address == f"{SOMEWHERE}:4711")
            # An older report that was held up on its way says nothing new.
            peer.send_frame(ObservedAddress(7, SOMEWHERE_V6, 4712).encode())
            await eventually(lambda: connection.observed_address == f"[{SOMEWHERE_V6}]:4712")
            peer.send_frame(ObservedAddress(6, SOMEWHERE, 4713).encode())
            peer.send_frame(ObservedAddress(8, SOMEWHERE, 4714).encode())
            await eventually(lambda: connection.observed_address == f"{SOMEWHERE}:4714")

    async def test_a_node_that_dials(self) -> None:
        async with server_of_ours(SERVER) as (peer, connection, node):
            listening = peer.local_port
            assert peer.key.peer_id == node.peer_id
            assert (
                decode_concurrency_limit(peer.parameters[NAT_TRAVERSAL], from_client=True) is None
            )
            assert decode_observation(peer.parameters[ADDRESS_DISCOVERY]) == (True, True)
            assert N0_NAT_TRAVERSAL not in peer.parameters

            seen = await peer.frame()
            assert seen == ObservedAddress(0, IPv4Address(HOST), listening)
            assert peer.remote.port == port_of(node)

            assert connection.key_exchange_group == "X25519MLKEM768"
            peer.send_frame(ObservedAddress(0, SOMEWHERE_V6, 4711).encode())
            await eventually(lambda: connection.observed_address == f"[{SOMEWHERE_V6}]:4711")

    async def test_candidates_of_a_server_come_and_go(self) -> None:
        async with server_of_ours(SERVER) as (peer, connection, _):
            core = connection._core
            assert core.can_punch
            peer.send_frame(AddAddress(0, SOMEWHERE, 4711).encode())
            peer.send_frame(AddAddress(1, SOMEWHERE_V6, 4711).encode())
            both = {(str(SOMEWHERE), 4711), (str(SOMEWHERE_V6), 4711)}
            await eventually(lambda: set(core.peer_candidates) == both)
            peer.send_frame(RemoveAddress(1).encode())
            await eventually(lambda: core.peer_candidates == [(str(SOMEWHERE), 4711)])

    async def test_a_client_starts_a_round(self) -> None:
        async with server_of_ours(SERVER) as (peer, connection, _):
            core = connection._core
            peer.send_frame(AddAddress(5, SOMEWHERE, 4711).encode())
            await eventually(lambda: bool(core.peer_candidates))
            own = (str(IPv4Address("198.51.100.9")), 4712)
            core.set_candidates([own])
            number = core.start_round([(own, core.peer_candidates[0])])
            await peer.frame()  # where it sees us
            punch = await peer.frame(1)
            assert punch == PunchMeNow(number, 5, IPv4Address(own[0]), own[1])

    async def test_a_server_tells_its_candidates(self) -> None:
        async with client_of_ours(CLIENT) as (peer, echo):
            await eventually(lambda: bool(echo.connections))
            core = echo.connections[0]._core
            assert core.can_punch
            await peer.frame()  # where it sees us
            core.set_candidates([(str(SOMEWHERE), 4711)])
            added = await peer.frame(1)
            assert isinstance(added, AddAddress)
            assert (added.ip, added.port) == (SOMEWHERE, 4711)
            core.set_candidates([])
            assert await peer.frame(2) == RemoveAddress(added.sequence)

    @pytest.mark.parametrize("parameters", [{}, OBSERVING], ids=["nothing", "observing"])
    async def test_who_does_not_negotiate_gets_no_frames(
        self, parameters: Mapping[int, bytes]
    ) -> None:
        async with client_of_ours(parameters) as (peer, echo):
            await peer.greeting()
            await eventually(lambda: bool(echo.connections))
            connection = echo.connections[0]
            connection._core.set_candidates([(str(SOMEWHERE), 4711)])
            assert not connection._core.can_punch
            # Whatever would come has come when a stream of later has been echoed.
            await peer.ask(b"anything else?")
            assert [type(frame) for frame in peer.frames] == [ObservedAddress] * len(parameters)
            assert peer.terminated is None


def address(frame_type: int, *numbers: int) -> bytes:
    """A frame of that type about some IPv4 address."""
    head = b"".join(map(encode_varint, (frame_type, *numbers)))
    return head + SOMEWHERE.packed + (4711).to_bytes(2, "big")


FORBIDDEN = {
    "add-address-to-a-server": (True, AddAddress(0, SOMEWHERE, 4711).encode()),
    "remove-address-to-a-server": (True, RemoveAddress(0).encode()),
    "punch-me-now-to-a-client": (False, PunchMeNow(1, 0, SOMEWHERE, 4711).encode()),
}
"""Whether the node is the server, and the frame."""

MALFORMED = {
    "observed-address": (True, ObservedAddress(0, SOMEWHERE, 4711).encode()),
    "observed-address-v6": (False, ObservedAddress(0, SOMEWHERE_V6, 4711).encode()),
    "add-address": (False, AddAddress(0, SOMEWHERE, 4711).encode()),
    "add-address-v6": (False, AddAddress(0, SOMEWHERE_V6, 4711).encode()),
    "punch-me-now": (True, PunchMeNow(1, 0, SOMEWHERE, 4711).encode()),
    "punch-me-now-v6": (True, PunchMeNow(1, 0, SOMEWHERE_V6, 4711).encode()),
    "remove-address": (False, RemoveAddress(300).encode()),
}
"""Frames the node would take if they were not cut short."""


async def refusal(
    frame: bytes, *, to_server: bool, parameters: Mapping[int, bytes] | None = None
) -> int:
    """The error with which a node ends a connection on which it got this."""
    if to_server:
        async with client_of_ours(CLIENT if parameters is None else parameters) as (peer, _):
            await peer.greeting()
            peer.send_frame(frame)
            return (await peer.end()).error_code
    async with server_of_ours(SERVER if parameters is None else parameters) as (peer, _, _):
        peer.send_frame(frame)
        return (await peer.end()).error_code


class TestRefusal:
    @pytest.mark.parametrize("case", FORBIDDEN)
    async def test_frames_against_their_direction(self, case: str) -> None:
        to_server, frame = FORBIDDEN[case]
        assert await refusal(frame, to_server=to_server) == QuicErrorCode.PROTOCOL_VIOLATION

    @pytest.mark.parametrize("to_server", [True, False], ids=["to-a-server", "to-a-client"])
    async def test_frames_that_were_not_negotiated(self, to_server: bool) -> None:
        frame = PunchMeNow(1, 0, SOMEWHERE, 4711) if to_server else AddAddress(0, SOMEWHERE, 4711)
        code = await refusal(frame.encode(), to_server=to_server, parameters=OBSERVING)
        assert code == QuicErrorCode.PROTOCOL_VIOLATION

    @pytest.mark.parametrize("case", MALFORMED)
    async def test_frames_that_are_cut_short(self, case: str) -> None:
        to_server, frame = MALFORMED[case]
        code = await refusal(frame[:-1], to_server=to_server)
        assert code == QuicErrorCode.FRAME_ENCODING_ERROR

    @pytest.mark.parametrize("frame_type", [*N0_FRAME_TYPES, FrameType.REMOVE_ADDRESS + 1], ids=hex)
    @pytest.mark.parametrize("to_server", [True, False], ids=["to-a-server", "to-a-client"])
    async def test_frames_of_no_standard(self, frame_type: int, to_server: bool) -> None:
        """RFC 9000 section 12.4: a frame of unknown type is a FRAME_ENCODING_ERROR."""
        frame = address(frame_type, 1)
        if frame_type == N0_FRAME_TYPES[4]:  # the one with nothing but a number
            frame = frame[:5]
        code = await refusal(frame, to_server=to_server)
        assert code == QuicErrorCode.FRAME_ENCODING_ERROR

    @pytest.mark.parametrize("value", [b"\x00", b"\x10", b"\x40"], ids=bytes.hex)
    async def test_a_client_with_a_limit(self, value: bytes) -> None:
        """NAT traversal, section 4.5: the client's parameter is empty."""
        async with client_of_ours({**OBSERVING, NAT_TRAVERSAL: value}) as (peer, echo):
            ended = await peer.end()
            assert ended.error_code == QuicErrorCode.TRANSPORT_PARAMETER_ERROR
            assert not echo.connections

    @pytest.mark.parametrize(
        "value", [b"", b"\x00", b"\x40", b"\x40\x00", b"\x10\x10"], ids=lambda value: value.hex()
    )
    async def test_a_server_without_a_proper_limit(self, value: bytes) -> None:
        """NAT traversal, section 4.5: the server's is a variable-length integer above 0."""
        await self._refused_server({**OBSERVING, NAT_TRAVERSAL: value})

    @pytest.mark.parametrize("value", [b"", b"\x03", b"\x02\x02"], ids=lambda value: value.hex())
    async def test_an_unknown_way_to_discover_addresses(self, value: bytes) -> None:
        """Address discovery, section 3: 0, 1 or 2."""
        await self._refused_server({ADDRESS_DISCOVERY: value})

    async def _refused_server(self, parameters: Mapping[int, bytes]) -> None:
        with mlkem(Group.X25519MLKEM768), raw_keys(parameters):
            async with listen() as listener, Node(config()) as node:
                dialing = asyncio.create_task(node.connect(listener.address))
                peer = await listener.accept()
                ended = await peer.end()
                assert ended.error_code == QuicErrorCode.TRANSPORT_PARAMETER_ERROR
                with pytest.raises(ConnectError):
                    await dialing
