"""HTTP/2 with hyper-h2 over TLS over TCP: a client's connection, and a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamReset,
    WindowUpdated,
)
from h2.events import StreamEnded as StreamEndedEvent
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes
from h2.settings import Settings as H2Settings

from . import tls_over_tcp
from .h3 import HOST
from .streams import Handlers, RequestStream, Settings
from .tls_over_tcp import Identity, TlsStream
from .wire import Capsule, CapsuleType, Fields

WINDOW = 1 << 20


class _Stream(RequestStream):
    """HTTP/2 has no datagrams of its own: they are capsules (RFC 9297 section 2)."""

    def __init__(self, connection: "_Connection", stream_id: int) -> None:
        super().__init__()
        self._connection = connection
        self._id = stream_id
        self._unsent = b""
        self._ending = False

    def send_data(self, data: bytes) -> None:
        self._unsent += data
        self.flush()

    def send_datagram(self, payload: bytes) -> None:
        self.send_capsule(Capsule(CapsuleType.DATAGRAM, payload))

    def respond(self, status: int, fields: Fields) -> None:
        self._connection.send_fields(self._id, [(":status", str(status)), *fields])

    def end(self) -> None:
        self._ending = True
        self.flush()

    def abort(self) -> None:
        self._connection.reset(self._id)

    def flush(self) -> None:
        """Send what the flow control windows allow."""
        http = self._connection.http
        try:
            while self._unsent:
                room = min(http.local_flow_control_window(self._id), http.max_outbound_frame_size)
                if room <= 0:
                    break
                http.send_data(self._id, self._unsent[:room])
                self._unsent = self._unsent[room:]
            if self._ending and not self._unsent:
                self._ending = False
                http.end_stream(self._id)
        except (ProtocolError, StreamClosedError):
            # The stream is over; whoever reads it learns why.
            self._unsent = b""
        self._connection.transmit()


class _Connection:
    def __init__(self, tls: TlsStream, *, is_client: bool) -> None:
        self._tls = tls
        self.http = H2Connection(H2Configuration(client_side=is_client, header_encoding="utf-8"))
        settings = {SettingCodes.INITIAL_WINDOW_SIZE: WINDOW}
        if not is_client:
            settings[SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
        self.http.local_settings = H2Settings(client=is_client, initial_values=settings)
        self.http.initiate_connection()
        self.http.increment_flow_control_window(WINDOW)
        self.streams: dict[int, _Stream] = {}
        self.transmit()

    async def run(self) -> None:
        """Read until the connection ends."""
        reason = "the connection ended"
        try:
            while data := await self._tls.read():
                for event in self.http.receive_data(data):
                    self.on_event(event)
                self.transmit()
        except (ConnectionError, ProtocolError) as error:
            reason = repr(error)
        finally:
            self.transmit()
            for stream in self.streams.values():
                stream.ended(None, reason)

    def on_event(self, event: Event) -> None:
        match event:
            case DataReceived():
                assert event.stream_id is not None
                assert event.flow_controlled_length is not None
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.stream(event.stream_id).received_data(event.data or b"", ended=False)
            case StreamEndedEvent():
                assert event.stream_id is not None
                self.stream(event.stream_id).received_data(b"", ended=True)
            case StreamReset():
                assert event.stream_id is not None
                self.stream(event.stream_id).ended(int(event.error_code or 0), "reset")
            case ConnectionTerminated():
                for stream in self.streams.values():
                    stream.ended(int(event.error_code or 0), "connection closed")
            case WindowUpdated() | RemoteSettingsChanged():
                for stream in self.streams.values():
                    stream.flush()

    def stream(self, stream_id: int) -> _Stream:
        return self.streams.setdefault(stream_id, _Stream(self, stream_id))

    def send_fields(self, stream_id: int, fields: Fields) -> None:
        self.http.send_headers(stream_id, fields)
        self.transmit()

    def reset(self, stream_id: int) -> None:
        self.http.reset_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
        self.transmit()

    def transmit(self) -> None:
        if data := self.http.data_to_send():
            self._tls.write(data)


class Client(_Connection):
    """A `Carrier` over HTTP/2."""

    def __init__(self, tls: TlsStream) -> None:
        super().__init__(tls, is_client=True)
        self.settings = Settings()

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event, RemoteSettingsChanged):
            self.settings.received(
                {int(code): change.new_value for code, change in event.changed_settings.items()}
            )
        elif isinstance(event, ResponseReceived):
            assert event.stream_id is not None
            fields = [(str(name), str(value)) for name, value in event.headers or []]
            self.stream(event.stream_id).received_fields(fields)

    async def start(self, fields: Fields) -> RequestStream:
        settings = await self.settings.get()
        # RFC 8441 section 3.
        assert settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL) == 1, settings
        stream = self.stream(self.http.get_next_available_stream_id())
        self.send_fields(stream._id, fields)
        return stream


class _Server(_Connection):
    def __init__(self, tls: TlsStream, handlers: Handlers) -> None:
        super().__init__(tls, is_client=False)
        self._handlers = handlers

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event, RequestReceived):
            assert event.stream_id is not None
            fields = [(str(name), str(value)) for name, value in event.headers or []]
            self._handlers.start(fields, self.stream(event.stream_id))


@asynccontextmanager
async def client(port: int, *, certificate: Path, host: str = HOST) -> AsyncIterator[Client]:
    """A connection to the proxy at this port, whose certificate is checked."""
    async with tls_over_tcp.connect(host, port, alpn="h2", certificate=certificate) as tls:
        http = Client(tls)
        task = asyncio.create_task(http.run())
        try:
            yield http
        finally:
            http.http.close_connection()
            http.transmit()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()


@asynccontextmanager
async def server(handlers: Handlers, *, certificate: Path, key: Path) -> AsyncIterator[int]:
    """Serve on a free port, which it yields."""

    async def handle(tls: TlsStream) -> None:
        await _Server(tls, handlers).run()

    identity = Identity(certificate, key)
    async with tls_over_tcp.serve(HOST, handle, alpn="h2", identity=identity) as port:
        yield port
