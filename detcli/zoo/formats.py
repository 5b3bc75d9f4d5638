"""Tables as text: Markdown, HTML, CSV, LaTeX, JSON, or boxes on a terminal."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detcli.errors import UsageError
from detcli.zoo.rows import Link

if TYPE_CHECKING:
    from rich.console import Console

DOWNLOAD = "download"
"""The column that holds nothing but links."""

NUMERIC = re.compile(r"[+-]?\d[\d.]*( [+/] \d[\d.]*)?( \(\d[\d.]*\))?")
"""A figure: one number, or two that were added or set side by side; perhaps another in brackets."""


UNBROKEN = 8
"""How many characters of a text should stay together on a terminal."""

FOLDED = 1.2
"""A table that needs no more than this share of a terminal's width is folded into it."""

GAP = 2
"""What a terminal's table needs between two columns."""


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """The texts of a row's cells (`None`: the row lacks the cell) and the links in them, in order.

    `id` and `values` (by field: a number, or a text) say what the texts mean, where that is known.
    """

    cells: tuple[str | None, ...]
    links: tuple[Link, ...] = ()
    id: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PrintedTable:
    """A table: the headings above it, outermost first, the texts of its header, and its rows."""

    columns: tuple[str, ...]
    rows: tuple[PrintedRow, ...]
    section: tuple[str, ...] = ()


def to_json(tables: Sequence[PrintedTable]) -> str:
    """Return a list of ``{"section": [...], "columns": [...], "rows": [{"cells": [...], "links": [...]}]}``.

    A link is ``[column, text, URL]``. Each row is a line of its own; one with an id has it, and its `values`, too.
    """
    return "[\n" + ",\n".join(map(_json_table, tables)) + "\n]\n"


def to_markdown(tables: Sequence[PrintedTable]) -> str:
    """Return pipe tables under their headings; a row ends where its cells end."""
    lines: list[str] = []
    for table, headings in zip(tables, _new_headings(tables), strict=True):
        lines += [f"{'#' * min(level + 2, 6)} {_markdown_text(heading)}\n" for level, heading in headings]
        lines.append(_markdown_line(map(_markdown_text, table.columns)))
        lines.append(_markdown_line(["---"] * len(table.columns)))
        lines += [_markdown_line(_linked(row, _markdown_text, _markdown_link, short=True)) for row in table.rows]
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def to_html(tables: Sequence[PrintedTable]) -> str:
    """Return HTML tables under their headings; a cell that rows below lack spans them."""
    lines: list[str] = []
    for table, headings in zip(tables, _new_headings(tables), strict=True):
        lines += [f"<h{min(level + 2, 6)}>{_html_text(text)}</h{min(level + 2, 6)}>" for level, text in headings]
        lines += ["<table>", "<thead>", _html_line("th", map(_html_text, table.columns)), "</thead>", "<tbody>"]
        for position, row in enumerate(table.rows):
            cells = _linked(row, _html_text, _html_link, short=True)
            spans = [_span(table.rows, position, column) for column in range(len(cells))]
            lines.append(_html_line("td", cells, spans))
        lines += ["</tbody>", "</table>"]
    return "\n".join(lines) + "\n"


def to_csv(tables: Sequence[PrintedTable]) -> str:
    """Return the one table as comma-separated values; what is downloaded stands there as its URLs.

    Raises `UsageError` when there are several tables.
    """
    if len(tables) != 1:
        raise UsageError(f"CSV holds one table and here are {len(tables)}: use --format json, markdown or html.")
    (table,) = tables
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    urls = _position(table, DOWNLOAD)
    for row in table.rows:
        cells = list(row.cells)
        if urls is not None and urls < len(cells):
            cells[urls] = " ".join(link.url for link in row.links if link.column == urls)
        writer.writerow(cells)
    return text.getvalue()


