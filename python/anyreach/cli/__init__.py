"""The command line: ``anyreach`` and ``python -m anyreach``.

One module per command, each with ``HELP``, ``SERVICE`` (whether it runs until it is told to
stop), ``add_arguments(parser)`` and ``async run(context) -> exit code``. Exit codes: 0 success,
1 not reached or failed, 2 wrong usage; 128 + n when signal n ended a command early.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from anyreach import __version__

from . import (
    bench,
    connect,
    id,  # noqa: A004 (named as the command)
    netcheck,
    node,
    ping,
    receive,
    send,
)
from .options import set_up_logging
from .runner import flush_standard_streams, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

__all__ = ["build_parser", "main"]

_COMMANDS: Final[dict[str, ModuleType]] = {
    "node": node,
    "connect": connect,
    "ping": ping,
    "send": send,
    "receive": receive,
    "bench": bench,
    "netcheck": netcheck,
    "id": id,
}

_DESCRIPTION: Final = """\
Any two nodes reach each other: post-quantum QUIC on one dual-stack UDP socket, no central
servers. PEER is ID@HOST:PORT, a ticket as `anyreach node` prints it, or the PeerId of a peer
that is connected.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="anyreach", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"anyreach {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, allow_abbrev=False
        )
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        argv: arguments without the program name; those of the process if ``None``.
    """
    args = build_parser().parse_args(argv)
    module = _COMMANDS[args.command]
    if (level := getattr(args, "log_level", None)) is not None:
        set_up_logging(level)
    try:
        return run(module.run, args, service=module.SERVICE)
    finally:
        flush_standard_streams()
