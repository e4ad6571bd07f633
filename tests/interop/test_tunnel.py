"""Our client of UDP proxies against a proxy written from the specifications.

Two nodes whose packets go through the proxy: one has a tunnel and an address there, the other
sends to that address, or is dialed through the tunnel. The nodes' own TLS and QUIC run inside.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from anyreach import Node, _core
from anyreach._bridge import current_bridge
from anyreach.config import P2pOptions

from .aioquic_mlkem import Group, mlkem
from .conftest import CertificateFiles
from .masque import h2_hyper, h3
from .masque.proxy import Behaviour, UdpProxy
from .masque.streams import Handlers
from .masque.wire import field
from .nodes import HOST, check_echo, config, echo_node, port_of

CARRIERS = {"h3": h3.server, "h2": h2_hyper.server}

BEHAVIOURS = {
    "compressed": Behaviour(),
    "uncompressed": Behaviour(compress=False),
    "early": Behaviour(early=True),
    "rejecting": Behaviour(reject=True),
}

OPTIONS = P2pOptions(serve_relay=False)

# What is echoed, and what a packet within a tunnel holds at most: that many went by the proxy.
SIZE = 100_000
LARGEST_PACKET = 1500


@pytest.fixture(autouse=True)
def _post_quantum() -> Iterator[None]:
    with mlkem(Group.X25519MLKEM768):
        yield


class Site:
    """A proxy and how to reach it."""

    def __init__(self, carrier: str, proxy: UdpProxy, handlers: Handlers, port: int) -> None:
        self.carrier = carrier
        self.proxy = proxy
        self.handlers = handlers
        self.port = port


@pytest.fixture(params=list(CARRIERS))
def carrier(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@asynccontextmanager
async def proxied(
    carrier: str, files: CertificateFiles, behaviour: Behaviour | None = None
) -> AsyncIterator[Site]:
    """A proxy. That our client broke no rule is checked in the end."""
    proxy = UdpProxy(behaviour)
    server: Callable[..., AbstractAsyncContextManager[int]] = CARRIERS[carrier]
    async with (
        Handlers(proxy.handle) as handlers,
        server(handlers, certificate=files.certificate, key=files.key) as port,
    ):
        yield Site(carrier, proxy, handlers, port)
        assert handlers.violations == []


def endpoint(node: Node) -> _core.Endpoint:
    assert node._running is not None
    return node._running._endpoint


@asynccontextmanager
async def tunnel(node: Node, site: Site, files: CertificateFiles) -> AsyncIterator[_core.Tunnel]:
    """A tunnel of this node to the proxy, which is up.

    Nodes open such tunnels for themselves, to relays that are nodes. An ordinary certificate at the
    other end they expect only behind an HTTP proxy that may end TLS: that one is named here, and
    not used.
    """
    address = [(HOST, site.port)]
    opened = endpoint(node).open_tunnel(
        peer_id=None,
        host="localhost",
        port=site.port,
        udp=address,
        tcp=address,
        plan=[(site.carrier, 0.0)],
        proxy="http://127.0.0.1:9",
        ca_file=str(files.certificate),
        allow_tls_inspection=True,
    )
    bridge = current_bridge()
    seen = 0
    try:
        async with asyncio.timeout(15):
            while opened.state != "up":
                assert opened.state == "connecting", opened.attempts
                seen = await bridge.wait(opened.poll_change, seen)
        yield opened
    finally:
        opened.close()


@pytest.mark.parametrize("behaviour", list(BEHAVIOURS))
async def test_a_node_is_reached_at_its_address_at_the_proxy(
    carrier: str, behaviour: str, certificate: CertificateFiles
) -> None:
    async with (
        proxied(carrier, certificate, BEHAVIOURS[behaviour]) as site,
        echo_node(**OPTIONS) as echo,
        tunnel(echo.node, site, certificate) as opened,
        Node(config(**OPTIONS)) as node,
    ):
        [(ip, port)] = opened.public_addresses
        assert (ip, port) != (HOST, echo.port)
        connection = await node.connect(f"{echo.node.peer_id}@{ip}:{port}")
        await check_echo(connection, os.urandom(SIZE))
        assert site.proxy.packets > SIZE / LARGEST_PACKET
        [fields] = site.proxy.requests
        assert field(fields, ":path") == "/.well-known/masque/udp/%2A/%2A/"
        assert field(fields, "connect-udp-bind") == "?1"
        assert field(fields, "capsule-protocol") == "?1"


@pytest.mark.parametrize("behaviour", list(BEHAVIOURS))
async def test_a_node_dials_through_the_proxy(
    carrier: str, behaviour: str, certificate: CertificateFiles
) -> None:
    async with (
        proxied(carrier, certificate, BEHAVIOURS[behaviour]) as site,
        echo_node(**OPTIONS) as echo,
        Node(config(**OPTIONS)) as node,
        tunnel(node, site, certificate) as opened,
    ):
        dial = endpoint(node).dial(
            HOST, port_of(echo.node), bytes(echo.node.peer_id), 10.0, via=opened
        )
        core = await current_bridge().wait(dial.poll)
        dial.keep()
        connection = await node.connect(echo.node.peer_id)
        assert core.peer_id == bytes(echo.node.peer_id)
        await check_echo(connection, os.urandom(SIZE))
        assert site.proxy.packets > SIZE / LARGEST_PACKET


async def test_a_proxy_without_bind_is_reported(
    carrier: str, certificate: CertificateFiles
) -> None:
    async with (
        proxied(carrier, certificate, Behaviour(bind=False)) as site,
        Node(config(**OPTIONS)) as node,
    ):
        with pytest.raises(AssertionError, match="501"):
            async with tunnel(node, site, certificate):
                pass
