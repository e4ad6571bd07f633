"""Event loops to run the same scenario on."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Run(Protocol):
    """Runs a coroutine to its end on a fresh loop, which is closed afterwards."""

    def __call__(self, main: Coroutine[Any, Any, T]) -> T: ...


class BlindLoop(asyncio.SelectorEventLoop):
    """A loop that watches no descriptors for others, as Windows' proactor does not."""

    def add_reader(self, *args: object) -> NoReturn:
        raise NotImplementedError


def loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.SelectorEventLoop,
        "blind": BlindLoop,
    }
    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415

        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(params=sorted(loop_factories()))
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes event loops of one kind; the test runs once for each kind."""
    return loop_factories()[request.param]


@pytest.fixture
def run(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    def run(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(main)

    return run
