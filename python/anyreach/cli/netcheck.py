"""``anyreach netcheck [PEER]``: what this network can do, and why a pair is relayed.

With --json the last lines are {"event":"netcheck",...}, and for a PEER {"event":"explanation",...};
docs/guide.md has their names. Exits with 1 if no known peer, or not the PEER, was reached.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from anyreach.errors import ConnectError
from anyreach.peer import parse_peer

from . import options
from .runner import FAILED, OK
from .session import running_node

if TYPE_CHECKING:
    import argparse

    from anyreach import Connection
    from anyreach.config import P2pOptions

    from .runner import Context
    from .session import Session

SERVICE = False
HELP = "say what this network can do, and why a connection to PEER is relayed"

#: As other commands that dial and end, but with an address at a relay: with that a node finds out
#: what its NAT does.
_DEFAULTS: Final[P2pOptions] = {"serve_relay": False, "findable": False}

#: Seconds to look at the network: everything that takes long has a limit of its own below it.
_CHECK_SECONDS: Final = 15.0

#: Seconds a relayed connection has to become direct before it is explained: some rounds.
_HOLD_SECONDS: Final = 6.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the command line."""
    parser.add_argument(
        "peer",
        metavar="PEER",
        nargs="?",
        help="ID@HOST:PORT, a ticket, or a PeerId: connect to it and explain the connection",
    )
    parser.add_argument(
        "--hold",
        type=options.seconds_or_zero,
        default=_HOLD_SECONDS,
        metavar="S",
        help=f"seconds a connection to PEER has to become direct (default {_HOLD_SECONDS:g})",
    )
    options.add_timeout_option(
        parser, f"seconds for looking at the network (default {_CHECK_SECONDS:g})"
    )
    options.add_common_options(parser, bind="a free port")


async def run(context: Context) -> int:
    """Runs the command."""
    args = context.args
    peer = None if args.peer is None else parse_peer(args.peer)
    async with running_node(context, bind=options.CLIENT_BIND, defaults=_DEFAULTS) as session:
        online = await _check(context, session)
        if peer is None:
            return OK if online else FAILED
        try:
            connection = await session.dial(peer)
        except ConnectError as error:
            context.output.error(str(error), kind=type(error).__name__)
            return FAILED
        await _until_direct(connection, args.hold)
        explanation = connection.explain()
        session.conclude({"event": "explanation", **asdict(explanation), "text": str(explanation)})
    return OK


async def _check(context: Context, session: Session) -> bool:
    """Tells the report; whether anybody was reached, if anybody was to be."""
    report = await session.node.netcheck(timeout=context.args.timeout or _CHECK_SECONDS)
    event = {"event": "netcheck", **report.to_dict()}
    if context.args.peer is None:
        session.conclude(event)
    else:
        context.output.event(event)
    if not report.peers:
        context.output.note("without known peers (--known-peer) only this machine can be looked at")
        return True
    if not report.online and context.args.peer is None:
        context.output.complain("no known peer was reached")
    return report.online


async def _until_direct(connection: Connection, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            changes = connection.path_changes()
            path = connection.path
            while path is None or path.method == "relayed":
                path = (await anext(changes)).path
    except (TimeoutError, StopAsyncIteration):
        return
