"""``python -m tests.netlab``: build a pair of sites by hand, or see and remove what labs left.

python -m tests.netlab KIND_A KIND_B [options] [-- COMMAND...]
python -m tests.netlab kinds | list | clean [--all]
"""

from __future__ import annotations

import argparse
import sys

from . import by_hand, kinds, reaper


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in kinds.ALL:
        return by_hand.main(words)
    parser = argparse.ArgumentParser(
        prog="python -m tests.netlab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("kinds", help="show the kinds of sites")
    commands.add_parser("list", help="show the namespaces of all labs")
    clean = commands.add_parser("clean", help="remove the labs whose owner is gone")
    clean.add_argument("--all", action="store_true", help="also labs that are in use")
    options = parser.parse_args(words)
    if options.command == "kinds":
        print(*kinds.ALL, sep="\n")
        return 0
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
