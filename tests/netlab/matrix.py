"""``python -m tests.netlab.matrix``: every cell of the table, and a report in Markdown.

Several labs at once, each with a part of the cells; what fails is told at the end with the words
of the nodes concerned, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import figures, kinds
from .cells import DUAL, TABLE
from .lab import Lab
from .matrix_report import Circumstances, report
from .requirements import missing
from .routers import Engine
from .trial import Ground, Lines, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .cells import Cell

_SIZE: Final = 48
"""Cells of one lab: the more, the fewer nodes must be started, and the longer the last one runs."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one lab does."""

    engine: Engine
    lines: Lines
    relays: int
    cells: tuple[Cell, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    options = _parse(argv)
    reason = missing()
    if reason is not None:
        print(f"no network lab here: {reason}", file=sys.stderr)
        return 2
    lines = Lines(options.delay, options.loss)
    engines = [Engine(options.flavour)] if options.flavour else list(Engine)
    cells = options.pairs or [*TABLE, *DUAL]
    batches = [
        _Batch(engine, lines, options.relays, tuple(part))
        for _ in range(options.runs)
        for engine in engines
        for part in _parts(_near_together(cells), _SIZE)
    ]
    load, began = os.getloadavg()[0], time.monotonic()
    trials = list(_trials(batches, options.labs))
    circumstances = Circumstances(
        lines=lines,
        runs=options.runs,
        relays=options.relays,
        labs=options.labs,
        load=load,
        minutes=(time.monotonic() - began) / 60,
    )
    events = figures.read(options.figures) if options.figures else []
    text = report(trials, circumstances, events)
    print(text)
    if options.output:
        options.output.write_text(text)
    failed = [trial for trial in trials if trial.faults]
    for trial in failed:
        print(f"\n{_name(trial)}", *trial.faults, sep="\n", file=sys.stderr)
    print(f"{len(failed)} of {len(trials)} trials failed", file=sys.stderr)
    return 1 if failed else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.netlab.matrix", description=__doc__)
    parser.add_argument(
        "--pairs",
        type=_cell,
        nargs="+",
        metavar="NEAR/FAR",
        help="only these cells, as public/port-restricted (default: all)",
    )
    parser.add_argument(
        "--flavour",
        choices=[engine.value for engine in Engine],
        help="what translates addresses (default: both, one after the other)",
    )
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="of each cell (default 1)")
    parser.add_argument(
        "--delay", type=float, default=0, metavar="MS", help="between any two hosts, one way"
    )
    parser.add_argument(
        "--loss", type=float, default=0, metavar="PCT", help="between any two hosts, one way"
    )
    parser.add_argument("--relays", type=int, default=1, metavar="N", help="nodes that all know")
    parser.add_argument("--labs", type=int, default=3, metavar="N", help="at once (default 3)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument(
        "--figures", type=Path, metavar="FILE", help="what the tests of events measured"
    )
    return parser.parse_args(argv)


def _cell(text: str) -> Cell:
    near, slash, far = text.partition("/")
    if not slash or near not in kinds.ALL or far not in kinds.ALL:
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND/KIND of {', '.join(kinds.ALL)}")
    return kinds.ALL[near], kinds.ALL[far]


def _near_together(cells: Sequence[Cell]) -> list[Cell]:
    """The cells by their near ends, so that a lab needs few sites."""
    return sorted(cells, key=lambda cell: cell[0].name)


def _parts(cells: Sequence[Cell], size: int) -> list[Sequence[Cell]]:
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def _trials(batches: Sequence[_Batch], labs: int) -> Iterator[Trial]:
    # Fresh interpreters: a lab has threads, and a watchdog for its process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(labs, mp_context=context) as pool:
        running = [pool.submit(_run, batch) for batch in batches]
        for done in as_completed(running):
            yield from done.result()


def _run(batch: _Batch) -> list[Trial]:
    trials = []
    with Lab() as lab:
        ground = Ground(lab, batch.engine, batch.lines, relays=batch.relays)
        ground.prepare(*batch.cells)
        for near, far in batch.cells:
            try:
                trial = ground.run(near, far)
            except (AssertionError, OSError) as error:
                trial = Trial.failed(near, far, batch.engine, str(error))
            state = trial.faults[0].partition("\n")[0] if trial.faults else "ok"
            print(f"{_name(trial)}: {trial.method}, {state}", file=sys.stderr, flush=True)
            trials.append(trial)
    return trials


def _name(trial: Trial) -> str:
    return f"{trial.near}-to-{trial.far}-{trial.engine.value}"


if __name__ == "__main__":
    sys.exit(main())
