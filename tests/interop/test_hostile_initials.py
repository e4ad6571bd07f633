"""Well-protected first packets with bad contents: anyone can make these, no key is secret yet."""

import os
import random
import socket
from collections.abc import Iterator

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.crypto import CryptoPair

from anyreach import Node

from .nodes import HOST, EchoNode, check_echo, config, echo_node

VERSION_1 = 1
PACKET_NUMBER_BYTES = 2
TAG_BYTES = 16

# RFC 9000 section 14.1: smaller first packets are ignored for their size.
INITIAL_BYTES = 1200


def initial(payload: bytes, *, number: int = 0, destination: bytes | None = None) -> bytes:
    """An Initial packet of version 1 with the given frames, padded to the size it must have."""
    destination = destination or os.urandom(8)
    source = os.urandom(8)
    start = (
        bytes([0xC0 | (PACKET_NUMBER_BYTES - 1)])
        + VERSION_1.to_bytes(4, "big")
        + bytes([len(destination)])
        + destination
        + bytes([len(source)])
        + source
        + b"\x00"  # no token
    )
    # Two bytes hold the length.
    room = INITIAL_BYTES - len(start) - 2 - PACKET_NUMBER_BYTES - TAG_BYTES
    payload = payload[:room].ljust(room, b"\x00")
    length = PACKET_NUMBER_BYTES + room + TAG_BYTES
    header = start + (0x4000 | length).to_bytes(2, "big") + number.to_bytes(2, "big")
    keys = CryptoPair()
    keys.setup_initial(cid=destination, is_client=True, version=VERSION_1)
    packet: bytes = keys.encrypt_packet(header, payload, number)
    return packet


def crypto(offset: int, data: bytes) -> bytes:
    """A CRYPTO frame."""
    return b"\x06" + encode_uint_var(offset) + encode_uint_var(len(data)) + data


BAD = {
    "unknown frame type": encode_uint_var(0x3F5A) + bytes(20),
    "frame type not shortest": b"\x40\x06" + crypto(0, b"\x01")[1:],
    "nothing but padding": b"",
    "pings": b"\x01" * 1000,
    "acknowledgement of what was never sent": b"\x02" + encode_uint_var(1000) + bytes(3),
    "acknowledgement below zero": b"\x02" + bytes([1, 0, 0, 60]),
    "stream data before the handshake": b"\x0a\x00\x05hello",
    "handshake done": b"\x1e",
    "observed address": encode_uint_var(0x9F81A6) + b"\x00" + bytes(6),
    "address to try": encode_uint_var(0x3D7E90) + b"\x00" + bytes(6),
    "close": b"\x1c" + bytes(3),
    "empty handshake message": crypto(0, b"\x01\x00\x00\x00"),
    "handshake data that is noise": crypto(0, random.Random(1).randbytes(1000)),
    "handshake message of 16 MiB": crypto(0, b"\x01\xff\xff\xff" + bytes(1000)),
    "handshake data far ahead": crypto(2**61, b"\x00" * 100),
    "handshake data beyond the end": crypto(2**62 - 2, b"\x00" * 100),
    "truncated frame": b"\x00" * 1130 + b"\x06\x00\x7f\xff",
    "server hello": crypto(0, b"\x02\x00\x00\x26\x03\x03" + bytes(36)),
}


def client_hellos(seed: int) -> Iterator[bytes]:
    """Noise behind a plausible start of a ClientHello."""
    rng = random.Random(seed)
    for _ in range(100):
        body = b"\x03\x03" + rng.randbytes(rng.randrange(0, 900))
        yield crypto(0, b"\x01" + len(body).to_bytes(3, "big") + body)


async def assert_serves(echo: EchoNode, node: Node) -> None:
    connection = await node.connect(f"{echo.node.peer_id}@{HOST}:{echo.port}")
    await check_echo(connection, b"still here" * 100)


@pytest.mark.parametrize("name", BAD)
async def test_bad_contents(name: str) -> None:
    async with echo_node() as echo, Node(config()) as other:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((HOST, echo.port))
            destination = os.urandom(8)
            for number in range(3):
                sender.send(initial(BAD[name], number=number, destination=destination))
        await assert_serves(echo, other)
        assert len(echo.connections) == 1


async def test_a_flood_of_strange_hellos() -> None:
    """Each is a connection attempt of its own; all together cost the node no more than time."""
    async with echo_node() as echo, Node(config()) as other:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((HOST, echo.port))
            for hello in client_hellos(seed=2):
                sender.send(initial(hello))
        await assert_serves(echo, other)
        assert len(echo.connections) == 1
        assert echo.node.metrics().rejected_total["handshake"] > 0
