"""``anyreach ping PEER``: round-trip times, one line each."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Final

from anyreach.errors import ConnectionLost
from anyreach.peer import parse_peer
from anyreach.transfer.frames import encode_frame, get_bool, get_int, read_frame
from anyreach.transfer.messages import parse_reply

from . import options
from .echo import ANSWER, MAX_NUMBER, REQUEST, decode_ping, encode_ping
from .flows import DatagramFlows
from .runner import FAILED, OK
from .session import Session, open_service, running_node

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from anyreach import Connection, Stream

    from .output import Output
    from .runner import Context

SERVICE = False
HELP = "measure the round-trip time to a peer"

#: Seconds after which an answer counts as lost: longer than any path people would use.
ANSWER_SECONDS: Final = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the command line."""
    options.add_peer_argument(parser)
    parser.add_argument(
        "-c", "--count", type=options.count, metavar="N", help="stop after N (default: on Ctrl-C)"
    )
    parser.add_argument(
        "-i",
        "--interval",
        type=options.seconds,
        default=1.0,
        metavar="S",
        help="seconds between two pings (default 1)",
    )
    options.add_timeout_option(parser, "seconds allowed to reach the peer (default 30)")
    options.add_common_options(parser, bind="a free port")


async def run(context: Context) -> int:
    """Runs the command. As ping(8): success if anything was answered."""
    args = context.args
    peer = parse_peer(args.peer)
    async with running_node(
        context,
        bind=options.CLIENT_BIND,
        defaults=options.VISITOR,
        options={} if args.timeout is None else {"connect_timeout": args.timeout},
    ) as session:
        connection = await session.dial(peer)
        stream, reply = await open_service(connection, "ping")
        pinger = _Pinger(connection, session, context.output)
        try:
            if get_bool(reply, "datagrams") and connection.max_datagram_size is not None:
                await _over_datagrams(connection, stream, pinger, args)
            else:
                await _over_stream(stream, pinger, args)
        except asyncio.CancelledError:
            if not context.signalled:
                raise
        except ConnectionLost as lost:
            context.output.error(f"the connection ended: {lost}", kind="ConnectionLost")
        pinger.summarize()
        return OK if pinger.times else FAILED


async def _over_datagrams(
    connection: Connection, stream: Stream, pinger: _Pinger, args: argparse.Namespace
) -> None:
    def answered(datagrams: list[bytes], start: int) -> None:
        for datagram in datagrams:
            ping = decode_ping(datagram[start:])
            if ping is not None and ping[0] == ANSWER:
                pinger.answered(ping[1])

    with DatagramFlows(connection).open(stream.id, answered) as prefix:

        async def send(number: int) -> None:
            connection.send_datagram(prefix + encode_ping(REQUEST, number))

        await pinger.run(send, args.count, args.interval)


async def _over_stream(stream: Stream, pinger: _Pinger, args: argparse.Namespace) -> None:
    async def send(number: int) -> None:
        await stream.write(encode_frame({"seq": number}))

    async def read() -> None:
        while True:
            reply = parse_reply(await read_frame(stream))
            pinger.answered(get_int(reply, "seq", 0, MAX_NUMBER))

    reader = asyncio.create_task(read())
    try:
        await pinger.run(send, args.count, args.interval)
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


class _Pinger:
    """Numbers pings, times their answers and counts the lost ones."""

    def __init__(self, connection: Connection, session: Session, output: Output) -> None:
        self._connection = connection
        self._session = session
        self._output = output
        self._sent_at: dict[int, float] = {}
        self._settled = asyncio.Event()
        self.sent = 0
        self.times: list[float] = []

    async def run(
        self, send: Callable[[int], Awaitable[None]], number: int | None, interval: float
    ) -> None:
        """Sends ``number`` pings (``None``: without end) and waits for their answers.

        Raises:
            ConnectionLost: the connection ended before.
        """
        pinging = asyncio.create_task(self._send_all(send, number, interval))
        closed = asyncio.create_task(self._connection.wait_closed())
        try:
            await asyncio.wait({pinging, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not pinging.done():
                raise closed.result()
            pinging.result()
        finally:
            for task in (pinging, closed):
                task.cancel()
            await asyncio.gather(pinging, closed, return_exceptions=True)

    async def _send_all(
        self, send: Callable[[int], Awaitable[None]], number: int | None, interval: float
    ) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while number is None or self.sent < number:
            if self.sent:
                due = max(due + interval, loop.time())
                await asyncio.sleep(due - loop.time())
            self.sent += 1
            self._sent_at[self.sent] = time.perf_counter()
            loop.call_later(ANSWER_SECONDS, self._lose, self.sent)
            await send(self.sent)
        while self._sent_at:
            self._settled.clear()
            await self._settled.wait()

    def answered(self, number: int) -> None:
        """Notes an answer; late and repeated ones are ignored."""
        sent_at = self._sent_at.pop(number, None)
        if sent_at is None:
            return
        milliseconds = (time.perf_counter() - sent_at) * 1000
        self.times.append(milliseconds)
        path = self._connection.path
        self._output.event(
            {
                "event": "pong",
                "seq": number,
                "rtt_ms": milliseconds,
                "method": path.method if path else None,
                "remote": path.remote if path else None,
                "relay": path.relay if path else None,
            }
        )
        self._settled.set()

    def _lose(self, number: int) -> None:
        if self._sent_at.pop(number, None) is not None:
            self._output.event({"event": "lost", "seq": number})
            self._settled.set()

    def summarize(self) -> None:
        """Tells the totals. Pings still on their way count as lost."""
        times = self.times
        self._session.conclude(
            {
                "event": "summary",
                "sent": self.sent,
                "received": len(times),
                "lost": self.sent - len(times),
                "min_ms": min(times) if times else None,
                "avg_ms": statistics.fmean(times) if times else None,
                "p50_ms": statistics.median(times) if times else None,
                "max_ms": max(times) if times else None,
            }
        )
