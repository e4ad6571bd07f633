"""``anyreach connect PEER``: reach a peer and say how."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from anyreach.errors import ConnectError
from anyreach.peer import parse_peer

from . import options
from .runner import FAILED, OK
from .session import Session, running_node

if TYPE_CHECKING:
    import argparse

    from anyreach import Connection
    from anyreach.connection import Path
    from anyreach.peer import PeerAddress

    from .runner import Context

SERVICE = False
HELP = "reach a peer and say how the connection was made"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the command line."""
    options.add_peer_argument(parser)
    parser.add_argument(
        "--hold",
        type=options.seconds_or_zero,
        default=0.0,
        metavar="S",
        help="keep the connection for S seconds and report its best path (default 0)",
    )
    parser.add_argument(
        "--require",
        choices=("direct", "any"),
        default="any",
        help="direct: fail if the best path goes through a relay (default any)",
    )
    options.add_timeout_option(parser, "seconds allowed to reach the peer (default 30)")
    options.add_common_options(parser, bind="a free port")


async def run(context: Context) -> int:
    """Runs the command."""
    args = context.args
    peer = parse_peer(args.peer)
    async with running_node(
        context,
        bind=options.CLIENT_BIND,
        defaults=options.VISITOR,
        options={} if args.timeout is None else {"connect_timeout": args.timeout},
        all_events=args.json,  # people asked about one connection
    ) as session:
        started = time.perf_counter()
        try:
            connection = await session.dial(peer)
        except ConnectError as error:
            _report_failure(session, peer, error, _ms_since(started))
            context.output.complain(str(error))
            return FAILED
        first = session.connected_since(connection.peer_id, started)
        watch = _Watch(connection, started, first)
        await watch.hold(args.hold)
        return _report(context, session, connection, watch)


class _Watch:
    """Times of a connection since ``connect()`` was called, and its best path."""

    def __init__(self, connection: Connection, started: float, first: float | None) -> None:
        self._connection = connection
        self._started = started
        self.ms = _ms_since(started)
        # Before connect() returned: that gives a direct path a moment after a relayed one.
        self.ms_first = self.ms if first is None else min(first * 1000, self.ms)
        self.ms_direct: float | None = None
        self.path: Path | None = None
        self._note(self.ms)

    async def hold(self, seconds: float) -> None:
        """Watches the paths for a while; ends early if the connection does."""
        try:
            async with asyncio.timeout(seconds):
                async for _ in self._connection.path_changes():
                    self._note(_ms_since(self._started))
        except TimeoutError:
            self._note(_ms_since(self._started))

    def _note(self, milliseconds: float) -> None:
        path = self._connection.path
        if path is None:
            return
        self.path = path
        if path.method != "relayed" and self.ms_direct is None:
            self.ms_direct = milliseconds


def _report(context: Context, session: Session, connection: Connection, watch: _Watch) -> int:
    path = watch.path
    error: str | None = None
    if connection.closed:
        error = f"the connection ended: {connection.close_reason}"
    elif path is None:
        error = "the connection has no usable path"
    elif context.args.require == "direct" and path.method == "relayed":
        error = f"only a relayed path was found, to {path.remote}"
        if path.relay is not None:
            error += f" through relay {path.relay[:10]}…"
    session.conclude(
        {
            "event": "result",
            "ok": error is None,
            "peer_id": str(connection.peer_id),
            "method": path.method if path else None,
            "remote": path.remote if path else None,
            "relay": path.relay if path else None,
            "ms": watch.ms,
            "ms_first": watch.ms_first,
            "ms_direct": watch.ms_direct,
            "rtt_ms": path.rtt * 1000 if path else None,
            "group": connection.key_exchange_group,
            "error": error,
            "attempts": [asdict(attempt) for attempt in connection.attempts],
        }
    )
    if error is None:
        return OK
    context.output.complain(error)
    return FAILED


def _report_failure(
    session: Session, peer: PeerAddress, error: ConnectError, milliseconds: float
) -> None:
    session.conclude(
        {
            "event": "result",
            "ok": False,
            "peer_id": None if peer.peer_id is None else str(peer.peer_id),
            "method": None,
            "remote": None,
            "relay": None,
            "ms": milliseconds,
            "ms_first": None,
            "ms_direct": None,
            "rtt_ms": None,
            "group": None,
            "error": ConnectError.__str__(error).partition("\n")[0],
            "kind": type(error).__name__,
            "attempts": [asdict(attempt) for attempt in error.attempts],
        }
    )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
