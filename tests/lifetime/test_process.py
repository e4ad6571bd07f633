"""Signals, forks and the end of the interpreter, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import loop_factories

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes and signals")

LOOPS = sorted(loop_factories())
TESTS = Path(__file__).parents[1]


def start(name: str, loop: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "lifetime.programs", name, loop],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def finish(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
        program.wait()
    return program.returncode, out, err


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["exit_live", "exit_abrupt", "exit_thread"])
def test_the_interpreter_exits_with_a_live_endpoint(name: str, loop: str) -> None:
    code, out, err = finish(start(name, loop))
    assert (code, err) == (0, "")
    assert out == ("" if name == "exit_abrupt" else "done\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_ctrl_c_interrupts_an_await(loop: str) -> None:
    program = start("interrupted", loop)
    assert program.stdout is not None
    assert program.stdout.readline() == "waiting\n"
    program.send_signal(signal.SIGINT)
    code, out, err = finish(program)
    assert out == "cancelled\n"
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert code == -signal.SIGINT


@pytest.mark.parametrize("loop", LOOPS)
def test_a_forked_child_gets_an_error_and_may_start_anew(loop: str) -> None:
    assert finish(start("forked", loop)) == (0, "done\n", "")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_forked_child_may_drop_what_it_inherited(loop: str) -> None:
    assert finish(start("multiprocessing_fork", loop)) == (0, "done\n", "")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_port_is_free_while_a_forked_child_lives(loop: str) -> None:
    assert finish(start("fork_frees_the_port", loop)) == (0, "done\n", "")
