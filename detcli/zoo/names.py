"""From what a user calls a published model to its row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from detcli.errors import UsageError, unknown
from detcli.zoo.rows import Row, rows

SHOWN = 12
"""How many candidates an error lists."""

FOLDED = str.maketrans("", "", "_-. ")


def resolve(name: str, among: Sequence[Row] | None = None) -> Row:
    """Return the row called `name`, of the rows `among` (all of them without).

    A name is an id, a config (path or stem, with its extension or without), a model id, or the URL or file name of
    weights. One that is written exactly so wins over those that differ in case, ``_``, ``-`` and ``.``, then over those
    that end in their dataset's name, then over the names that documents print. Rows with the same weights are one: the
    first. Raises `UsageError` that lists the candidates, or the nearest names when there is none.
    """
    among = rows() if among is None else among
    found = distinct(matches(name, among))
    if not found:
        valid = (row.id if "/" in name else short_name(row) for row in among)
        raise unknown("model", name, set(valid), "detcli zoo search WORDS")
    if len(found) > 1:
        ids = ", ".join(row.id for row in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more, see `detcli zoo search`" if len(found) > SHOWN else ""
        raise UsageError(f"{name!r} is {len(found)} models: {ids}{more}. Give one of these ids.")
    return found[0]


def matches(name: str, among: Sequence[Row]) -> list[Row]:
    """Return the rows of `among` that are called `name`, all in the same way: the first of those in `resolve`."""
    if exact := [row for row in among if row.id == name] or [row for row in among if name in names(row)]:
        return exact
    wanted = fold(name)
    for called in (names, _without_dataset, _printed):
        if found := [row for row in among if wanted in map(fold, called(row))]:
            return found
    return []


def distinct(found: Iterable[Row]) -> list[Row]:
    """Return `found` without the rows whose weights an earlier one has."""
    first: dict[str, Row] = {}
    for row in found:
        first.setdefault(weights_url(row) or row.id, row)
    return list(first.values())


def weights_url(row: Row) -> str:
    """Return where the row's weights are, without the scheme of the URL; empty when it has none."""
    return next((file.url.partition("://")[2] for file in row.files if file.kind == "weights"), "")


def short_name(row: Row) -> str:
    """Return the row's id without its source."""
    return row.id.partition("/")[2]


def names(row: Row) -> Iterator[str]:
    """Yield what the row is called, its published name aside."""
    yield row.id
    yield short_name(row)
    if row.config:
        path = PurePosixPath(row.config)
        yield from (row.config, str(path.with_suffix("")), path.name, path.stem)
    if row.model_id:
        yield row.model_id
    for file in row.files:
        if file.kind == "weights":
            path = PurePosixPath(urlsplit(file.url).path)
            yield from (file.url, path.name, path.stem)


def fold(name: str) -> str:
    """Return `name` without what people write in different ways: case, ``_``, ``-``, ``.`` and spaces."""
    return name.translate(FOLDED).casefold()


def _without_dataset(row: Row) -> Iterator[str]:
    ending = fold(row.dataset)
    for name in names(row):
        if ending and fold(name).endswith(ending):
            yield fold(name).removesuffix(ending)


def _printed(row: Row) -> Iterator[str]:
    yield row.name
