"""``anyreach id``: the identity of this user."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from anyreach.identity import Identity, default_identity_path

from . import options
from .runner import OK

if TYPE_CHECKING:
    import argparse

    from .runner import Context

SERVICE = False
HELP = "show the PeerId of this user, or make a new identity"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the command line."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--show", action="store_true", help="show the PeerId, creating the key first if needed"
    )
    what.add_argument(
        "--new", action="store_true", help="make a new key; an old one is kept beside it"
    )
    parser.add_argument("--identity", metavar="FILE", help="key file (default: yours)")
    options.add_json_option(parser)


async def run(context: Context) -> int:
    """Runs the command."""
    args, output = context.args, context.output
    path = default_identity_path() if args.identity is None else Path(args.identity)
    identity, path, kept = await asyncio.to_thread(_identity, path, args.new)
    if kept is not None:
        output.note(f"the old key is kept as {kept}")
    output.event({"event": "id", "peer_id": str(identity.peer_id), "file": str(path)})
    return OK


def _identity(path: Path, new: bool) -> tuple[Identity, Path, Path | None]:
    """The identity, its absolute path, and where an old key went."""
    path = path.expanduser().absolute()
    if not new:
        return Identity.load_or_create(path), path, None
    identity = Identity.generate()
    kept = _keep_old(path)
    identity.save(path)
    return identity, path, kept


def _keep_old(path: Path) -> Path | None:
    """Moves an existing key aside: a lost key cannot be recovered."""
    if not path.is_symlink() and not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return path.rename(kept)
