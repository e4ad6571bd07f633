"""Request streams with HTTP Datagrams, whatever the version of HTTP below."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .wire import Capsule, CapsuleReader, CapsuleType, Fields, field

# RFC 9297 section 5.2; HTTP/2 has PROTOCOL_ERROR for it (RFC 9113 section 8.1.1).
H3_DATAGRAM_ERROR = 0x33
H2_PROTOCOL_ERROR = 0x1


class Violation(Exception):
    """The peer broke a rule; the stream is to be aborted."""


def require(kept: bool, rule: str) -> None:
    """Raises:
    Violation: the peer broke this rule.
    """
    if not kept:
        raise Violation(rule)


class StreamEnded(Exception):
    """The peer ended the stream; `code` is that of its reset, None for a clean end."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{reason} (code {code})" if code is not None else reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Response:
    """A final response."""

    status: int
    fields: Fields

    def field(self, name: str) -> str | None:
        return field(self.fields, name)


class RequestStream(ABC):
    """One end of a request stream that carries capsules and HTTP Datagrams."""

    def __init__(self) -> None:
        self._reader = CapsuleReader()
        self._incoming: asyncio.Queue[Capsule | StreamEnded | Violation] = asyncio.Queue()
        self._response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    async def response(self) -> Response:
        """The final response, on the client's end.

        Raises:
            StreamEnded: there will be none.
        """
        return await asyncio.shield(self._response)

    async def next(self) -> Capsule:
        """The next capsule; an HTTP Datagram is one of type DATAGRAM, however it travelled.

        Raises:
            StreamEnded: there will be no more.
            Violation: the stream ended inside a capsule.
        """
        item = await self._incoming.get()
        if isinstance(item, Exception):
            self._incoming.put_nowait(item)
            raise item
        return item

    def send_capsule(self, capsule: Capsule) -> None:
        self.send_data(capsule.encode())

    @abstractmethod
    def send_data(self, data: bytes) -> None:
        """Send bytes of the data stream."""

    @abstractmethod
    def send_datagram(self, payload: bytes) -> None:
        """Send an HTTP Datagram the way this version of HTTP does."""

    @abstractmethod
    def respond(self, status: int, fields: Fields) -> None:
        """Send the final response, on the server's end."""

    @abstractmethod
    def end(self) -> None:
        """End our side in good order."""

    @abstractmethod
    def abort(self) -> None:
        """Reset the stream, as after a violation of the Capsule Protocol."""

    # What follows is for the carriers.

    def received_fields(self, fields: Fields) -> None:
        status = int(field(fields, ":status") or 0)
        if status >= 200 and not self._response.done():
            self._response.set_result(Response(status, fields))

    def received_data(self, data: bytes, *, ended: bool) -> None:
        for capsule in self._reader.feed(data):
            self._incoming.put_nowait(capsule)
        if ended and self._reader.truncated:
            self._incoming.put_nowait(Violation("RFC 9297, section 3.3: the stream ended inside"))
        elif ended:
            self.ended(None, "the peer ended the stream")

    def received_datagram(self, payload: bytes) -> None:
        self._incoming.put_nowait(Capsule(CapsuleType.DATAGRAM, payload))

    def ended(self, code: int | None, reason: str) -> None:
        error = StreamEnded(code, reason)
        self._incoming.put_nowait(error)
        if not self._response.done():
            self._response.set_exception(error)
            # Nobody has to ask for the response.
            self._response.exception()


class Carrier(Protocol):
    """A client's connection to a proxy."""

    async def start(self, fields: Fields) -> RequestStream:
        """Send a request, once the peer's settings allow one; the response is not waited for.

        Raises:
            AssertionError: the settings do not allow it.
        """
        ...


class Settings:
    """The settings of the peer, which come some time after the connection."""

    def __init__(self) -> None:
        self._received: asyncio.Future[Mapping[int, int]]
        self._received = asyncio.get_running_loop().create_future()

    def received(self, settings: Mapping[int, int]) -> None:
        if not self._received.done():
            self._received.set_result(dict(settings))

    async def get(self) -> Mapping[int, int]:
        return await asyncio.shield(self._received)


Handler = Callable[[Fields, RequestStream], Awaitable[None]]
"""Serves one request, from its fields to the end of the stream."""


class Handlers:
    """The requests a server is handling, each in a task of its own.

    A stream whose handler raises `Violation` is aborted, and the violation kept in `violations`.
    Leaving it cancels the tasks; what they failed with otherwise is raised.
    """

    def __init__(self, handler: Handler) -> None:
        self.violations: list[Violation] = []
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []

    def start(self, fields: Fields, stream: RequestStream) -> None:
        task = asyncio.create_task(self._handle(fields, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, fields: Fields, stream: RequestStream) -> None:
        try:
            await self._handler(fields, stream)
        except StreamEnded:
            pass
        except Violation as violation:
            self.violations.append(violation)
            stream.abort()
        except Exception as error:
            self._failures.append(error)
            stream.abort()

    async def __aenter__(self) -> "Handlers":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._failures:
            raise ExceptionGroup("requests failed", self._failures)
