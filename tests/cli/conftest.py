"""Programs that end with their test."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from .program import Program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def _has_ipv6_loopback() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.fixture(
    params=[
        "127.0.0.1",
        pytest.param(
            "[::1]",
            marks=pytest.mark.skipif(not _has_ipv6_loopback(), reason="no IPv6 on this machine"),
        ),
    ]
)
def host(request: pytest.FixtureRequest) -> str:
    """The loopback address of each family."""
    address: str = request.param
    return address


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs; what still runs at the end of the test is killed."""
    with contextlib.ExitStack() as stack:

        def start_program(*arguments: str | Path, **options: dict[str, str]) -> Program:
            return stack.enter_context(Program(*arguments, home=tmp_path, **options))

        yield start_program


@pytest.fixture
def node(start: Callable[..., Program], tmp_path: Path) -> Program:
    """A node on both families that takes files into ``inbox``; its ``ready`` event is first."""
    program = start("node", "--bind", "[::]:0", "--ephemeral", "--receive", tmp_path / "inbox")
    program.wait_for("ready")
    return program
