"""Evaluation results for people (tables) and for programs (metrics.json)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from detcli.errors import DetcliError
from detcli.eval.coco import Result

TITLES = {"box": "boxes", "mask": "masks", "prop": "proposals"}


def report(results: Iterable[Result]) -> RenderableType:
    """Return what a terminal shows: the figures of each result, the AP of each class, and the notes."""
    results = list(results)
    parts: list[RenderableType] = [
        _figures(family, results)
        for family in ("AP", "AR")
        if any(_family(result, family) for result in results)
    ]
    if any(len(result.per_class) > 1 for result in results):
        parts.append(_classes(results))
    for note in _notes(results):
        parts.append(Text(f"note: {note}", style="yellow"))
    return Group(*parts)


def show(results: Iterable[Result], console: Console | None = None) -> None:
    """Print the report to `console` (standard output by default)."""
    (console or Console()).print(report(results))


def write_metrics(path: Path, results: Iterable[Result], **facts: Any) -> None:
    """Write metrics.json: every metric by name, in percent, then `facts`, `per_class` and `notes`."""
    results = list(results)
    content: dict[str, Any] = {}
    for result in results:
        content.update(result.metrics)
    content.update(facts)
    content["per_class"] = {result.main: result.per_class for result in results if result.per_class}
    content["notes"] = _notes(results)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the content of a metrics.json. Raises DetcliError where it is missing or is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DetcliError(f"{path} is not there: `detcli eval` and `detcli train` write it") from error
    except (OSError, ValueError) as error:
        raise DetcliError(f"{path} cannot be read as metrics: {error}") from error
    if not isinstance(content, dict):
        raise DetcliError(f"{path} cannot be read as metrics: it holds no JSON object")
    return content


def _notes(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(note for result in results for note in result.notes))


def _kind(result: Result) -> str:
    return result.main.split("_", 1)[0]


def _family(result: Result, family: str) -> dict[str, float]:
    """Return the metrics of a family (AP or AR), without the ``box_`` of their names."""
    prefix = f"{_kind(result)}_"
    return {k.removeprefix(prefix): v for k, v in result.metrics.items() if k.startswith(prefix + family)}


def _figures(family: str, results: list[Result]) -> Table:
    """Return a table of AP or of AR with a row for each result."""
    columns = dict.fromkeys(name for result in results for name in _family(result, family))
    titles = {"AP": "Average precision (percent)", "AR": "Average recall (percent)"}
    table = Table(title=titles[family], title_justify="left", header_style="bold")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", min_width=5)
    for result in results:
        values = _family(result, family)
        table.add_row(TITLES[_kind(result)], *(_format(values.get(name)) for name in columns))
    return table


def _classes(results: list[Result]) -> Table:
    """Return the AP of each class, side by side where there are many."""
    results = [result for result in results if result.per_class]
    names = list(results[0].per_class)
    blocks = 1 if len(names) <= 10 else 2 if len(names) <= 30 or len(results) > 1 else 3
    rows = -(-len(names) // blocks)
    table = Table(title="AP of each class", title_justify="left", header_style="bold")
    for _ in range(blocks):
        table.add_column("class", overflow="ellipsis", no_wrap=True)
        for result in results:
            table.add_column(TITLES[_kind(result)], justify="right")
    for row in range(rows):
        cells: list[str | Text] = []
        for name in names[row::rows]:
            cells.append(Text(name))
            cells.extend(_format(result.per_class[name]) for result in results)
        table.add_row(*cells)
    return table


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return "-" if value == -1 else f"{value:.1f}"
