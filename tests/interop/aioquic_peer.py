"""aioquic as a peer: an echo server, and a client that checks the echo."""

import contextlib
import ssl
from collections.abc import AsyncIterator

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)

from .conftest import CertificateFiles

HOST = "127.0.0.1"
ALPN = "echo"

_connection_limit = 4 << 20


class _Echo(QuicConnectionProtocol):
    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, event.data, event.end_stream)


class Client(QuicConnectionProtocol):
    """Remembers how far the connection came and why it ended."""

    terminated: ConnectionTerminated | None = None
    completed = False

    def quic_event_received(self, event: QuicEvent) -> None:
        super().quic_event_received(event)
        self.completed |= isinstance(event, HandshakeCompleted)
        if isinstance(event, ConnectionTerminated):
            self.terminated = event

    async def check_echo(self, data: bytes) -> None:
        """Send on a new stream and compare what comes back."""
        reader, writer = await self.create_stream()
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data


@contextlib.asynccontextmanager
async def echo_server(files: CertificateFiles, alpn: str = ALPN) -> AsyncIterator[int]:
    """Serve on a free port, which it yields."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[alpn])
    configuration.load_cert_chain(files.certificate, files.key)
    server = await serve(HOST, 0, configuration=configuration, create_protocol=_Echo)
    try:
        assert server._transport is not None
        yield server._transport.get_extra_info("sockname")[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def client(port: int, *, alpn: str = ALPN) -> AsyncIterator[Client]:
    """A connection to a peer whose certificate is not checked."""
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=[alpn],
        server_name="localhost",
        verify_mode=ssl.CERT_NONE,
        max_data=_connection_limit,
        max_stream_data=_connection_limit,
    )
    async with connect(HOST, port, configuration=configuration, create_protocol=Client) as quic:
        assert isinstance(quic, Client)
        yield quic


async def refusal(
    port: int, *, alpn: str = ALPN, timeout: float = 10.0
) -> ConnectionTerminated | None:
    """How a peer refuses us, or None if it falls silent for `timeout` seconds.

    Raises:
        AssertionError: it did not refuse.
    """
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=[alpn],
        server_name="localhost",
        verify_mode=ssl.CERT_NONE,
        idle_timeout=timeout,
    )
    async with connect(
        HOST, port, configuration=configuration, create_protocol=Client, wait_connected=False
    ) as quic:
        assert isinstance(quic, Client)
        quic.transmit()
        await quic.wait_closed()
        assert not quic.completed, "the peer took us"
        assert quic.terminated is not None
        return None if quic.terminated.reason_phrase == "Idle timeout" else quic.terminated
