"""TLS 1.3 over TCP with ML-KEM groups: aioquic's handshake below a record layer of our own.

The `ssl` module cannot offer ML-KEM before OpenSSL 3.5. aioquic's TLS, with the plug-in
`aioquic_mlkem`, makes and reads handshake messages without caring what carries them; what TCP
needs in addition are the records of RFC 8446 section 5. No key updates and no early data.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

MAX_PLAINTEXT = 1 << 14
HANDSHAKE_BUFFER = 1 << 16
CLOSE_NOTIFY = bytes([1, 0])


class ContentType(IntEnum):
    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23


class _Keys:
    """Protects the records of one direction (RFC 8446 sections 5.2, 5.3 and 7.3)."""

    def __init__(self, suite: tls.CipherSuite, secret: bytes) -> None:
        key_bytes = 16 if suite == tls.CipherSuite.AES_128_GCM_SHA256 else 32
        chacha = suite == tls.CipherSuite.CHACHA20_POLY1305_SHA256
        algorithm = tls.cipher_suite_hash(suite)
        key = tls.hkdf_expand_label(algorithm, secret, b"key", b"", key_bytes)
        self._aead = ChaCha20Poly1305(key) if chacha else AESGCM(key)
        self._iv = tls.hkdf_expand_label(algorithm, secret, b"iv", b"", 12)
        self._sequence = 0

    def _nonce(self) -> bytes:
        nonce = int.from_bytes(self._iv) ^ self._sequence
        self._sequence += 1
        return nonce.to_bytes(12)

    def seal(self, content: ContentType, data: bytes) -> bytes:
        inner = data + bytes([content])
        header = _header(ContentType.APPLICATION_DATA, len(inner) + 16)
        return header + self._aead.encrypt(self._nonce(), inner, header)

    def open(self, header: bytes, data: bytes) -> tuple[ContentType, bytes]:
        inner = self._aead.decrypt(self._nonce(), data, header).rstrip(b"\0")
        return ContentType(inner[-1]), inner[:-1]


def _header(content: ContentType, length: int) -> bytes:
    return bytes([content, 3, 3]) + length.to_bytes(2)


@dataclass(frozen=True, slots=True)
class Identity:
    """Certificate and key of a server, in PEM."""

    certificate: Path
    key: Path


class TlsStream:
    """A TLS connection, whose handshake has to be done first."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: tls.Context
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._context = context
        self._read_keys: _Keys | None = None
        # The keys to send with, by the epoch of what is sent.
        self._write_keys: dict[tls.Epoch, _Keys] = {}
        self._context.update_traffic_key_cb = self._on_key

    @property
    def alpn(self) -> str | None:
        return self._context.alpn_negotiated

    async def handshake(self) -> None:
        """Do the handshake.

        Raises:
            ConnectionError: the peer refused.
            aioquic.tls.Alert: we did.
        """
        if self._context.state is tls.State.CLIENT_HANDSHAKE_START:
            self._on_handshake(b"")
        done = {tls.State.CLIENT_POST_HANDSHAKE, tls.State.SERVER_POST_HANDSHAKE}
        while self._context.state not in done:
            assert await self._record() == b"", "application data within the handshake"

    def write(self, data: bytes) -> None:
        keys = self._write_keys[tls.Epoch.ONE_RTT]
        for start in range(0, len(data), MAX_PLAINTEXT):
            part = data[start : start + MAX_PLAINTEXT]
            self._writer.write(keys.seal(ContentType.APPLICATION_DATA, part))

    async def read(self) -> bytes:
        """The next bytes; empty at the end.

        Raises:
            ConnectionError: the connection broke.
        """
        while True:
            try:
                data = await self._record()
            except asyncio.IncompleteReadError:
                return b""
            if data is None:
                return b""
            if data:
                return data

    async def close(self) -> None:
        if tls.Epoch.ONE_RTT in self._write_keys:
            keys = self._write_keys[tls.Epoch.ONE_RTT]
            self._writer.write(keys.seal(ContentType.ALERT, CLOSE_NOTIFY))
        self._writer.close()

    async def _record(self) -> bytes | None:
        """Handle one record: its application data, or None at the end."""
        header = await self._reader.readexactly(5)
        content = ContentType(header[0])
        data = await self._reader.readexactly(int.from_bytes(header[3:]))
        if content is ContentType.CHANGE_CIPHER_SPEC:
            # RFC 8446 section 5: to be dropped without further processing.
            return b""
        if self._read_keys is not None:
            content, data = self._read_keys.open(header, data)
        if content is ContentType.HANDSHAKE:
            self._on_handshake(data)
        elif content is ContentType.ALERT:
            if data == CLOSE_NOTIFY:
                return None
            raise ConnectionError(f"TLS alert {data[1]}")
        elif content is ContentType.APPLICATION_DATA:
            return data
        return b""

    def _on_key(
        self, direction: tls.Direction, epoch: tls.Epoch, suite: tls.CipherSuite, secret: bytes
    ) -> None:
        if direction is tls.Direction.DECRYPT:
            self._read_keys = _Keys(suite, secret)
        else:
            self._write_keys[epoch] = _Keys(suite, secret)

    def _on_handshake(self, data: bytes) -> None:
        epochs = (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE, tls.Epoch.ONE_RTT)
        output = {epoch: Buffer(capacity=HANDSHAKE_BUFFER) for epoch in epochs}
        self._context.handle_message(data, output)
        for epoch, buffer in output.items():
            for start in range(0, buffer.tell(), MAX_PLAINTEXT):
                part = buffer.data[start : start + MAX_PLAINTEXT]
                if epoch is tls.Epoch.INITIAL:
                    self._writer.write(_header(ContentType.HANDSHAKE, len(part)) + part)
                else:
                    self._writer.write(self._write_keys[epoch].seal(ContentType.HANDSHAKE, part))


@asynccontextmanager
async def connect(
    host: str, port: int, *, alpn: str, certificate: Path
) -> AsyncIterator[TlsStream]:
    """A connection to ``localhost`` at this address, whose certificate is checked.

    Raises:
        ConnectionError: the peer refused.
    """
    reader, writer = await asyncio.open_connection(host, port)
    # By way of the module: the plug-in replaces the class.
    context = tls.Context(
        is_client=True,
        alpn_protocols=[alpn],
        cafile=str(certificate),
        server_name="localhost",
        verify_mode=ssl.CERT_REQUIRED,
    )
    stream = TlsStream(reader, writer, context)
    try:
        await stream.handshake()
        assert stream.alpn == alpn, stream.alpn
        yield stream
    finally:
        await stream.close()


@asynccontextmanager
async def serve(
    host: str, handle: Callable[[TlsStream], Awaitable[None]], *, alpn: str, identity: Identity
) -> AsyncIterator[int]:
    """Serve on a free port, which it yields."""
    configuration = QuicConfiguration(is_client=False)
    configuration.load_cert_chain(identity.certificate, identity.key)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        context = tls.Context(is_client=False, alpn_protocols=[alpn])
        context.certificate = configuration.certificate
        context.certificate_private_key = configuration.private_key
        stream = TlsStream(reader, writer, context)
        await stream.handshake()
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handle(stream)
        finally:
            tasks.discard(task)
            await stream.close()

    listener = await asyncio.start_server(accept, host, 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
