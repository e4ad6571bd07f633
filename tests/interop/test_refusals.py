"""What is no node, at our port: refused by name or ignored, and the node goes on."""

import asyncio
import random
import socket

import pytest

from anyreach import Node

from .aioquic_mlkem import Group, mlkem
from .aioquic_peer import refusal
from .nodes import HOST, EchoNode, check_echo, config, echo_node, eventually
from .programs import program

NODE_ALPN = "anyreach/1"

# RFC 9001 section 4.8: 0x100 and the TLS alert.
HANDSHAKE_FAILURE = 0x100 + 40
UNSUPPORTED_CERTIFICATE = 0x100 + 43
NO_APPLICATION_PROTOCOL = 0x100 + 120

# An ML-KEM ClientHello takes two datagrams, and the engine (noq 1.4.0) does not send the alert of
# a handshake that fails with the second: then the client hears nothing. Long enough for an answer.
SILENCE = 2.0


async def assert_alive(echo: EchoNode) -> None:
    """The node still takes a connection and serves it."""
    async with Node(config()) as other:
        connection = await other.connect(f"{echo.node.peer_id}@{HOST}:{echo.port}")
        await check_echo(connection, b"alive" * 1000)


async def test_classical_aioquic_is_refused() -> None:
    async with echo_node() as echo:
        refused = await refusal(echo.port, alpn=NODE_ALPN)
        assert refused is not None
        assert refused.error_code == HANDSHAKE_FAILURE
        assert "handshake" in _counted(echo)
        assert not echo.connections
        await assert_alive(echo)


@pytest.mark.parametrize("group", list(Group), ids=lambda group: group.name.lower())
async def test_aioquic_without_raw_public_keys_is_refused(group: Group) -> None:
    async with echo_node() as echo:
        with mlkem(group):
            refused = await refusal(echo.port, alpn=NODE_ALPN, timeout=SILENCE)
        if refused is not None:
            assert refused.error_code in {HANDSHAKE_FAILURE, UNSUPPORTED_CERTIFICATE}
        assert not echo.connections
        await assert_alive(echo)


async def test_another_protocol_is_refused() -> None:
    async with echo_node() as echo:
        with mlkem(Group.X25519MLKEM768):
            refused = await refusal(echo.port, alpn="h2", timeout=SILENCE)
        if refused is not None:
            assert refused.error_code in {NO_APPLICATION_PROTOCOL, HANDSHAKE_FAILURE}
        assert not echo.connections
        await assert_alive(echo)


def _counted(echo: EchoNode) -> set[str]:
    """The reasons for which the node has refused something."""
    return {reason for reason, count in echo.node.metrics().rejected_total.items() if count}


def junk(seed: int) -> list[bytes]:
    """Datagrams no node sends: empty, tiny, random, and other protocols."""
    rng = random.Random(seed)
    stun = bytes.fromhex("000100002112a442") + rng.randbytes(12)
    dns = bytes.fromhex("abcd01000001000000000000076578616d706c65036f72670000010001")
    dtls = bytes.fromhex("16fefd0000000000000000") + rng.randbytes(60)
    unknown_version = bytes.fromhex("c0face1234") + rng.randbytes(1195)
    initial = bytes.fromhex("c000000001") + b"\x08" + rng.randbytes(8) + b"\x00" * 2
    datagrams = [b"", b"\x00", b"\xff", b"\x40", stun, dns, dtls, unknown_version]
    # Version 1 Initials whose protected part is noise, of all lengths that matter.
    datagrams += [initial + rng.randbytes(size) for size in (0, 1, 20, 1186, 1440)]
    datagrams += [bytes([0xD0 | i]) + initial[1:] + rng.randbytes(1186) for i in range(16)]
    datagrams += [rng.randbytes(rng.randrange(1, 1500)) for _ in range(200)]
    return datagrams


async def test_junk_is_harmless() -> None:
    async with echo_node() as echo:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((HOST, echo.port))
            for datagram in junk(seed=1):
                send(sender, datagram)
            sent = {"junk_empty", "junk_runt", "junk_stun", "junk_dtls"}
            await eventually(lambda: sent <= _counted(echo))
        assert not echo.connections
        await assert_alive(echo)


async def test_junk_in_the_middle_of_a_transfer() -> None:
    async with echo_node() as echo, Node(config()) as other:
        connection = await other.connect(f"{echo.node.peer_id}@{HOST}:{echo.port}")
        transfer = asyncio.create_task(check_echo(connection, bytes(5_000_000)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((HOST, echo.port))
            for seed in range(2, 6):
                for datagram in junk(seed):
                    send(sender, datagram)
                await asyncio.sleep(0)
        await transfer
        assert not connection.closed


@pytest.mark.usefixtures("peers")
async def test_a_killed_peer_leaves_the_node_alive() -> None:
    async with echo_node(idle_timeout=2.0, keep_alive_interval=0.5) as echo:
        async with program(
            "quinn-peer", "client", connect=f"{HOST}:{echo.port}", bytes=200_000_000
        ) as quinn:
            await quinn.event("connected", "error")
            quinn.kill()
            await quinn.exit()
        await eventually(lambda: bool(echo.connections) and echo.connections[0].closed)
        lost = echo.connections[0].close_reason
        assert lost is not None
        assert lost.reason == "timeout"
        await assert_alive(echo)


def send(sender: socket.socket, datagram: bytes) -> None:
    """Send; an ICMP error a former datagram caused is not of interest here."""
    try:
        sender.send(datagram)
    except ConnectionRefusedError:
        sender.send(datagram)
