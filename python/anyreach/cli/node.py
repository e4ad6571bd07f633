"""``anyreach node``: run a node until told to stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from . import options
from .receive import add_receive_options, open_mailroom
from .runner import OK, UsageError
from .services import Services
from .session import running_node

if TYPE_CHECKING:
    import argparse

    from .runner import Context

SERVICE = True
HELP = "run a node that peers can join, ping, measure and send files to"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the command line."""
    parser.add_argument(
        "--receive", metavar="DIR", help="take files into DIR (default: refuse them)"
    )
    add_receive_options(parser)
    options.add_common_options(parser, bind=options.NODE_BIND, tcp=options.NODE_TCP)


async def run(context: Context) -> int:
    """Runs the command."""
    args = context.args
    if args.receive is None and (args.senders or args.max_size is not None):
        raise UsageError("--from and --max-size need --receive DIR")
    mailroom = None if args.receive is None else await open_mailroom(context, args.receive)
    async with running_node(
        context,
        bind=options.NODE_BIND,
        defaults={"tcp": options.NODE_TCP},
        services=Services(mailroom),
        all_events=True,
        own_identity=True,
    ):
        await asyncio.Event().wait()
    return OK
