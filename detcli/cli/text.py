"""Plain text for terminals, without rich, which is slow to import."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

GAP = "  "


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """Return the lines of a table without rules; the columns `numbers` are set to the right."""
    widths = column_widths(header, rows)
    lines = []
    for row in (header, *rows):
        cells = (
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(GAP.join(cells).rstrip())
    return lines


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in (header, ["---"] * len(header), *rows))
    return [f"| {' | '.join(row)} |" for row in escaped]


def column_widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return how many characters each column of a table needs."""
    return [max(map(len, column)) for column in zip(header, *rows, strict=True)]


def shortened(text: str, width: int) -> str:
    """Return `text` in at most `width` characters, three at least: its middle is left out where it is longer."""
    if len(text) <= width:
        return text
    head = width // 2
    return f"{text[:head]}…{text[len(text) - (width - head - 1) :]}"


def terminal_width() -> int | None:
    """Return the columns of the terminal that is written to, or None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def schedule(sched: Mapping[str, Any]) -> str:
    """Return a schedule's length and drops in words."""
    drops = ", ".join(str(drop) for drop in sched.get("drops", ()))
    unit = {"iter": "iterations"}.get(sched.get("unit", "epoch"), "epochs")
    return f"{sched.get('length', '?')} {unit}" + (f", lower learning rate after {drops}" if drops else "")
