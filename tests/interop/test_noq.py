"""Address discovery (draft-ietf-quic-address-discovery-00) and multipath with stock noq.

The engine is the same, but used as its authors do: without our TLS session, packet layer and
socket between it and the wire.
"""

import ipaddress

import pytest

from anyreach import Node

from .nodes import HOST, check_echo, config, echo_node, eventually, port_of
from .programs import program

pytestmark = pytest.mark.usefixtures("peers")


def canonical(address: str) -> str:
    """``host:port`` with an IPv4-mapped IPv6 address written as IPv4."""
    host, _, port = address.rpartition(":")
    ip = ipaddress.ip_address(host.strip("[]"))
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return f"{mapped}:{port}" if mapped else address


async def test_addresses_are_reported_when_noq_dials() -> None:
    async with (
        echo_node() as echo,
        program(
            "noq-peer", "client", connect=f"{HOST}:{echo.port}", bytes=300_000, hold="true"
        ) as noq,
    ):
        connected = await noq.event("connected", "error")
        assert connected["peer_id"] == str(echo.node.peer_id)
        assert (await noq.event("multipath"))["enabled"] is True
        observed = (await noq.event("observed"))["address"]
        await eventually(lambda: bool(echo.connections))
        [connection] = echo.connections
        assert connection.path is not None
        # What we told noq is where its packets come from, what it told us is where we listen.
        assert canonical(observed) == connection.path.remote
        await eventually(lambda: connection.observed_address == f"{HOST}:{echo.port}")
        assert (await noq.event("echoed", "error"))["event"] == "echoed"


async def test_addresses_are_reported_when_noq_is_dialed() -> None:
    async with program("noq-peer", "server") as noq, Node(config()) as node:
        listening = await noq.event("listening")
        connection = await node.connect(f"{listening['peer_id']}@{listening['address']}")
        here = f"{HOST}:{port_of(node)}"
        assert (await noq.event("connected"))["remote"] == here
        observed = (await noq.event("observed"))["address"]
        assert canonical(observed) == listening["address"]
        await eventually(lambda: connection.observed_address == here)
        await check_echo(connection, bytes(300_000))


async def test_paths_are_identified_alike() -> None:
    """The first path of a connection is path 0 on both sides and carries the data."""
    async with program("noq-peer", "server") as noq, Node(config()) as node:
        listening = await noq.event("listening")
        connection = await node.connect(f"{listening['peer_id']}@{listening['address']}")
        [path] = connection.paths
        assert (path.id, path.method, path.remote) == (0, "direct", listening["address"])
        assert path.current


async def test_an_ipv4_address_is_reported_as_ipv4() -> None:
    """OBSERVED_ADDRESS has a type for each family; a mapped address belongs to neither."""
    async with program("noq-peer", "server") as noq, Node(config()) as node:
        listening = await noq.event("listening")
        await node.connect(f"{listening['peer_id']}@{listening['address']}")
        assert (await noq.event("observed"))["address"] == listening["address"]