def to_latex(tables: Sequence[PrintedTable]) -> str:
    r"""Return a ``tabular`` for each table, without links and what is only links; it needs no package."""
    lines: list[str] = []
    for table in tables:
        left_out = _position(table, DOWNLOAD)
        kept = [column for column in range(len(table.columns)) if column != left_out]
        lines += [f"% {' / '.join(table.section)}"] if table.section else []
        lines.append(f"\\begin{{tabular}}{{{''.join('r' if _is_numeric(table, column) else 'l' for column in kept)}}}")
        lines += ["\\hline", _latex_line(table.columns[column] for column in kept), "\\hline"]
        for row in table.rows:
            lines.append(_latex_line(row.cells[column] if column < len(row.cells) else "" for column in kept))
        lines += ["\\hline", "\\end{tabular}", ""]
    return "\n".join(lines[:-1]) + "\n"


def print_rich(tables: Sequence[PrintedTable], console: Console) -> None:
    """Print the tables for a terminal, with links where it knows them.

    Headers are broken into lines before cells are; a table that is far too wide has a line for each cell.
    """
    from rich import box
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

    def texts(row: PrintedRow) -> list[Text]:
        cells = []
        for pieces in _pieces(row):
            cells.append(Text())
            for text, link in pieces:
                cells[-1].append(text, Style(link=link.url) if link and _is_url(link.url) else None)
        return cells

    for number, table in enumerate(tables):
        if number:
            console.print()
        title = Text(" / ".join(table.section), style="bold") if table.section else None
        width = max([len(table.columns), *(len(row.cells) for row in table.rows)])
        headers = _broken_headers(table, width, console.width)
        if _least_width(table, headers) > FOLDED * console.width:
            shown = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, GAP, 0, 0))
            for position, row in enumerate(table.rows):
                if position:
                    shown.add_row()
                for column, text in enumerate(texts(row)):
                    if text:
                        shown.add_row(Text(" ".join(headers[column].split()), style="bold"), text)
        else:
            shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
            for column, header in enumerate(headers):
                justify: Any = "right" if _is_numeric(table, column) else "left"
                shown.add_column(Text(header), justify=justify, overflow="fold")
            for row in table.rows:
                shown.add_row(*texts(row))
        console.print(shown)


WRITERS: dict[str, Callable[[Sequence[PrintedTable]], str]] = {
    "markdown": to_markdown,
    "html": to_html,
    "csv": to_csv,
    "latex": to_latex,
    "json": to_json,
}
"""What writes a format as text; ``rich`` is printed by `print_rich`."""


def _json_table(table: PrintedTable) -> str:
    rows = []
    for row in table.rows:
        content: dict[str, Any] = {
            "cells": row.cells,
            "links": [[link.column, link.text, link.url] for link in row.links],
        }
        if row.id or row.values:
            content = {"id": row.id, **content, "values": dict(row.values)}
        rows.append(json.dumps(content, ensure_ascii=False))
    section, columns = (json.dumps(texts, ensure_ascii=False) for texts in (table.section, table.columns))
    return f'{{"section": {section}, "columns": {columns}, "rows": [\n' + ",\n".join(rows) + "\n]}"


def _new_headings(tables: Sequence[PrintedTable]) -> Iterator[list[tuple[int, str]]]:
    """Yield for each table its headings, with their levels from 0, that do not already stand above the one before."""
    above: tuple[str, ...] = ()
    for table in tables:
        level = 0
        while table.section[: level + 1] == above[: level + 1] and level < len(table.section):
            level += 1
        yield list(enumerate(table.section))[level:]
        above = table.section


def _pieces(row: PrintedRow) -> list[list[tuple[str, Link | None]]]:
    """Return for each cell its text in pieces, each with its link if it has one."""
    pieces = []
    for column, cell in enumerate(row.cells):
        rest = cell or ""
        found: list[tuple[str, Link | None]] = []
        for link in row.links:
            if link.column == column:
                before, _, rest = rest.partition(link.text) if link.text else ("", "", rest)
                found += [(before, None), (link.text, link)]
        pieces.append([(text, link) for text, link in [*found, (rest, None)] if text])
    return pieces


