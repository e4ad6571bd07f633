"""The results of the matrix as Markdown. Pure: from trials to text."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import truth
from .cells import SOURCES, TABLE_KINDS, WEIGHTS, share
from .trial import patience
from .truth import Cheapest

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from .kinds import SiteKind
    from .trial import Lines, Trial

__all__ = ["Circumstances", "report"]

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")

_LETTERS: Final = dict(zip(Cheapest, "DSPBCRT", strict=True))

_WAYS: Final = {
    Cheapest.DIRECT: "one end dials",
    Cheapest.SIMULTANEOUS: "simultaneous punching",
    Cheapest.PREDICTION: "port prediction",
    Cheapest.BIRTHDAY: "birthday: 256 sockets, up to 1,400 ports",
    Cheapest.TCP: "TCP to the public end itself",
    Cheapest.UDP_RELAY: "a relay",
    Cheapest.TCP_RELAY: "a relay, by TCP or through a proxy",
}


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the trials were made under.

    Attributes:
        lines: between any two hosts.
        runs: of every cell, with NATs of each engine.
        relays: nodes that all others know.
        labs: at once.
        load: average of the machine before.
        minutes: it took.
    """

    lines: Lines
    runs: int
    relays: int
    labs: int
    load: float
    minutes: float


def report(
    trials: Sequence[Trial],
    circumstances: Circumstances,
    events: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The report.

    Args:
        trials: all of them, in any order.
        circumstances: for its head.
        events: figures of the tests of events, with ``what`` and further values.
    """
    parts = [
        _head(trials, circumstances),
        _table(trials),
        _by_way(trials),
        _weighted(trials),
        _events(events),
        _every_cell(trials),
    ]
    return _filled("\n\n".join(part for part in parts if part)) + "\n"


def _head(trials: Sequence[Trial], at: Circumstances) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    engines = " and ".join(sorted({trial.engine.value for trial in trials}))
    failed = sum(bool(trial.faults) for trial in trials)
    return f"""\
# Through NATs: every pair of kinds of networks

Made by `python -m tests.netlab.matrix`, not by hand. Two nodes at sites of their own, each in a
network namespace behind real packet filters and address translation ({engines} NATs), know
{_count(at.relays, "public node")} in common. The near one, which has joined, calls `connect()` with
the PeerId of the far one and nothing else. A trial fails if the pair does not end up as direct as
the laws of packets allow within 10 s (50 s for the birthday method), if either end claims more than
the router in the middle counted, or if data does not arrive.

{today}; {os.cpu_count()} cores for everything, load {at.load:.1f} before,
{_count(at.labs, "lab")} at once; {platform.system()} {platform.release()}, Python
{platform.python_version()}. Between any two hosts {at.lines.delay:g} ms and {at.lines.loss:g} %
loss, one way. {_count(at.runs, "run").capitalize()}, {at.minutes:.0f} minutes.

**{len(trials) - failed} of {len(trials)} trials did what is possible.**"""


def _table(trials: Sequence[Trial]) -> str:
    present = [kind for kind in TABLE_KINDS if any(kind in (t.near, t.far) for t in trials)]
    cells = _grouped(trials, lambda trial: (trial.near, trial.far))
    rows = []
    for near in present:
        row = [str(near)]
        for far in present:
            made = cells.get((near, far), [])
            letter = _LETTERS[truth.cheapest(near, far)]
            failed = sum(bool(trial.faults) for trial in made)
            row.append("" if not made else f"**{letter}** {failed}✗" if failed else letter)
        rows.append(row)
    legend = ", ".join(f"**{_LETTERS[way]}** {words}" for way, words in _WAYS.items())
    return f"""\
## The table

Rows connect to columns. The letter is the cheapest way that the networks allow; with ✗ the number
of trials that did not end up there, or not honestly. {legend}.

{_markdown(["", *map(str, present)], rows)}"""


def _by_way(trials: Sequence[Trial]) -> str:
    rows = []
    for way, made in sorted(_grouped(trials, lambda t: truth.cheapest(t.near, t.far)).items()):
        straight = [t.ms_direct for t in made if t.ms_direct is not None]
        rows.append(
            [
                f"{_LETTERS[way]}: {_WAYS[way]}",
                str(len(made)),
                str(len(straight)),
                _milliseconds(t.ms_first for t in made),
                _milliseconds(t.ms for t in made),
                _milliseconds(straight),
                _milliseconds(straight, 0.95),
                _milliseconds(straight, 1.0),
                f"{statistics.median(t.packets for t in made):,.0f}",
                f"{max(t.packets for t in made):,}",
            ]
        )
    head = [
        "cheapest way", "trials", "got direct", "first path, ms", "`connect()`, ms",
        "direct, ms", "p95", "most", "packets", "most",
    ]  # fmt: skip
    return f"""\
## By the cheapest way

Milliseconds from the call of `connect()`: until the first path was usable, until it returned, until
data took a path without a relay; medians unless said otherwise. Packets are those of the pair and
the relays until then, all probes included.

{_markdown(head, rows)}"""


def _weighted(trials: Sequence[Trial]) -> str:
    cells = _grouped(trials, lambda trial: (trial.near, trial.far))
    if any((a, b) not in cells for a in WEIGHTS for b in WEIGHTS):
        return ""

    def got_direct(near: SiteKind, far: SiteKind) -> bool:
        return all(t.ms_direct is not None and not t.faults for t in cells[near, far])

    udp = {kind: weight for kind, weight in WEIGHTS.items() if kind.egress.value == "any"}
    rows = [
        [words, f"{share(got_direct, weights):.1%}", f"{share(weights=weights):.1%}"]
        for words, weights in (("all", WEIGHTS), ("with UDP at both ends", udp))
    ]
    weights = ", ".join(f"{kind} {weight:g}" for kind, weight in WEIGHTS.items())
    return f"""\
## The share of direct pairs

{_markdown(["pairs", "direct here, in every trial", "possible"], rows)}

Weights in per cent: {weights}. {SOURCES}"""


def _events(events: Sequence[Mapping[str, Any]]) -> str:
    if not events:
        return ""
    rows = []
    for what, noted in sorted(_grouped(events, lambda event: str(event["what"])).items()):
        names = [name for name in noted[0] if name != "what"]
        for name in names:
            values = sorted(float(event[name]) for event in noted if event.get(name) is not None)
            if values:
                middle = statistics.median(values)
                rows.append(
                    [what, name.replace("_", " "), str(len(values))]
                    + [f"{value:.2f}" for value in (middle, values[-1])]
                )
    return f"""\
## What happens while connected

Measured by `tests/netlab/test_punched_events.py` while data flows both ways, on lines without
delay; seconds. A stall is the longest time for which a receiver got nothing.

{_markdown(["event", "figure", "times", "median", "most"], rows)}"""


def _every_cell(trials: Sequence[Trial]) -> str:
    rows = []
    for (near, far), made in _grouped(trials, lambda trial: (trial.near, trial.far)).items():
        methods = sorted({trial.method or "none" for trial in made})
        bad = sum(bool(trial.faults) for trial in made)
        rows.append(
            [
                f"{near} to {far}",
                _LETTERS[truth.cheapest(near, far)],
                "/".join(methods) + (f" ({bad} of {len(made)} failed)" if bad else ""),
                _milliseconds(t.ms for t in made),
                _milliseconds(t.ms_direct for t in made),
                _milliseconds((t.ms_direct for t in made), 1.0),
                f"{statistics.median(t.packets for t in made):,.0f}",
                f"{patience(near, far):.0f}" if any(t.ms_direct for t in made) else "",
            ]
        )
    rows.sort()
    head = ["near to far", "way", "method", "`connect()`, ms", "direct, ms", "most", "packets",
            "allowed, s"]  # fmt: skip
    return f"## Every cell\n\n{_markdown(head, rows)}"


def _milliseconds(values: Iterable[float | None], quantile: float = 0.5) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return ""
    if quantile == 0.5:
        return f"{statistics.median(known):,.0f}"
    return f"{known[min(len(known) - 1, int(quantile * len(known)))]:,.0f}"


def _grouped(items: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    groups: defaultdict[K, list[V]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def _filled(text: str) -> str:
    """Paragraphs in lines of equal length; headings and tables as they are."""
    return "\n\n".join(
        part if part.startswith(("#", "|")) else textwrap.fill(part, 100, break_on_hyphens=False)
        for part in text.split("\n\n")
    )


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _count(number: int, noun: str) -> str:
    return f"{'one' if number == 1 else number} {noun}{'' if number == 1 else 's'}"
