"""What several commands print."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> list[str]:
    """Return the lines of a table in columns, or in Markdown."""
    if markdown:
        escaped = ([cell.replace("|", "\\|") for cell in row] for row in (header, ["---"] * len(header), *rows))
        return [f"| {' | '.join(row)} |" for row in escaped]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (header, *rows))
    return ["  ".join(cells).rstrip() for cells in padded]
