"""How long the command line takes before it does anything, against Python that does nothing."""

import subprocess
import sys
from collections.abc import Callable

from benchmarks.report import Row, below, interleaved

COMMANDS = (["--help"], ["list"], ["config", "atss"])
RUNS = 7
LIMIT = 0.2
"""The most seconds that `detcli --help` should take."""


def start(arguments: list[str]) -> Callable[[], object]:
    """Return a function that runs Python with `arguments` in a process of its own."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def run() -> list[Row]:
    """Measure the start of a few commands."""
    commands = [["-c", "pass"], *(["-m", "detcli", *command] for command in COMMANDS)]
    bare, *seconds = interleaved([start(command) for command in commands], RUNS)
    rows = []
    for command, spent in zip(COMMANDS, seconds, strict=True):
        name = f"start of detcli {' '.join(command)}"
        note = "theirs: python -c pass"
        if command == ["--help"]:
            rows.append(below(name, spent, "s", LIMIT, bare, note))
        else:
            rows.append(Row(name, spent, bare, "s", note=note))
    return rows
