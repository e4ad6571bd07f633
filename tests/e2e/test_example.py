"""The example in the package's docstring works as printed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import anyreach


def test_the_example_of_the_docstring(tmp_path: Path) -> None:
    assert anyreach.__doc__ is not None
    code = textwrap.dedent(anyreach.__doc__.partition("::\n")[2])
    program = tmp_path / "example.py"
    program.write_text(code)
    package = str(Path(anyreach.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "direct" in done.stdout
