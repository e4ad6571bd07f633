"""aioquic as a node: greets like one, and sends and takes the extension frames.

It can say that it speaks multipath, on which our NAT traversal builds, and puts up with the frames
of it; but it stays on path 0, whose packets look as without.

To be used inside :func:`.aioquic_mlkem.mlkem` and :func:`.aioquic_raw_keys.raw_keys`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)
from aioquic.tls import Epoch

from .aioquic_raw_keys import RawKey, RawKeyContext, configuration
from .dissector import Place
from .extension_frames import (
    ExtensionFrame,
    FrameType,
    Reader,
    decode_frame,
    encode_varint,
)
from .quic_frames import decode_rest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyreach import PeerId

__all__ = ["HOST", "MULTIPATH", "Listener", "Peer", "dial", "listen"]

HOST = "127.0.0.1"

MULTIPATH = {0x3E: b"\x01"}
"""Transport parameter initial_max_path_id: one more path is welcome, but none is ever used."""

_ACK, _PATH_ACK, _PATH_ACK_ECN = 0x02, 0x3E, 0x3F
_MULTIPATH = range(0x3E75, 0x3E7D)

_HELLO, _ACCEPT = 1, 2
_CONTROL_STREAM = 0

_PATIENCE = 10.0

_DATAGRAM = 3000
"""Bytes of our largest datagram: room for a whole ClientHello with ML-KEM. To one that takes two, a
server of the engine (noq 1.4.0) falls silent where it should tell what is wrong with it."""


class _Frame(bytes):
    """Sent as it is where aioquic would send a DATAGRAM with these contents."""

    __slots__ = ()


class Peer(QuicConnectionProtocol):
    """One connection.

    Attributes:
        frames: the extension frames that came, in order.
        greeted: whether the control stream is open and the other has said something on it.
        terminated: how the connection ended; ``None`` while it lives.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.frames: list[ExtensionFrame] = []
        self.greeted = False
        self.terminated: ConnectionTerminated | None = None
        self._answers: dict[int, bytes] = {}
        self._changed = asyncio.Condition()
        quic: Any = self._quic
        self._write_datagram = quic._write_datagram_frame
        quic._write_datagram_frame = self._write
        taken = dict.fromkeys(map(int, FrameType), self._take)
        taken |= dict.fromkeys((_PATH_ACK, _PATH_ACK_ECN), self._take_path_ack)
        taken |= dict.fromkeys(_MULTIPATH, self._skip)
        quic._QuicConnection__frame_handlers.update(
            {kind: (handler, frozenset([Epoch.ONE_RTT])) for kind, handler in taken.items()}
        )

    @property
    def key(self) -> RawKey:
        """What the other end has proved."""
        return self._tls.peer_key

    @property
    def parameters(self) -> dict[int, bytes]:
        """The transport parameters of the other end."""
        return self._tls.peer_parameters

    @property
    def remote(self) -> Place:
        """Where the other end's packets come from."""
        host, port, *_ = self._quic._network_paths[0].addr
        return Place(ip_address(host), port)

    @property
    def local_port(self) -> int:
        """Our UDP port."""
        assert self._transport is not None
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    def send_frame(self, frame: bytes) -> None:
        """Send a frame of any type, once, and whatever is left of it."""
        self._quic._datagrams_pending.append(_Frame(frame))
        self.transmit()

    async def frame(self, number: int = 0) -> ExtensionFrame:
        """The extension frame of that number, waiting for it."""
        await self._until(lambda: len(self.frames) > number)
        return self.frames[number]

    async def greeting(self) -> None:
        """Wait until both have said hello."""
        await self._until(lambda: self.greeted)

    async def ask(self, question: bytes) -> None:
        """Send on a new stream, and wait for the echo."""
        stream_id = self._quic.get_next_available_stream_id()
        self._quic.send_stream_data(stream_id, question, end_stream=True)
        self.transmit()
        await self._until(lambda: self._answers.get(stream_id) == question)

    async def end(self) -> ConnectionTerminated:
        """How the connection ends, waiting for it."""
        await self._until(lambda: self.terminated is not None)
        assert self.terminated is not None
        return self.terminated

    def quic_event_received(self, event: QuicEvent) -> None:
        """See :class:`QuicConnectionProtocol`."""
        if not isinstance(event, StreamDataReceived):  # or else it would make streams, and end them
            super().quic_event_received(event)
        is_client = self._quic.configuration.is_client
        match event:
            case HandshakeCompleted() if is_client:
                self._greet(_HELLO)
            case StreamDataReceived(stream_id=stream_id) if stream_id == _CONTROL_STREAM:
                if not (self.greeted or is_client):
                    self._greet(_ACCEPT)
                self.greeted = True
            case StreamDataReceived():
                before = self._answers.get(event.stream_id, b"")
                self._answers[event.stream_id] = before + event.data
            case ConnectionTerminated():
                self.terminated = event
        self._wake()

    @property
    def _tls(self) -> RawKeyContext:
        assert isinstance(self._quic.tls, RawKeyContext)
        return self._quic.tls

    def _greet(self, kind: int) -> None:
        self._quic.send_stream_data(_CONTROL_STREAM, _hello(kind))
        self.transmit()

    def _take(self, context: object, frame_type: int, buffer: Any) -> None:
        del context
        start = buffer.tell()
        reader = Reader(buffer.data_slice(start, buffer.capacity))
        frame = decode_frame(frame_type, reader)
        assert frame is not None
        buffer.seek(start + reader.at)
        self.frames.append(frame)
        self._wake()

    def _take_path_ack(self, context: object, frame_type: int, buffer: Any) -> None:
        assert buffer.pull_uint_var() == 0, "there is no other path"
        quic: Any = self._quic
        quic._handle_ack_frame(context, frame_type - _PATH_ACK + _ACK, buffer)

    def _skip(self, context: object, frame_type: int, buffer: Any) -> None:
        del context
        start = buffer.tell()
        reader = Reader(buffer.data_slice(start, buffer.capacity))
        decode_rest(frame_type, reader)
        buffer.seek(start + reader.at)

    def _write(self, builder: Any, data: bytes, frame_type: int) -> bool:
        if not isinstance(data, _Frame):
            written: bool = self._write_datagram(builder, data=data, frame_type=frame_type)
            return written
        reader = Reader(data)
        buffer = builder.start_frame(reader.varint(), capacity=len(data))
        buffer.push_bytes(reader.rest())
        return True

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.ensure_future(wake())
        task.add_done_callback(lambda _: None)

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(_PATIENCE), self._changed:
            await self._changed.wait_for(condition)


