"""The published rows: what four model zoos printed, as typed data.

A source is one file of JSON lines in the `zoo` folder: a header, then each table of the document, followed by its rows.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from detcli.errors import unknown

SOURCES = ("detectron2", "detectron", "mmdet-v0", "mmdet-v2")
"""The documents, each the stem of its file."""

DATA = Path(import_module("detcli.zoo_data").__path__[0])
"""The folder of the files."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link as a cell has it: the column, the text that was linked, and where it goes."""

    column: int
    text: str
    url: str


@dataclass(frozen=True, slots=True)
class File:
    """A published file: what it is (weights, log, metrics, proposals, boxes, masks, keypoints), and its hash.

    `hash` is the beginning of the hash in hex, of the kind `hash_kind`; with the kind ``md5sum`` it is empty, and the
    whole MD5 is in the file that `url` + ``.md5sum`` names.
    """

    kind: str
    url: str
    hash: str = ""
    hash_kind: Literal["", "md5", "sha256", "md5sum"] = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A printed figure: one number, or several with what joined them (``0.241 + 0.003``, ``22.9 / 29.2``)."""

    parts: tuple[float, ...]
    join: str = ""

    @property
    def value(self) -> float:
        """The number: the sum of parts that were added, or else the first."""
        return sum(self.parts) if self.join == "+" else self.parts[0]


@dataclass(frozen=True, slots=True)
class Erratum:
    """A mistake in the document: the field (or column) that is wrong, what is printed, what is right, and why."""

    field: str
    printed: str
    correct: str
    why: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as its document defines it, in the terms of the config's section `sched`; `batch` is images a step."""

    unit: Literal["epoch", "iter"]
    length: int
    drops: tuple[int, ...] = ()
    warmup_iters: int | None = None
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of one table.

    `cells` and `links` are as printed, `None` where a short row lacks the cell; everything else is what they mean, with
    errata corrected. `method` is the plugin of the paper and `model` the detector that it is applied to. `sched` is as
    printed and `schedule` its numbers, where the document defines them. `figures` are by field, in its unit; `others`
    are figures of other tools in the same row, by tool.
    """

    id: str
    source: str
    section: tuple[str, ...]
    table: int
    position: int
    columns: tuple[str, ...]
    cells: tuple[str | None, ...]
    links: tuple[Link, ...]
    name: str
    method: str
    model: str
    dataset: str
    task: str
    config: str = ""
    model_id: str = ""
    backbone: str = ""
    neck: str = ""
    style: str = ""
    sched: str = ""
    schedule: Schedule | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    notes: tuple[str, ...] = ()
    errata: tuple[Erratum, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its place among the headings of the document, its columns and its rows."""

    number: int
    section: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A document: its tables in order, and the mirrors that it names, as pairs of URL prefixes."""

    name: str
    title: str
    tables: tuple[Table, ...]
    mirrors: tuple[tuple[str, str], ...]


@cache
def source(name: str) -> Source:
    """Return the document called `name`. Raises `UsageError` when there is none."""
    if name not in SOURCES:
        raise unknown("source", name, SOURCES, "detcli zoo list")
    return read_source(DATA / f"{name}.jsonl")


def rows(sources: Sequence[str] = SOURCES) -> list[Row]:
    """Return all rows of the `sources`, in the order of the documents."""
    return [row for name in sources for table in source(name).tables for row in table.rows]


def read_source(path: Path) -> Source:
    """Return the document in the file at `path`; lines that can't be understood are named in a warning and skipped."""
    header: dict[str, Any] = {}
    tables: list[tuple[dict[str, Any], list[Row]]] = []
    for number, record in _records(path):
        try:
            if "source" in record:
                header = record
            elif "columns" in record:
                tables.append((record, []))
            else:
                table, found = tables[-1]
                found.append(_row(record, header, table, len(tables) - 1, len(found)))
        except (LookupError, TypeError, ValueError) as error:
            _skip(path, number, record.get("id", ""), f"{type(error).__name__}: {error}")
    return Source(
        header.get("source", path.stem),
        header.get("title", ""),
        tuple(
            Table(number, tuple(table["section"]), tuple(table["columns"]), tuple(found))
            for number, (table, found) in enumerate(tables)
        ),
        tuple((prefix, mirror) for prefix, mirror in header.get("mirrors", ())),
    )


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                _skip(path, number, "", str(error))
                continue
            yield number, record


def _skip(path: Path, line: int, name: str, why: str) -> None:
    warnings.warn(f"{path.name}, line {line}{f' ({name})' if name else ''}: skipped, {why}", stacklevel=2)


def _row(record: dict[str, Any], header: dict[str, Any], table: dict[str, Any], number: int, position: int) -> Row:
    values = dict(record)
    sched = values.get("sched", "")
    known = header.get("schedules", {})
    schedule = known.get(values.pop("schedule", sched))
    return Row(
        source=header["source"],
        section=tuple(table["section"]),
        table=number,
        position=position,
        columns=tuple(table["columns"]),
        cells=tuple(values.pop("cells")),
        links=tuple(Link(*link) for link in values.pop("links", ())),
        schedule=Schedule(**{**schedule, "drops": tuple(schedule.get("drops", ()))}) if schedule else None,
        figures=_figures(values.pop("figures", {})),
        others={tool: _figures(figures) for tool, figures in values.pop("others", {}).items()},
        files=tuple(File(**file) for file in values.pop("files", ())),
        notes=tuple(values.pop("notes", ())),
        errata=tuple(Erratum(**erratum) for erratum in values.pop("errata", ())),
        **values,
    )


def _figures(printed: dict[str, Any]) -> dict[str, Figure]:
    """Return figures of numbers, or of [number, join, number, ...]."""
    return {
        name: Figure(tuple(value[::2]), value[1]) if isinstance(value, list) else Figure((value,))
        for name, value in printed.items()
    }
