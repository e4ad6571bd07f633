"""Fixtures of the laboratory tests: a fresh lab per test, its programs' output in reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .lab import Lab
from .requirements import netlab_required

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_LAB = pytest.StashKey[Lab]()
_HERE = Path(__file__).parent


_AMOUNT = "NETLAB"
"""Environment variable: ``full`` for the tests marked so, too."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark everything in this folder, so that ``-m 'not netlab'`` leaves it out."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.netlab)
    if os.environ.get(_AMOUNT) == "full":
        return
    left_out = [item for item in items if item.get_closest_marker("full") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the programs in the lab printed when a test fails."""
    report = yield
    lab = item.stash.get(_LAB, None)
    if call.when == "call" and report.failed and lab is not None:
        report.sections.append(("Programs in the lab", lab.transcripts()))
    return report


@pytest.fixture(scope="session")
def netlab() -> None:
    """Skip (or fail, see ``requirements``) where the lab cannot run."""
    netlab_required()


@pytest.fixture
def lab(request: pytest.FixtureRequest, netlab: None) -> Iterator[Lab]:  # noqa: ARG001
    """An empty lab: the internet router and no hosts."""
    with Lab() as lab:
        request.node.stash[_LAB] = lab
        yield lab
