"""An HTTP/1.1 proxy that knows CONNECT and nothing else. Standard library only; a script.

Prints one JSON event per request: ``{"event": "request", "status", "target", "bytes"}`` when its
tunnel is made or refused, and ``closed`` with the bytes carried each way when it ended.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hmac
import json
from dataclasses import dataclass
from typing import Final

_HEAD_LIMIT: Final = 16 * 1024
_HEAD_TIMEOUT: Final = 10.0  # seconds
_CONNECT_TIMEOUT: Final = 10.0  # seconds
_CHUNK: Final = 256 * 1024

_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}


class _Refused(Exception):
    def __init__(self, status: int, target: str = "") -> None:
        self.status = status
        self.target = target


@dataclass(frozen=True, slots=True)
class Policy:
    """What the proxy does for whom."""

    credentials: str | None
    ports: frozenset[int]

    def admit(self, head: str) -> tuple[str, int]:
        """The target of a request head that may pass.

        Raises:
            _Refused: it may not.
        """
        request, *lines = head.split("\r\n")
        try:
            method, target, version = request.split(" ")
        except ValueError:
            raise _Refused(400) from None
        if not version.startswith("HTTP/1."):
            raise _Refused(400)
        if method != "CONNECT":
            raise _Refused(405, target)
        if self.credentials is not None and not self._authorised(lines):
            raise _Refused(407, target)
        host, colon, port = target.rpartition(":")
        if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            raise _Refused(400, target)
        if self.ports and int(port) not in self.ports:
            raise _Refused(403, target)
        return host.strip("[]"), int(port)

    def _authorised(self, lines: list[str]) -> bool:
        expected = base64.b64encode((self.credentials or "").encode()).decode()
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip().lower() == "proxy-authorization":
                scheme, _, token = value.strip().partition(" ")
                return scheme.lower() == "basic" and hmac.compare_digest(token.strip(), expected)
        return False


class Proxy:
    """Serves connections under a policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        try:
            while not await self._request(reader, writer):
                pass  # a client may answer a 407 on the same connection
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(_HEAD_TIMEOUT):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        try:
            host, port = self._policy.admit(head)
            far_reader, far_writer = await _connect(host, port)
        except _Refused as refused:
            _emit("request", status=refused.status, target=refused.target)
            challenge = 'Proxy-Authenticate: Basic realm="lab"\r\n' if refused.status == 407 else ""
            status = f"HTTP/1.1 {refused.status} {_REASONS[refused.status]}\r\n"
            writer.write(f"{status}{challenge}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return refused.status != 407
        target = f"{host}:{port}"
        _emit("request", status=200, target=target)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            async with asyncio.TaskGroup() as tasks:
                out = tasks.create_task(_pump(reader, far_writer))
                back = tasks.create_task(_pump(far_reader, writer))
        finally:
            far_writer.close()
        _emit("closed", target=target, sent=out.result(), received=back.result())
        return True


async def _connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            return await asyncio.open_connection(host, port, limit=_CHUNK)
    except TimeoutError:
        raise _Refused(504, f"{host}:{port}") from None
    except OSError:
        raise _Refused(502, f"{host}:{port}") from None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    total = 0
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            total += len(data)
            writer.write(data)
            await writer.drain()
        writer.write_eof()
        return total
    writer.close()
    return total


def _emit(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("listen", help="HOST:PORT")
    parser.add_argument("--credentials", help="USER:PASSWORD that clients must give")
    parser.add_argument("--port", type=int, action="append", default=[], help="allowed target port")
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    proxy = Proxy(Policy(options.credentials, frozenset(options.port)))
    server = await asyncio.start_server(proxy.serve, host, int(port), limit=_HEAD_LIMIT)
    _emit("listening")
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
