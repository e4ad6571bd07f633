"""The comparison as Markdown: figures, targets, and under which conditions."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from contenders.protocol import (
    CONNECTION_WINDOW,
    DATAGRAM_BUFFER,
    STREAM_WINDOW,
    WRITE_BYTES,
    Contender,
)
from startup import Startup
from workloads import FIGURES, Figure

# Values by contender and figure, one for each run.
Results = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, slots=True)
class Target:
    """A target and what became of it."""

    what: str
    demanded: str
    measured: str
    met: bool


def render(
    results: Results,
    contenders: Sequence[Contender],
    startup: Startup,
    environment: Mapping[str, str],
    conditions: Sequence[str],
) -> str:
    """The whole page."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`: two processes per contender on the loopback interface, one",
        "contender at a time, interleaved, in changing order. Cells are *minimum / median* of the",
        "runs, also where less is better. Compare contenders within this page only, and CPU",
        "seconds rather than rates: processes share the cores with each other and with the rest",
        "of the machine.",
        "",
        *(f"- {name}: {value}" for name, value in environment.items()),
        *(f"- {condition}" for condition in conditions),
        (
            f"- Windows: {STREAM_WINDOW >> 20} MiB per stream, {CONNECTION_WINDOW >> 20} MiB per "
            f"connection; datagram queue {DATAGRAM_BUFFER >> 20} MiB; writes of "
            f"{WRITE_BYTES >> 10} KiB; 1 MB = 10⁶ bytes"
        ),
        "- Key exchange: X25519MLKEM768 everywhere; CPU is that of both processes together",
        "",
        "## Contenders",
        "",
        *(f"- **{contender.name}**: {contender.description}" for contender in contenders),
        "",
        "## Figures",
        "",
        *_table(results, [contender.name for contender in contenders]),
        "",
        (
            f"Import of the package: {startup.import_ms[0]:.0f} / {startup.import_ms[1]:.0f} ms; "
            f"start of a node with a fresh identity: {startup.node_ms[0]:.1f} / "
            f"{startup.node_ms[1]:.1f} ms (minimum / median, fresh processes)."
        ),
        "",
        "## Targets",
        "",
        "By medians. A target missed is a result too.",
        "",
        "| what | at least | measured | |",
        "|---|---|---|---|",
        *(
            f"| {target.what} | {target.demanded} | {target.measured} | "
            f"{'met' if target.met else '**missed**'} |"
            for target in targets(results, startup)
        ),
        "",
    ]
    return "\n".join(lines)


def _table(results: Results, names: Sequence[str]) -> Iterator[str]:
    yield f"| | unit | {' | '.join(names)} |"
    yield f"|---|---|{'---|' * len(names)}"
    for figure in FIGURES:
        cells = " | ".join(_cell(results.get(name, {}).get(figure.key), figure) for name in names)
        yield f"| {figure.title} | {figure.unit} | {cells} |"


def _cell(values: Sequence[float] | None, figure: Figure) -> str:
    if not values:
        return "-"
    median = statistics.median(values)
    if len(values) == 1:
        return f"{median:,.{figure.digits}f}"
    return f"{min(values):,.{figure.digits}f} / {median:,.{figure.digits}f}"


def targets(results: Results, startup: Startup) -> Iterable[Target]:
    """The targets that the figures at hand can decide."""

    def median(name: str, key: str) -> float | None:
        values = results.get(name, {}).get(key)
        return statistics.median(values) if values else None

    def ratio(key: str, over: str, under: str) -> float | None:
        top, bottom = median(over, key), median(under, key)
        return None if top is None or not bottom else top / bottom

    for direction in ("up", "down"):
        what = f"bulk {direction}load, one stream, from Python"
        share = ratio(f"bulk_{direction}_1", "anyreach", "quinn")
        if share is not None:
            yield Target(what, "90 % of quinn", f"{share:.0%}", share >= 0.9)
        for rival, factor in (("aioquic", 30), ("qh3", 8)):
            times = ratio(f"bulk_{direction}_1_cpu", rival, "anyreach")
            if times is not None:
                demanded = f"{factor} times {rival} per CPU second"
                yield Target(what, demanded, f"{times:.1f} times", times >= factor)
    times = ratio("handshakes", "anyreach", "aioquic")
    if times is not None:
        yield Target("handshakes", "5 times aioquic's rate", f"{times:.1f} times", times >= 5)
    times = ratio("handshakes", "quinn", "anyreach")
    if times is not None:
        yield Target("handshakes", "within 1.6 of quinn", f"{times:.2f}", times <= 1.6)
    idle = median("anyreach", "idle")
    if idle is not None:
        yield Target("idle connection", "at most 80 KB per end", f"{idle:.0f} KB", idle <= 80)
    yield Target(
        "import", "at most 150 ms", f"{startup.import_ms[1]:.0f} ms", startup.import_ms[1] <= 150
    )
    yield Target(
        "node start", "at most 50 ms", f"{startup.node_ms[1]:.1f} ms", startup.node_ms[1] <= 50
    )
