"""aioquic, with the ML-KEM plug-in of the interop tests."""

import asyncio
import importlib.metadata
import ssl
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import DatagramFrameReceived

from interop.aioquic_mlkem import Group, mlkem

from . import asyncio_quic
from .protocol import ALPN, CONNECTION_WINDOW, STREAM_WINDOW, Contender, Setting, python_program

# The largest payload an Ethernet frame carries over IPv6; the others find it by probing.
MTU = 1452


def contender(setting: Setting) -> Contender:
    files = (setting.certificate, setting.key)
    version = importlib.metadata.version("aioquic")
    return Contender(
        name="aioquic",
        server=python_program("aioquic_peer", "server", *files),
        client=python_program("aioquic_peer", "client", *files),
        description=f"aioquic {version} with an ML-KEM plug-in, asyncio, CUBIC, {MTU}-byte "
        "datagrams; ECDSA P-256 certificate of the server only",
        bulk_bytes=8 << 20,
    )


def library(certificate: str, key: str) -> asyncio_quic.Library:
    def configuration(server: bool) -> QuicConfiguration:
        made = QuicConfiguration(
            is_client=not server,
            alpn_protocols=[ALPN],
            congestion_control_algorithm="cubic",
            max_data=CONNECTION_WINDOW,
            max_stream_data=STREAM_WINDOW,
            max_datagram_size=MTU,
            max_datagram_frame_size=MTU,
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
    with mlkem(Group.X25519MLKEM768):
        if role == "server":
            asyncio.run(asyncio_quic.serve(names))
        else:
            asyncio.run(asyncio_quic.run_client(names, target))


if __name__ == "__main__":
    main(*sys.argv[1:])
