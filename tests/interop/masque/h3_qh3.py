"""HTTP/3 with qh3: a client's connection. A second implementation of QUIC, TLS and HTTP/3."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qh3.asyncio.client import connect
from qh3.asyncio.protocol import QuicConnectionProtocol
from qh3.h3.connection import H3Connection, Setting
from qh3.h3.events import DatagramReceived, DataReceived, HeadersReceived
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.events import ConnectionTerminated, QuicEvent, StreamReset

from .h3 import HOST, MAX_DATAGRAM_FRAME
from .streams import H3_DATAGRAM_ERROR, RequestStream, Settings
from .wire import Fields


class _Stream(RequestStream):
    def __init__(self, connection: "Client", stream_id: int) -> None:
        super().__init__()
        self._connection = connection
        self._id = stream_id

    def send_data(self, data: bytes) -> None:
        self._connection.http.send_data(self._id, data, end_stream=False)
        self._connection.transmit()

    def send_datagram(self, payload: bytes) -> None:
        # Its flow ID is the Quarter Stream ID.
        self._connection.http.send_datagram(self._id // 4, payload)
        self._connection.transmit()

    def respond(self, status: int, fields: Fields) -> None:
        raise NotImplementedError("a client")

    def end(self) -> None:
        self._connection.http.send_data(self._id, b"", end_stream=True)
        self._connection.transmit()

    def abort(self) -> None:
        self._connection.abort(self._id)


class Client(QuicConnectionProtocol):
    """A `Carrier` over HTTP/3."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.settings = Settings()
        self._streams: dict[int, _Stream] = {}

    async def start(self, fields: Fields) -> RequestStream:
        settings = await self.settings.get()
        # RFC 9220 section 3 and RFC 9297 section 2.1.1.
        assert settings.get(Setting.ENABLE_CONNECT_PROTOCOL) == 1, settings
        assert settings.get(Setting.H3_DATAGRAM) == 1, settings
        stream_id = self._quic.get_next_available_stream_id()
        stream = self._streams[stream_id] = _Stream(self, stream_id)
        encoded = [(name.encode(), value.encode()) for name, value in fields]
        self.http.send_headers(stream_id, encoded)
        self.transmit()
        return stream

    def quic_event_received(self, event: QuicEvent) -> None:
        for happened in self.http.handle_event(event):
            if isinstance(happened, HeadersReceived):
                stream = self._streams[happened.stream_id]
                stream.received_fields([(n.decode(), v.decode()) for n, v in happened.headers])
                if happened.stream_ended:
                    stream.received_data(b"", ended=True)
            elif isinstance(happened, DataReceived):
                stream = self._streams[happened.stream_id]
                stream.received_data(bytes(happened.data), ended=happened.stream_ended)
            elif isinstance(happened, DatagramReceived):
                self._streams[happened.flow_id * 4].received_datagram(bytes(happened.data))
        if self.http._received_settings is not None:
            self.settings.received(self.http._received_settings)
        if isinstance(event, StreamReset) and event.stream_id in self._streams:
            self._streams[event.stream_id].ended(event.error_code, "reset")
        elif isinstance(event, ConnectionTerminated):
            for stream in self._streams.values():
                stream.ended(event.error_code, f"connection closed: {event.reason_phrase}")

    def abort(self, stream_id: int) -> None:
        self._quic.reset_stream(stream_id, H3_DATAGRAM_ERROR)
        self._quic.stop_stream(stream_id, H3_DATAGRAM_ERROR)
        self.transmit()


@asynccontextmanager
async def client(port: int, *, certificate: Path, host: str = HOST) -> AsyncIterator[Client]:
    """A connection to the proxy at this port, whose certificate is checked."""
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["h3"],
        server_name="localhost",
        max_datagram_frame_size=MAX_DATAGRAM_FRAME,
    )
    configuration.load_verify_locations(cafile=str(certificate))
    async with connect(host, port, configuration=configuration, create_protocol=Client) as http:
        assert isinstance(http, Client)
        yield http