def _linked(
    row: PrintedRow, plain: Callable[[str], str], linked: Callable[[Link], str], *, short: bool = False
) -> list[str]:
    """Return the texts of the cells with their links; without those that a `short` row lacks at its end."""
    cells = ["".join(linked(link) if link else plain(text) for text, link in pieces) for pieces in _pieces(row)]
    length = max((column + 1 for column, cell in enumerate(row.cells) if cell is not None), default=0)
    return cells[:length] if short else cells


def _markdown_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_text(text: str) -> str:
    text = re.sub(r"([\\`*\[\]<>|])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within words, an underscore is no emphasis
    return re.sub(r"&(?=#?\w+;)", "&amp;", text)


def _markdown_link(link: Link) -> str:
    url = link.url.replace("(", "%28").replace(")", "%29").replace("|", "%7C").replace(" ", "%20")
    return f"[{_markdown_text(link.text)}]({url})"


def _html_line(tag: str, cells: Iterable[str], spans: Sequence[int] = ()) -> str:
    written = []
    for column, cell in enumerate(cells):
        span = spans[column] if spans else 1
        if span:
            rowspan = f' rowspan="{span}"' if span > 1 else ""
            written.append(f"<{tag}{rowspan}>{cell}</{tag}>")
    return f"<tr>{''.join(written)}</tr>"


def _html_text(text: str) -> str:
    return html.escape(text, quote=False)


def _html_link(link: Link) -> str:
    return f'<a href="{html.escape(link.url)}">{_html_text(link.text)}</a>'


def _span(rows: Sequence[PrintedRow], position: int, column: int) -> int:
    """Return how many rows the cell covers; 0 for one that is covered itself."""
    if _is_covered(rows[position], column):
        return 0
    below = position + 1
    while below < len(rows) and _is_covered(rows[below], column):
        below += 1
    return below - position


def _is_covered(row: PrintedRow, column: int) -> bool:
    """Return whether the row lacks the cell though it has one further right."""
    return (
        column < len(row.cells) and row.cells[column] is None and any(text is not None for text in row.cells[column:])
    )


def _latex_line(cells: Iterable[str | None]) -> str:
    return " & ".join(_latex_text(cell or "") for cell in cells) + r" \\"


def _latex_text(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    named |= {"<": r"\textless{}", ">": r"\textgreater{}", "×": r"$\times$", "√": r"$\surd$"}
    return "".join(named.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)


def _broken_headers(table: PrintedTable, width: int, available: int) -> list[str]:
    """Return the headers of `width` columns, in lines no wider than their cells where the table is too wide."""
    headers = [*table.columns, *[""] * (width - len(table.columns))]
    cells = [
        max((len(row.cells[n] or "") for row in table.rows if n < len(row.cells)), default=0) for n in range(width)
    ]
    if sum(max(len(header), cell) + GAP for header, cell in zip(headers, cells, strict=True)) - GAP <= available:
        return headers
    return [
        "\n".join(textwrap.wrap(header, max(cell, 1), break_long_words=False))
        for header, cell in zip(headers, cells, strict=True)
    ]


def _least_width(table: PrintedTable, headers: Sequence[str]) -> int:
    """Return the width below which figures, words of the headers, or names shorter than `UNBROKEN`, would be broken."""
    least = 0
    for column, header in enumerate(headers):
        cell = _longest(table, column)
        words = max(map(len, header.split()), default=0)
        least += max(words, cell if _is_numeric(table, column) else min(cell, UNBROKEN)) + GAP
    return least - GAP


def _longest(table: PrintedTable, column: int) -> int:
    return max((len(row.cells[column] or "") for row in table.rows if column < len(row.cells)), default=0)


def _is_numeric(table: PrintedTable, column: int) -> bool:
    """Return whether the cells of the column are figures, or say that there is none."""
    texts = [row.cells[column] or "" for row in table.rows if column < len(row.cells)]
    figures = [text for text in texts if NUMERIC.fullmatch(text)]
    return bool(figures) and all(text in ("", "-", "N/A") or NUMERIC.fullmatch(text) for text in texts)


def _is_url(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _position(table: PrintedTable, column: str) -> int | None:
    return table.columns.index(column) if column in table.columns else None
