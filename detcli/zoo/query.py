"""Choosing and finding rows, and rows as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from detcli.errors import DetcliError, nearest, unknown
from detcli.zoo.names import fold, names
from detcli.zoo.rows import SOURCES, Erratum, Figure, File, Row, Schedule

FILTERS = ("source", "method", "model", "backbone", "sched", "dataset", "task")
"""The fields that rows can be chosen by."""


def select(rows: Iterable[Row], wanted: Mapping[str, Sequence[str]], min_box_ap: float | None = None) -> list[Row]:
    """Return the `rows` that have, in each field of `wanted`, one of its values, and a box AP of `min_box_ap` or more.

    Fields are those of `FILTERS`; case, ``_``, ``-`` and ``.`` make no difference. Raises `UsageError` with the nearest
    values for one that no row has.
    """
    found = list(rows)
    allowed = {field: _values(found, field, values) for field, values in wanted.items() if values}
    for field, values in allowed.items():
        found = [row for row in found if getattr(row, field) in values]
    if min_box_ap is not None:
        found = [row for row in found if "box_AP" in row.figures and row.figures["box_AP"].value >= min_box_ap]
    return found


def _values(rows: Sequence[Row], field: str, values: Sequence[str]) -> set[str]:
    """Return the values of `field`, as the rows write them, that `values` stand for."""
    known = {getattr(row, field) for row in rows} - {""}
    if field == "source":
        known |= set(SOURCES)
    allowed = set()
    for value in values:
        same = {candidate for candidate in known if fold(candidate) == fold(value)}
        if not same:
            raise unknown(field, value, known, "detcli zoo list")
        allowed |= same
    return allowed


def search(rows: Sequence[Row], words: Sequence[str]) -> list[Row]:
    """Return the rows that have all `words` in id, name, config, section, model id or typed fields, best first.

    A word that is a whole name of the row counts most, then a whole word of its id or name, then a part of these.
    Case, ``_``, ``-``, ``.`` and spaces make no difference. Raises `DetcliError` when there is no such row, with the
    nearest words for one that no row has.
    """
    wanted = [folded for word in words if (folded := fold(word))]
    ranked = sorted((-rank, len(row.id), number) for number, row in enumerate(rows) if (rank := _rank(row, wanted)))
    if ranked:
        return [rows[number] for _, _, number in ranked]
    for word in words:
        if not any(_rank(row, [fold(word)]) for row in rows):
            near = nearest(
                word, {known for row in rows for known in _words(row.id, row.name, row.config, row.method, row.model)}
            )
            hint = f": did you mean {' or '.join(repr(match) for match in near)}?" if near else "."
            raise DetcliError(f"no row has {word!r}{hint} See `detcli zoo list`.")
    raise DetcliError(f"no row has all of {', '.join(words)}. Leave one out, or see `detcli zoo list`.")


def _rank(row: Row, wanted: Sequence[str]) -> int:
    """Return how well `row` fits folded words, 0 when it lacks one."""
    whole = {fold(name) for name in names(row)}
    own = {fold(word) for word in _words(row.id, row.name, row.config)}
    near = [*whole, fold(row.name)]
    around = [fold(text) for text in (*row.section, *(getattr(row, field) for field in FILTERS), *row.notes)]
    total = 0
    for word in wanted:
        if word in whole:
            rank = 4
        elif word in own:
            rank = 3
        elif any(word in text for text in near):
            rank = 2
        elif any(word in text for text in around):
            rank = 1
        else:
            return 0
        total += rank
    return total


def _words(*texts: str) -> Iterator[str]:
    for text in texts:
        yield from (word for word in (text, *re.split(r"[\W_]+", text)) if word)


def record(row: Row) -> dict[str, Any]:
    """Return every field of `row` as plain values; figures, links and files are as in the files of the zoo."""
    return _by_field(row) | {
        "links": [(link.column, link.text, link.url) for link in row.links],
        "schedule": _by_field(row.schedule) if row.schedule else None,
        "figures": _plain(row.figures),
        "others": {tool: _plain(figures) for tool, figures in row.others.items()},
        "files": [_by_field(file) for file in row.files],
        "errata": [_by_field(erratum) for erratum in row.errata],
    }


def _by_field(item: Row | Schedule | File | Erratum) -> dict[str, Any]:
    """Return the values of `item` by field; unlike those of `asdict`, they are no copies, which take long."""
    return {field.name: getattr(item, field.name) for field in fields(item)}


def _plain(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: figure.parts[0] if len(figure.parts) == 1 else _joined(figure) for name, figure in figures.items()}


def _joined(figure: Figure) -> list[Any]:
    return [figure.parts[0], *(item for part in figure.parts[1:] for item in (figure.join, part))]


def as_text(figure: Figure) -> str:
    """Return a figure as it was printed: ``40.2``, ``0.241 + 0.003``."""
    return f" {figure.join} ".join(str(part) for part in figure.parts)
