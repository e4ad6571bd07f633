"""The demonstration a newcomer runs first."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil

from .program import PATIENCE, environment, eventually

if TYPE_CHECKING:
    from pathlib import Path


def demo(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    (tmp_path / "tmp").mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "anyreach.cli.demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path, {"TMPDIR": str(tmp_path / "tmp")}),
        text=True,
        encoding="utf-8",
    )


def test_it_shows_the_main_job(tmp_path: Path) -> None:
    with demo(tmp_path, "--megabytes", "5") as process:
        output, errors = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0, output + errors
    for words in ("direct", "X25519MLKEM768", "seen from outside as", "SHA-256 of copy", "5 of 5"):
        assert words in output
    assert "100%" in errors  # the progress of the file
    assert list((tmp_path / "tmp").iterdir()) == []


def test_stopped_halfway_it_leaves_nothing(tmp_path: Path) -> None:
    with demo(tmp_path, "--megabytes", "5") as process:
        assert process.stdout is not None
        while "3." not in process.stdout.readline():
            pass
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    eventually(lambda: not any(map(_runs, children)), "the processes of the demo end")
    assert list((tmp_path / "tmp").iterdir()) == []


def _runs(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
