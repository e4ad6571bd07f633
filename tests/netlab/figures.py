"""What tests measure besides whether they pass, for the reports.

With ``NETLAB_FIGURES`` in the environment each figure is appended to that file as a JSON line.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

__all__ = ["VARIABLE", "note", "read"]

VARIABLE: Final = "NETLAB_FIGURES"


def note(what: str, **values: object) -> None:
    """Print a figure, and keep it where one was asked to."""
    line = json.dumps({"what": what, **values})
    print(line)
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a") as file:
            file.write(line + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All figures in a file; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
