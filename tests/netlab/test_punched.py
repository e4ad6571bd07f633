"""Every pair of kinds of sites connects in the cheapest way that its networks allow.

One test per cell of the table and per pair with IPv6, in both roles, with NATs of the kernel and of
a program, on perfect lines and on bad ones. A few cells of every kind are for every day; with
``NETLAB=full`` in the environment all are tested (``make netlab``). What the software claims must
be what the internet's router counted.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from . import kinds
from .cells import DUAL, QUICK, QUICK_DUAL, TABLE
from .kinds import Egress
from .lab import Lab
from .routers import Engine
from .trial import DISTANT, PERFECT, Ground, Lines
from .world import pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .cells import Cell

_QUICK = {
    (Engine.KERNEL, PERFECT): (*QUICK, *QUICK_DUAL),
    (Engine.USERSPACE, PERFECT): QUICK,
}
"""Those tested every day; the rest is marked ``full``."""

_ALL = (*TABLE, *DUAL)

_ON_BAD_LINES = [(near, far) for near, far in _ALL if near.egress is far.egress is Egress.ANY]
"""Those that relay over TCP anyway have their tests on bad lines among those of relays."""


def _parameter(engine: Engine, lines: Lines, cell: Cell) -> object:
    near, far = cell
    name = f"{near}-to-{far}-{engine.value}"
    # Nodes stay at their sites, so that the cells of one lab must not be spread over workers.
    marks = [pytest.mark.xdist_group(f"punched-{engine.value}-{lines}")]
    if cell not in _QUICK.get((engine, lines), ()):
        marks.append(pytest.mark.full)
    return pytest.param(
        engine, lines, cell, id=name if lines == PERFECT else f"{name}-{lines}", marks=marks
    )


@pytest.fixture(scope="module")
def ground(netlab: None) -> Iterator[Callable[[Engine, Lines], Ground]]:  # noqa: ARG001
    """Labs of one flavour each, made when they are first needed."""
    with contextlib.ExitStack() as stack:
        grounds: dict[tuple[Engine, Lines], Ground] = {}

        def get(engine: Engine, lines: Lines) -> Ground:
            if (engine, lines) not in grounds:
                grounds[engine, lines] = Ground(stack.enter_context(Lab()), engine, lines)
            return grounds[engine, lines]

        yield get


@pytest.mark.parametrize(
    ("engine", "lines", "cell"),
    [
        _parameter(engine, lines, cell)
        for lines, cells in ((PERFECT, _ALL), (DISTANT, _ON_BAD_LINES))
        for engine in Engine
        for cell in cells
    ],
)
def test_cell(
    ground: Callable[[Engine, Lines], Ground], engine: Engine, lines: Lines, cell: Cell
) -> None:
    trial = ground(engine, lines).run(*cell)
    assert not trial.faults, "\n".join(trial.faults)


@pytest.mark.usefixtures("netlab")
def test_the_command_line_waits_for_a_direct_path_and_tells_of_it() -> None:
    with pair(kinds.PORT_RESTRICTED, kinds.CGNAT_PORT_RESTRICTED) as (world, near, far):
        node = world.start_node(far)
        outcome = world.run(near, "connect", node.peer_id, "--hold", "3", "--require", "direct")
        assert outcome.code == 0, outcome.stderr
        result = outcome.last("result")
        assert result["method"] == "punched"
        assert result["remote"].startswith(f"{far.external(4)}:")
        assert result["ms_first"] <= result["ms_direct"]
        theirs = node.process.wait_event("path", lambda e: e["method"] != "relayed")
        assert theirs["remote"].startswith(f"{near.external(4)}:")
