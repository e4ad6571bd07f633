"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

# How long an example takes says something about the machine, and is measured in benches/.
settings.register_profile("anyreach", deadline=None)
settings.load_profile("anyreach")


def pytest_configure() -> None:
    """Let programs the tests start elsewhere find the package where the tests do."""
    if path := os.environ.get("PYTHONPATH"):
        entries = (str(Path(entry).resolve()) for entry in path.split(os.pathsep) if entry)
        os.environ["PYTHONPATH"] = os.pathsep.join(entries)
