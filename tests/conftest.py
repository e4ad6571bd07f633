"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path


def pytest_configure() -> None:
    """Let programs the tests start elsewhere find the package where the tests do."""
    if path := os.environ.get("PYTHONPATH"):
        entries = (str(Path(entry).resolve()) for entry in path.split(os.pathsep) if entry)
        os.environ["PYTHONPATH"] = os.pathsep.join(entries)
