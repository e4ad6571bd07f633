"""``python -m tests.netlab list | clean [--all]``: see and remove namespaces of labs."""

from __future__ import annotations

import argparse
import sys

from . import reaper


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.netlab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the namespaces of all labs")
    clean = commands.add_parser("clean", help="remove the labs whose owner is gone")
    clean.add_argument("--all", action="store_true", help="also labs that are in use")
    options = parser.parse_args(argv)
    dead = reaper.dead_owner_prefixes()
    if options.command == "list":
        for name in reaper.namespaces():
            state = "left over" if any(name.startswith(prefix) for prefix in dead) else "in use"
            print(f"{name}  {state}")
        return 0
    removed = [name for prefix in dead for name in reaper.remove_prefix(prefix)]
    if options.all:
        removed += reaper.namespaces()
        reaper.remove(reaper.namespaces())
    print(f"{len(removed)} namespaces removed", *removed, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
