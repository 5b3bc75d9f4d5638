"""What the zoo holds, where its documents are wrong, what is verified: a header and lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detcli.zoo.rows import SOURCES, rows, source
from detcli.zoo.status import STATUSES, parity_cases, status

CHECKS = ("weights", "features", "detections", "masks", "keypoints", "segments", "losses", "gradients")
"""What is compared with reference cases, in this order."""

Lines = tuple[tuple[str, ...], list[tuple[str, ...]]]


def summary() -> Lines:
    """Return a line for each document, and their sums: tables, rows, rows with weights, errata, rows of each status.

    A row that has a status is counted in those before it, too.
    """
    counts: list[tuple[int, ...]] = []
    for name in SOURCES:
        tables = source(name).tables
        of_source = [row for table in tables for row in table.rows]
        with_weights = sum(any(file.kind == "weights" for file in row.files) for row in of_source)
        errata = sum(len(row.errata) for row in of_source)
        levels = [STATUSES.index(status(row)) for row in of_source]
        reached = [sum(level >= least for level in levels) for least in range(1, len(STATUSES))]
        counts.append((len(tables), len(of_source), with_weights, errata, *reached))
    labels = [(name, source(name).title) for name in SOURCES] + [("", "together")]
    counts.append(tuple(map(sum, zip(*counts, strict=True))))
    header = ("source", "document", "tables", "rows", "with weights", "errata", "build", "convert", "verified")
    return header, [(*label, *map(str, line)) for label, line in zip(labels, counts, strict=True)]


def errata() -> Lines:
    """Return a line for each mistake in the documents: where it is, what is printed, what is right, and why."""
    found: list[tuple[str, ...]] = [
        (row.id, erratum.field, _short(erratum.printed), _short(erratum.correct), erratum.why)
        for row in rows()
        for erratum in row.errata
    ]
    return ("row", "field", "printed", "correct", "why"), found


def parity(cases: Mapping[str, Any] | None = None) -> Lines:
    """Return a line for each reference case: what was measured by check, and whether it passes.

    `cases` are those that the session ``parity`` wrote down, unless given.
    """
    cases = parity_cases() if cases is None else cases
    checks = [check for check in CHECKS if any(check in case["measured"] for case in cases.values())]
    lines = []
    for name, case in cases.items():
        measured = [case["measured"].get(check, "") for check in checks]
        if case["passes"]:
            result = f"as {case['same_as']}" if case["same_as"] else "passes"
        else:
            first, *others = case["wrong"]
            result = f"fails: {first}" + (f" and {len(others)} more" if others else "")
        lines.append((name, *measured, result))
    return ("case", *checks, "result"), lines


def _short(text: str) -> str:
    """Return the name of the file where `text` is its URL."""
    return text.rpartition("/")[2] if "://" in text else text
