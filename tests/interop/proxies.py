"""Proxies to test clients with, and the ways to them: every client against every proxy."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Unpack

from anyreach import Node
from anyreach.config import P2pOptions

from .conftest import CertificateFiles
from .masque import h2_hyper, h3, h3_qh3
from .masque.proxy import Behaviour, UdpProxy
from .masque.streams import H2_PROTOCOL_ERROR, H3_DATAGRAM_ERROR, Carrier, Handlers
from .nodes import config

H3_MESSAGE_ERROR = 0x10E


@dataclass(frozen=True)
class Way:
    """A client's HTTP, and a server of these tests it can talk to."""

    client: Callable[..., AbstractAsyncContextManager[Carrier]]
    server: Callable[..., AbstractAsyncContextManager[int]]
    aborted: frozenset[int]
    """How a stream is reset after a violation of the Capsule Protocol (RFC 9297 section 3.3)."""
    largest: int
    """Bytes of UDP payload that pass."""


# HTTP/3 says both: malformed messages, and its IANA registration of the other code.
_H3 = frozenset({H3_DATAGRAM_ERROR, H3_MESSAGE_ERROR})

WAYS = {
    # Packets of 1200 bytes, less what is around a payload.
    "h3-aioquic": Way(h3.client, h3.server, _H3, 1100),
    "h3-qh3": Way(h3_qh3.client, h3.server, _H3, 1100),
    "h2-hyper": Way(h2_hyper.client, h2_hyper.server, frozenset({H2_PROTOCOL_ERROR}), 60_000),
}


@asynccontextmanager
async def python_proxy(
    way: Way, files: CertificateFiles, behaviour: Behaviour | None = None
) -> AsyncIterator[int]:
    """The port of a proxy of these tests, reached by this way."""
    proxy = UdpProxy(behaviour)
    async with (
        Handlers(proxy.handle) as handlers,
        way.server(handlers, certificate=files.certificate, key=files.key) as port,
    ):
        yield port


def free_port() -> int:
    """A port that is free for UDP and TCP on all loopback addresses."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as tcp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with socket.socket(type=socket.SOCK_DGRAM) as udp:
                udp.bind(("127.0.0.1", port))
                return port


@asynccontextmanager
async def relay(files: CertificateFiles, **options: Unpack[P2pOptions]) -> AsyncIterator[int]:
    """The port of a node of ours that relays for ordinary clients, to IPv4 loopback only."""
    port = free_port()
    options.setdefault("allow_anonymous_relay", True)
    options.setdefault("relay_allow_targets", ("127.0.0.0/8",))
    options["https"] = f"127.0.0.1:{port}"
    options["cert_file"] = files.certificate
    options["key_file"] = files.key
    async with Node(config(**options)):
        yield port
