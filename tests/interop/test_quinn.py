"""Our node with stock quinn, which shares no handshake, transport or codec of ours."""

import asyncio
import os
import time
from functools import partial
from pathlib import Path

import pytest

from anyreach import ConnectError, Node, PeerId, PeerIdMismatch

from .conftest import CertificateFiles
from .nodes import HOST, EchoNode, check_echo, config, echo_node, eventually
from .programs import program

pytestmark = pytest.mark.usefixtures("peers")

GROUPS = pytest.mark.parametrize("group", ["X25519MLKEM768", "MLKEM768"])

# Refusals come with the first flight back. Far below any handshake timeout, and generous enough
# for a busy machine.
PROMPT = 2.0


@GROUPS
async def test_quinn_dials_a_node(group: str) -> None:
    async with (
        echo_node() as echo,
        program(
            "quinn-peer",
            "client",
            connect=f"{HOST}:{echo.port}",
            group=group.lower(),
            bytes=300_000,
            streams=3,
        ) as quinn,
    ):
        connected = await quinn.event("connected", "error")
        assert connected["peer_id"] == str(echo.node.peer_id)
        assert connected["version"] == 1
        assert connected["agent"].startswith("anyreach")
        echoed = await quinn.event("echoed", "error")
        assert echoed == {"event": "echoed", "bytes": 300_000, "streams": 3}
        [connection] = echo.connections
        assert connection.direction == "in"
        assert connection.key_exchange_group == group
        lost = await connection.wait_closed()
        assert (lost.reason, lost.code) == ("closed", 0)
        assert await quinn.exit() == 0


@GROUPS
async def test_a_node_dials_quinn(group: str) -> None:
    async with (
        program("quinn-peer", "server", group=group.lower()) as quinn,
        Node(config()) as node,
    ):
        listening = await quinn.event("listening")
        connection = await node.connect(f"{listening['peer_id']}@{listening['address']}")
        assert str(connection.peer_id) == listening["peer_id"]
        assert connection.direction == "out"
        assert connection.key_exchange_group == group
        connected = await quinn.event("connected")
        assert connected["peer_id"] == str(node.peer_id)

        async with asyncio.TaskGroup() as tasks:
            for size in (0, 1, 300_000, 1_000_000):
                tasks.create_task(check_echo(connection, os.urandom(size)))

        connection.close(7, "enough")
        assert "code 7" in (await quinn.event("closed"))["reason"]


async def test_one_way_streams_and_datagrams_with_quinn() -> None:
    async with program("quinn-peer", "server") as quinn, Node(config()) as node:
        listening = await quinn.event("listening")
        connection = await node.connect(f"{listening['peer_id']}@{listening['address']}")

        data = os.urandom(100_000)
        async with await connection.open_stream(bidirectional=False) as stream:
            await stream.write(data)
        answer = await connection.accept_stream()
        assert await answer.read(-1) == data

        assert connection.max_datagram_size is not None
        datagrams = [os.urandom(size) for size in (0, 1, 1000, connection.max_datagram_size)]
        # One at a time: loopback does not lose what fits in the queues.
        for datagram in datagrams:
            assert connection.send_datagram(datagram)
            async with asyncio.timeout(10):
                assert await connection.receive_datagrams() == [datagram]


async def test_somebody_else_answers() -> None:
    async with program("quinn-peer", "server") as quinn, Node(config()) as node:
        listening = await quinn.event("listening")
        with pytest.raises(PeerIdMismatch) as failure:
            await node.connect(f"{PeerId(bytes(32))}@{listening['address']}")
        assert failure.value.actual == listening["peer_id"]
        assert failure.value.attempts[0].reason == "peer-id-mismatch"


async def test_a_classical_client_is_refused() -> None:
    async with echo_node() as echo:
        address = f"{HOST}:{echo.port}"
        start = time.monotonic()
        async with program("quinn-peer", "client", connect=address, group="x25519") as quinn:
            refused = await quinn.event("error", "connected")
            assert refused["event"] == "error"
            assert time.monotonic() - start < PROMPT, refused
        assert not echo.connections
        async with program("quinn-peer", "client", connect=address) as quinn:
            assert (await quinn.event("echoed", "error"))["event"] == "echoed"


async def test_a_classical_server_is_refused_at_once() -> None:
    async with (
        program("quinn-peer", "server", group="x25519") as quinn,
        Node(config()) as node,
    ):
        listening = await quinn.event("listening")
        start = time.monotonic()
        with pytest.raises(ConnectError, match="ML-KEM") as failure:
            await node.connect(f"{listening['peer_id']}@{listening['address']}")
        assert time.monotonic() - start < PROMPT
        [attempt] = failure.value.attempts
        assert attempt.reason == "key-exchange"
        assert attempt.address == listening["address"]


async def test_a_server_with_a_certificate_is_refused(certificate: CertificateFiles) -> None:
    options = {"certificate": certificate.certificate, "key": certificate.key}
    async with (
        program("quinn-peer", "server", auth="x509", alpn="anyreach/1", **options) as quinn,
        Node(config()) as node,
    ):
        listening = await quinn.event("listening")
        with pytest.raises(ConnectError, match="raw public key") as failure:
            await node.connect(listening["address"])
        assert failure.value.attempts[0].reason == "tls"


async def test_another_protocol_is_refused() -> None:
    async with (
        program("quinn-peer", "server", alpn="something/1") as quinn,
        Node(config()) as node,
    ):
        listening = await quinn.event("listening")
        with pytest.raises(ConnectError, match="anyreach/1") as failure:
            await node.connect(listening["address"])
        assert failure.value.attempts[0].reason == "protocol"


async def test_a_server_that_says_something_else() -> None:
    """Without hellos the peer echoes ours, which is no answer to it."""
    async with (
        program("quinn-peer", "server", hello="false") as quinn,
        Node(config()) as node,
    ):
        listening = await quinn.event("listening")
        with pytest.raises(ConnectError) as failure:
            await node.connect(f"{listening['peer_id']}@{listening['address']}")
        assert failure.value.attempts[0].reason == "protocol"


async def test_a_client_without_hello_is_no_connection() -> None:
    """It opens a stream whose first bytes are no hello: closed, and never shown."""
    async with (
        echo_node() as echo,
        program("quinn-peer", "client", connect=f"{HOST}:{echo.port}", hello="false") as quinn,
    ):
        ended = await quinn.event("error", "echoed")
        assert ended["event"] == "error"
        assert not echo.connections


def _has_served(echo: EchoNode, count: int) -> bool:
    return len(echo.connections) == count


async def test_quinn_reconnects_after_its_restart() -> None:
    """Another key on the same address is another peer; both are served side by side."""
    async with echo_node() as echo:
        for count in (1, 2):
            async with program(
                "quinn-peer", "client", connect=f"{HOST}:{echo.port}", bytes=1000
            ) as quinn:
                assert (await quinn.event("echoed", "error"))["event"] == "echoed"
            await eventually(partial(_has_served, echo, count))
        assert echo.connections[0].peer_id != echo.connections[1].peer_id


def test_the_programs_are_where_they_should_be(peers: Path) -> None:
    assert (peers / "quinn-peer").is_file()
