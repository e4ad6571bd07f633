"""``anyreach receive DIR``: take files from peers until told to stop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from anyreach.peer import PeerId
from anyreach.transfer import Inbox

from . import options
from .inbox import Mailroom
from .runner import OK
from .services import Services
from .session import running_node

if TYPE_CHECKING:
    import argparse

    from .runner import Context

SERVICE = True
HELP = "take files from peers into a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the command line."""
    parser.add_argument("directory", metavar="DIR", help="where files go; created if missing")
    add_receive_options(parser)
    options.add_common_options(parser, bind="a free port")


def add_receive_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options about taking files, shared with ``node``."""
    parser.add_argument(
        "--from",
        dest="senders",
        action="append",
        default=[],
        metavar="ID",
        help="take files from this PeerId only; may be repeated (default: from anyone)",
    )
    parser.add_argument(
        "--max-size",
        type=options.size,
        metavar="BYTES",
        help="refuse larger files, such as 500M (default: what the disk holds)",
    )
    options.add_progress_option(parser)


async def open_mailroom(context: Context, directory: str) -> Mailroom:
    """The mailroom for ``directory`` with the options of the command line.

    Raises:
        OSError: the folder cannot be created or written to.
        ConfigError: a ``--from`` is no PeerId.
    """
    args = context.args
    senders = frozenset(PeerId.parse(text) for text in args.senders)
    inbox = await asyncio.to_thread(Inbox, Path(directory), max_size=args.max_size)
    await asyncio.to_thread(inbox.remove_stale)
    return Mailroom(inbox, context.output, senders, progress=args.progress)


async def run(context: Context) -> int:
    """Runs the command."""
    mailroom = await open_mailroom(context, context.args.directory)
    # Answers pings as well: people check a peer before they send it gigabytes.
    services = Services(mailroom, frozenset({"send", "ping"}))
    async with running_node(context, bind=options.CLIENT_BIND, services=services, all_events=True):
        await asyncio.Event().wait()
    return OK