class Listener:
    """A server.

    Attributes:
        peer_id: its identity.
        port: its UDP port.
    """

    def __init__(self, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.port = 0
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()

    @property
    def address(self) -> str:
        """``ID@HOST:PORT``."""
        return f"{self.peer_id}@{HOST}:{self.port}"

    async def accept(self) -> Peer:
        """The next connection, perhaps in the middle of its handshake."""
        async with asyncio.timeout(_PATIENCE):
            return await self._peers.get()

    def make(self, *args: Any, **kwargs: Any) -> Peer:
        """A protocol for aioquic."""
        peer = Peer(*args, **kwargs)
        self._peers.put_nowait(peer)
        return peer


@contextlib.asynccontextmanager
async def listen() -> AsyncIterator[Listener]:
    """Serve on a free port."""
    settings = configuration(is_client=False)
    listener = Listener(settings.certificate.peer_id)
    server = await serve(HOST, 0, configuration=settings, create_protocol=listener.make)
    try:
        assert server._transport is not None
        listener.port = server._transport.get_extra_info("sockname")[1]
        yield listener
    finally:
        server.close()


@contextlib.asynccontextmanager
async def dial(port: int) -> AsyncIterator[Peer]:
    """A connection to a node, perhaps in the middle of its handshake."""
    settings = configuration(is_client=True)
    settings.max_datagram_size = _DATAGRAM
    async with connect(
        HOST, port, configuration=settings, create_protocol=Peer, wait_connected=False
    ) as peer:
        assert isinstance(peer, Peer)
        peer.transmit()
        yield peer


def _hello(kind: int) -> bytes:
    """The first message on the control stream (docs/protocol.md): length, then CBOR."""
    serial = b"\x01"
    fields = (
        bytes([kind]),
        b"\x01",  # version
        b"\x1b" + os.urandom(8),  # instance: an unsigned integer of 64 bits
        serial,
        b"\x80",  # capabilities: an array of none
        b"\x67aioquic",
    )
    body = bytes([0xA0 | len(fields)])
    body += b"".join(bytes([key]) + value for key, value in enumerate(fields))
    return encode_varint(len(body)) + body
