"""What the zoo holds, and where its documents are wrong: a header and lines of text."""

from __future__ import annotations

from detcli.zoo.rows import SOURCES, rows, source

Lines = tuple[tuple[str, ...], list[tuple[str, ...]]]


def summary() -> Lines:
    """Return a line for each document: how many tables, rows, rows with weights and errata it has; and their sums."""
    counts: list[tuple[int, ...]] = []
    for name in SOURCES:
        tables = source(name).tables
        of_source = [row for table in tables for row in table.rows]
        with_weights = sum(any(file.kind == "weights" for file in row.files) for row in of_source)
        counts.append((len(tables), len(of_source), with_weights, sum(len(row.errata) for row in of_source)))
    labels = [(name, source(name).title) for name in SOURCES] + [("", "together")]
    counts.append(tuple(map(sum, zip(*counts, strict=True))))
    header = ("source", "document", "tables", "rows", "with weights", "errata")
    return header, [(*label, *map(str, line)) for label, line in zip(labels, counts, strict=True)]


def errata() -> Lines:
    """Return a line for each mistake in the documents: where it is, what is printed, what is right, and why."""
    found: list[tuple[str, ...]] = [
        (row.id, erratum.field, _short(erratum.printed), _short(erratum.correct), erratum.why)
        for row in rows()
        for erratum in row.errata
    ]
    return ("row", "field", "printed", "correct", "why"), found


def _short(text: str) -> str:
    """Return the name of the file where `text` is its URL."""
    return text.rpartition("/")[2] if "://" in text else text
