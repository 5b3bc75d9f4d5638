"""The row that every benchmark yields, and the table that rows become."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

QUIET = 0.1
"""The most cores that other processes may use while a round is measured, if the round is to count."""


@dataclass(frozen=True)
class Row:
    """One figure beside the one that it is held against.

    `ours` and `theirs` are in `unit`; `ratio` is what `target` speaks of. A figure that could not be measured is None
    and `note` says why. `met` is None where there is no target, nothing was measured, or other processes disturbed it.
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


@dataclass(frozen=True)
class Rounds:
    """Seconds of each of several functions in each round [functions][rounds], and the cores that others used."""

    seconds: list[list[float]]
    others: float | None

    @property
    def quiet(self) -> bool:
        """Whether the machine was ours alone."""
        return self.others is not None and self.others <= QUIET

    def compare(self, name: str, ours: int, theirs: int, limit: float, note: str = "") -> Row:
        """Return the row of two of the functions in ms; one that was disturbed has no verdict."""
        mine, other = self.seconds[ours], self.seconds[theirs]
        row = at_most(name, 1000 * median(mine), 1000 * median(other), "ms", limit)
        ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
        notes = [note, f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds"]
        if self.quiet:
            return replace(row, note="; ".join(part for part in notes if part))
        used = "an unknown number of" if self.others is None else f"{self.others:.1f}"
        notes.append(f"other processes used {used} cores")
        return replace(row, met=None, note="; ".join(part for part in notes if part))


@contextmanager
def apart(make: Callable[..., Callable[[], object]], *args: object) -> Iterator[Callable[[], None]]:
    """Start a process of its own for the function that `make(*args)` returns there; yield what calls it and waits.

    Two tools that are compared so share no settings and no memory. Raises `RuntimeError` when a call fails.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, args), daemon=True)
    process.start()
    there.close()

    def call() -> None:
        here.send(True)
        if not here.recv():
            raise RuntimeError(f"{make.__name__}{args} failed in its process")

    yield call
    here.send(False)
    process.join()


def _serve(pipe: Connection, make: Callable[..., Callable[[], object]], args: tuple[object, ...]) -> None:
    try:
        function = make(*args)
        while pipe.recv():
            function()
            pipe.send(True)
    except Exception:
        traceback.print_exc(file=sys.stderr)
        pipe.send(False)


def quiet_rounds(functions: Sequence[Callable[[], object]], wanted: int, tries: int) -> Rounds:
    """Run the functions in turn until `wanted` rounds were quiet, `tries` rounds at most.

    A round counts by what other processes did in it, never by its figures. Where too few were quiet, all count, and
    `others` says how much was used beside them.
    """
    for function in functions:
        function()
    rounds: list[tuple[list[float], float | None]] = []
    while len(rounds) < tries and sum(_is_quiet(others) for _, others in rounds) < wanted:
        spent = []
        busy, own, began = _busy(), _own(), perf_counter()
        for function in functions:
            started = perf_counter()
            function()
            spent.append(perf_counter() - started)
        elapsed = perf_counter() - began
        others = None if busy is None else max(0.0, (_busy() or 0.0) - busy - (_own() - own)) / elapsed
        rounds.append((spent, others))
    quiet = [item for item in rounds if _is_quiet(item[1])]
    used = quiet if len(quiet) >= wanted else rounds
    shares = [others for _, others in used if others is not None]
    seconds = [list(column) for column in zip(*(spent for spent, _ in used), strict=True)]
    return Rounds(seconds, sum(shares) / len(shares) if shares else None)


def _is_quiet(others: float | None) -> bool:
    return others is not None and others <= QUIET


def _own() -> float:
    """Return the processor seconds of this process and its children."""
    total = sum(os.times()[:4])
    for child in multiprocessing.active_children():
        words = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _busy() -> float | None:
    """Return the processor seconds that the whole machine has used, or None where it does not say."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def figure(value: float | None) -> str:
    """Return `value` with three significant digits, or a dash."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def verdict(row: Row) -> str:
    """Return a word for whether the row's target is met."""
    if row.ours is None:
        return "not measured"
    if row.met is None:
        return "undecided" if row.target else ""
    return "met" if row.met else "**not met**"


def table(rows: Sequence[Row]) -> str:
    """Return `rows` as a markdown table."""
    lines = ["| measured | ours | theirs | unit | ratio | target | result | note |", "|" + " --- |" * 8]
    for row in rows:
        figures = (row.name, figure(row.ours), figure(row.theirs), row.unit, figure(row.ratio), row.target)
        lines.append("| " + " | ".join((*figures, verdict(row), row.note)) + " |")
    return "\n".join(lines)
