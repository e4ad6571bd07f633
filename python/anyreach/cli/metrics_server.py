"""A small HTTP/1.1 server for Prometheus: ``GET /metrics``, nothing else.

Bounded on purpose: short requests, one per connection, few connections, short waits. It is not
a web server and should listen on an address only the monitoring can reach.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["serve_metrics"]

#: Longest request head accepted; Prometheus sends about 300 bytes.
_MAX_HEAD: Final = 8 * 1024

#: Seconds for a client to send its request and take the answer.
_PATIENCE: Final = 10.0

#: Scrapes at once; more are turned away.
_MAX_CLIENTS: Final = 16

_TEXT: Final = "text/plain; charset=utf-8"


@contextlib.asynccontextmanager
async def serve_metrics(
    host: str, port: int, render: Callable[[], str], content_type: str
) -> AsyncIterator[tuple[str, int]]:
    """Serves ``render()`` at ``http://host:port/metrics`` while the context lasts.

    Yields:
        The address and port that were bound.

    Raises:
        OSError: the address cannot be bound.
    """
    clients: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(clients) >= _MAX_CLIENTS:
            writer.close()
            return
        clients.add(writer)
        try:
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_respond(head, render, content_type))
                await writer.drain()
        except asyncio.LimitOverrunError:
            writer.write(_response("431 Request Header Fields Too Large", _TEXT, b""))
        except (OSError, EOFError):
            pass
        finally:
            clients.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, host, port, limit=_MAX_HEAD)
    try:
        bound = server.sockets[0].getsockname()
        yield bound[0], bound[1]
    finally:
        server.close()
        for writer in tuple(clients):
            writer.transport.abort()
        await server.wait_closed()


def _respond(head: bytes, render: Callable[[], str], content_type: str) -> bytes:
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return _response("400 Bad Request", _TEXT, b"bad request\n")
    method, target = words[0], words[1].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", _TEXT, b"", "Allow: GET, HEAD\r\n")
    if target != b"/metrics":
        return _response("404 Not Found", _TEXT, b"see /metrics\n")
    response = _response("200 OK", content_type, render().encode())
    return response if method == b"GET" else response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: str, content_type: str, body: bytes, extra: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"{extra}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
