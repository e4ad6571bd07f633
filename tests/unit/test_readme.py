"""The Python in the README runs as printed, and so does that in the guide."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def programs() -> list[object]:
    found: list[object] = []
    for page in (ROOT / "README.md", ROOT / "docs" / "guide.md"):
        blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
        found += [
            pytest.param(code, id=f"{page.name}-{number}")
            for number, code in enumerate(blocks)
            if "asyncio.run(" in code
        ]
    return found


@pytest.mark.parametrize("code", programs())
def test_programs_run_as_printed(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_first_example_says_what_it_should() -> None:
    (code, *_rest) = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "b'hello, whoever you are on the network' from True\n"
