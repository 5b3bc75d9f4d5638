"""The row that every benchmark yields, and the table that rows become."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Row:
    """One figure beside the one that it is held against.

    `ours` and `theirs` are in `unit`; `ratio` is what `target` speaks of. A figure that could not be measured is None
    and `note` says why. `met` is None where there is no target or nothing was measured.
    """

    name: str
    ours: float | None
    theirs: float | None
    unit: str
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""


def at_most(name: str, ours: float, theirs: float, unit: str, limit: float, note: str = "") -> Row:
    """Return a row whose ratio ours / theirs should not exceed `limit` (times, memory)."""
    ratio = ours / theirs
    return Row(name, ours, theirs, unit, ratio, f"≤ {limit:g}", ratio <= limit, note)


def at_least(name: str, ours: float, theirs: float, unit: str, limit: float, note: str = "") -> Row:
    """Return a row whose ratio ours / theirs should reach `limit` (rates: pictures a second)."""
    ratio = ours / theirs
    return Row(name, ours, theirs, unit, ratio, f"≥ {limit:g}", ratio >= limit, note)


def times_faster(name: str, ours: float, theirs: float, unit: str, limit: float, note: str = "") -> Row:
    """Return a row of two times whose ratio theirs / ours should reach `limit`."""
    ratio = theirs / ours
    return Row(name, ours, theirs, unit, ratio, f"≥ {limit:g} times faster", ratio >= limit, note)


def below(name: str, ours: float, unit: str, limit: float, theirs: float | None = None, note: str = "") -> Row:
    """Return a row whose own figure should stay below `limit`, in `unit`."""
    return Row(name, ours, theirs, unit, None, f"< {limit:g} {unit}", ours < limit, note)


def not_measured(name: str, unit: str, target: str, why: str, theirs: float | None = None) -> Row:
    """Return a row for a figure that this machine can't give; `theirs` is a published one."""
    return Row(name, None, theirs, unit, None, target, None, why)


def median(values: Sequence[float]) -> float:
    """Return the middle of `values`, the mean of the two middle ones where their number is even."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def interleaved(functions: Sequence[Callable[[], object]], runs: int, warmup: int = 1) -> list[float]:
    """Return the median seconds of each function, run in turn so that a disturbance of the machine hits all alike."""
    for _ in range(warmup):
        for function in functions:
            function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(runs):
        for function, spent in zip(functions, times, strict=True):
            started = perf_counter()
            function()
            spent.append(perf_counter() - started)
    return [median(spent) for spent in times]


def figure(value: float | None) -> str:
    """Return `value` with three significant digits, or a dash."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def verdict(row: Row) -> str:
    """Return a word for whether the row's target is met."""
    if row.ours is None:
        return "not measured"
    return "" if row.met is None else "met" if row.met else "**not met**"


def table(rows: Sequence[Row]) -> str:
    """Return `rows` as a markdown table."""
    lines = ["| measured | ours | theirs | unit | ratio | target | result | note |", "|" + " --- |" * 8]
    for row in rows:
        figures = (row.name, figure(row.ours), figure(row.theirs), row.unit, figure(row.ratio), row.target)
        lines.append("| " + " | ".join((*figures, verdict(row), row.note)) + " |")
    return "\n".join(lines)
