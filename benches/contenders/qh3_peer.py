"""qh3, which has X25519MLKEM768 and a core in Rust."""

import asyncio
import importlib.metadata
import ssl
import sys

from qh3.asyncio.client import connect
from qh3.asyncio.protocol import QuicConnectionProtocol
from qh3.asyncio.server import serve
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.events import DatagramFrameReceived

from . import asyncio_quic
from .protocol import ALPN, CONNECTION_WINDOW, STREAM_WINDOW, Contender, Setting, python_program

# Announced for datagrams; the size of packets is left to its own path MTU discovery.
DATAGRAM_FRAME = 1452


def contender(setting: Setting) -> Contender:
    files = (setting.certificate, setting.key)
    version = importlib.metadata.version("qh3")
    return Contender(
        name="qh3",
        server=python_program("qh3_peer", "server", *files),
        client=python_program("qh3_peer", "client", *files),
        description=f"qh3 {version}, asyncio; ECDSA P-256 certificate of the server only",
        bulk_bytes=24 << 20,
    )


def library(certificate: str, key: str) -> asyncio_quic.Library:
    def configuration(server: bool) -> QuicConfiguration:
        made = QuicConfiguration(
            is_client=not server,
            alpn_protocols=[ALPN],
            max_data=CONNECTION_WINDOW,
            max_stream_data=STREAM_WINDOW,
            max_datagram_frame_size=DATAGRAM_FRAME,
            server_name="localhost",
            verify_mode=ssl.CERT_NONE,
        )
        if server:
            made.load_cert_chain(certificate, key)
        return made

    return asyncio_quic.Library(
        connect, serve, QuicConnectionProtocol, DatagramFrameReceived, configuration
    )


def main(role: str, certificate: str, key: str, target: str = "") -> None:
    names = library(certificate, key)
    if role == "server":
        asyncio.run(asyncio_quic.serve(names))
    else:
        asyncio.run(asyncio_quic.run_client(names, target))


if __name__ == "__main__":
    main(*sys.argv[1:])
