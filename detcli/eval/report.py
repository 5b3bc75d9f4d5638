"""Figures for people (tables on a terminal) and for programs (metrics.json)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detcli.files import write_text_whole

ROWS = {
    "box": "boxes",
    "mask": "masks",
    "keypoint": "keypoints",
    "prop": "proposals",
    "": "all segments",
    "things": "things",
    "stuff": "stuff",
}
CLASS_COLUMNS = {"box": "boxes", "mask": "masks", "keypoint": "keypoints", "panoptic": "segments (PQ)"}
FAMILIES = {
    "AP": "Average precision (percent)",
    "AR": "Average recall (percent)",
    "[PSR]Q": "Panoptic, segmentation and recognition quality (percent)",
}
"""The tables: a pattern of how names of figures begin, after their kind, and a title."""


def show_metrics(
    console: Console, metrics: dict[str, float], per_class: dict[str, dict[str, float]], notes: list[str]
) -> None:
    """Print the figures as tables, then the AP of each class, then the notes.

    `metrics` are named as in `detcli.eval.evaluator.Result`, of one or more kinds; `per_class` maps a kind (box,
    mask) to AP by class name.
    """
    for family, title in FAMILIES.items():
        if any(re.match(family, name.rpartition("_")[2]) for name in metrics):
            console.print(_figures(family, title, metrics))
    if any(len(classes) > 1 for classes in per_class.values()):
        console.print(_classes({kind: classes for kind, classes in per_class.items() if classes}))
    for note in dict.fromkeys(notes):
        console.print(Text(f"note: {note}", style="yellow"))


def write_metrics(
    path: Path, metrics: dict[str, float], per_class: dict[str, dict[str, float]], notes: list[str]
) -> None:
    """Write metrics.json: every metric by its name, in percent, and `per_class` and `notes`."""
    content: dict[str, Any] = {**metrics, "per_class": per_class, "notes": list(dict.fromkeys(notes))}
    write_text_whole(path, json.dumps(content, indent=2) + "\n")


def _figures(family: str, title: str, metrics: dict[str, float]) -> Table:
    """Return the metrics of a family with a row for each kind."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, _, column = name.rpartition("_")
        if re.match(family, column):
            rows.setdefault(kind, {})[column] = value
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", min_width=4)
    for kind, row in rows.items():
        table.add_row(ROWS[kind], *(_format(row.get(column)) for column in columns))
    return table


def _classes(per_class: dict[str, dict[str, float]]) -> Table:
    """Return the AP of each class, in blocks side by side where there are many."""
    names = list(dict.fromkeys(name for classes in per_class.values() for name in classes))
    blocks = 1 if len(names) <= 10 else 2 if len(names) <= 30 or len(per_class) > 1 else 3
    rows = -(-len(names) // blocks)
    table = Table(title="AP of each class", title_justify="left", header_style="bold")
    for _ in range(blocks):
        table.add_column("class", overflow="ellipsis", no_wrap=True)
        for kind in per_class:
            table.add_column(CLASS_COLUMNS[kind], justify="right")
    for row in range(rows):
        cells: list[str | Text] = []
        for name in names[row::rows]:
            cells.append(Text(name))
            cells.extend(_format(classes.get(name)) for classes in per_class.values())
        table.add_row(*cells)
    return table


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return "-" if value == -1 else f"{value:.1f}"
