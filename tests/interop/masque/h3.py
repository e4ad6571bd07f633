"""HTTP/3 with aioquic: a client's connection, and a server."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.h3.connection import H3Connection, Setting
from aioquic.h3.events import DatagramReceived, DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamReset

from .streams import H3_DATAGRAM_ERROR, Handlers, RequestStream, Settings
from .wire import Fields

HOST = "127.0.0.1"

# RFC 9221: any frame that fits a packet.
MAX_DATAGRAM_FRAME = 65536

# aioquic does not probe for what fits. With its 1200 bytes no packet of another QUIC connection
# would pass, whose first ones have that size themselves.
MAX_UDP_PAYLOAD = 1400

# What is left for an HTTP Datagram by a short header with its connection ID, an authentication tag,
# the frame's type and length, and the Quarter Stream ID.
MAX_HTTP_DATAGRAM = MAX_UDP_PAYLOAD - (1 + 20 + 4 + 16 + 3 + 8)


class _Http(H3Connection):
    """With HTTP Datagrams (RFC 9297 section 2.1.1), which aioquic ties to WebTransport."""

    def _get_local_settings(self) -> dict[int, int]:
        return {**super()._get_local_settings(), Setting.H3_DATAGRAM: 1}


class _Stream(RequestStream):
    def __init__(self, connection: "_Connection", stream_id: int) -> None:
        super().__init__()
        self._connection = connection
        self._id = stream_id

    def send_data(self, data: bytes) -> None:
        self._connection.http.send_data(self._id, data, end_stream=False)
        self._connection.transmit()

    def send_datagram(self, payload: bytes) -> None:
        # A larger one is dropped (RFC 9298 section 6.1); in aioquic it would block those behind it.
        if len(payload) <= MAX_HTTP_DATAGRAM:
            self._connection.http.send_datagram(self._id, payload)
            self._connection.transmit()

    def respond(self, status: int, fields: Fields) -> None:
        self._connection.send_fields(self._id, [(":status", str(status)), *fields])

    def end(self) -> None:
        self._connection.http.send_data(self._id, b"", end_stream=True)
        self._connection.transmit()

    def abort(self) -> None:
        self._connection.abort(self._id)


class _Connection(QuicConnectionProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = _Http(self._quic)
        self.streams: dict[int, _Stream] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        for happened in self.http.handle_event(event):
            if isinstance(happened, HeadersReceived):
                fields = [(name.decode(), value.decode()) for name, value in happened.headers]
                stream = self.stream(happened.stream_id)
                self.fields_received(stream, fields)
                if happened.stream_ended:
                    stream.received_data(b"", ended=True)
            elif isinstance(happened, DataReceived):
                stream = self.stream(happened.stream_id)
                stream.received_data(happened.data, ended=happened.stream_ended)
            elif isinstance(happened, DatagramReceived):
                self.stream(happened.stream_id).received_datagram(happened.data)
        if isinstance(event, StreamReset) and event.stream_id in self.streams:
            self.streams[event.stream_id].ended(event.error_code, "reset")
        elif isinstance(event, ConnectionTerminated):
            for stream in self.streams.values():
                stream.ended(event.error_code, f"connection closed: {event.reason_phrase}")

    def fields_received(self, stream: _Stream, fields: Fields) -> None:
        raise NotImplementedError

    def stream(self, stream_id: int) -> _Stream:
        return self.streams.setdefault(stream_id, _Stream(self, stream_id))

    def send_fields(self, stream_id: int, fields: Fields) -> None:
        encoded = [(name.encode(), value.encode()) for name, value in fields]
        self.http.send_headers(stream_id, encoded)
        self.transmit()

    def abort(self, stream_id: int) -> None:
        self._quic.reset_stream(stream_id, H3_DATAGRAM_ERROR)
        self._quic.stop_stream(stream_id, H3_DATAGRAM_ERROR)
        self.transmit()


class Client(_Connection):
    """A `Carrier` over HTTP/3."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings()

    def quic_event_received(self, event: QuicEvent) -> None:
        super().quic_event_received(event)
        if self.http.received_settings is not None:
            self.settings.received(self.http.received_settings)

    def fields_received(self, stream: _Stream, fields: Fields) -> None:
        stream.received_fields(fields)

    async def start(self, fields: Fields) -> RequestStream:
        settings = await self.settings.get()
        # RFC 9220 section 3 and RFC 9297 section 2.1.1.
        assert settings.get(Setting.ENABLE_CONNECT_PROTOCOL) == 1, settings
        assert settings.get(Setting.H3_DATAGRAM) == 1, settings
        stream_id = self._quic.get_next_available_stream_id()
        self.send_fields(stream_id, fields)
        return self.stream(stream_id)


class _Server(_Connection):
    def __init__(self, *args: Any, handlers: Handlers, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._handlers = handlers

    def fields_received(self, stream: _Stream, fields: Fields) -> None:
        self._handlers.start(fields, stream)


@asynccontextmanager
async def client(port: int, *, certificate: Path, host: str = HOST) -> AsyncIterator[Client]:
    """A connection to the proxy at this port, whose certificate is checked."""
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["h3"],
        server_name="localhost",
        max_datagram_frame_size=MAX_DATAGRAM_FRAME,
        max_datagram_size=MAX_UDP_PAYLOAD,
    )
    configuration.load_verify_locations(cafile=str(certificate))
    assert configuration.verify_mode is None or configuration.verify_mode == ssl.CERT_REQUIRED
    async with connect(host, port, configuration=configuration, create_protocol=Client) as http:
        assert isinstance(http, Client)
        yield http


@asynccontextmanager
async def server(handlers: Handlers, *, certificate: Path, key: Path) -> AsyncIterator[int]:
    """Serve on a free port, which it yields."""
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=["h3"],
        max_datagram_frame_size=MAX_DATAGRAM_FRAME,
        max_datagram_size=MAX_UDP_PAYLOAD,
    )
    configuration.load_cert_chain(certificate, key)
    listener = await serve(
        HOST,
        0,
        configuration=configuration,
        create_protocol=lambda *args, **kwargs: _Server(*args, handlers=handlers, **kwargs),
    )
    try:
        assert listener._transport is not None
        yield listener._transport.get_extra_info("sockname")[1]
    finally:
        listener.close()
