"""UDP sockets with queues. asyncio's own drop empty packets, which are legal."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from .wire import Remote, remote

LARGEST = 65_535


class UdpSocket:
    """A socket of the host, on a free port unless told; connected if it has a peer."""

    def __init__(self, host: str, peer: Remote | None = None, *, port: int = 0) -> None:
        version = ipaddress.ip_address(host).version
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind((host, port))
        if peer is not None:
            self._socket.connect((str(peer.ip), peer.port))
        self._received: asyncio.Queue[tuple[Remote, bytes] | OSError] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    @property
    def address(self) -> Remote:
        return remote(*self._socket.getsockname()[:2])

    def send(self, payload: bytes, to: Remote | None = None) -> None:
        """Send to a remote, or to the peer; as with any packet, it may be lost."""
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            if to is None:
                self._socket.send(payload)
            else:
                self._socket.sendto(payload, (str(to.ip), to.port))

    async def receive(self) -> tuple[Remote, bytes]:
        """The next packet.

        Raises:
            OSError: the system says that the peer cannot be reached.
        """
        received = await self._received.get()
        if isinstance(received, OSError):
            raise received
        return received

    def _read(self) -> None:
        try:
            payload, address = self._socket.recvfrom(LARGEST)
        except BlockingIOError:
            return
        except OSError as error:
            self._received.put_nowait(error)
        else:
            self._received.put_nowait((remote(*address[:2]), payload))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


@asynccontextmanager
async def echo(host: str = "127.0.0.1") -> AsyncIterator[Remote]:
    """The address of a socket that sends back what it receives."""
    with UdpSocket(host) as udp:

        async def serve() -> None:
            while True:
                source, payload = await udp.receive()
                udp.send(payload, source)

        task = asyncio.create_task(serve())
        try:
            yield udp.address
        finally:
            task.cancel()
            await asyncio.wait([task])
