"""Reads the zoo documents themselves and holds `detcli table --document` to every cell and link of them.

It shares nothing with what made the data: it knows the documents, and the JSON that the command writes.

    python tests/zoo/documents.py FOLDER [--write]

With --write, the digest of each table that the tests hold is written anew, if nothing differs.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

DIGESTS = Path(__file__).parent / "data" / "digests.json"

MARKS = {
    "detectron2": "gen_html_table.py",
    "detectron": "12_2017_baselines",
    "mmdet-v0": "# Benchmark and Model Zoo",
    "mmdet-v2": "/mmdetection/v2.0/",
}
"""What only this document holds."""

DELIMITER = re.compile(r"\|?( *:?-+:? *\|)+( *:?-+:? *)?")
HEADING = re.compile(r" {0,3}(#{1,6}) +(.*)")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]*)\)")
EMPHASIS = re.compile(r"(\*\*|__|\*|`)(?=\S)(.+?)(?<=\S)\1")


def read_markdown(text):
    """Return the tables of Markdown with pipe tables and HTML tables, each with the path of headings above it."""
    lines = text.splitlines()
    tables, path = [], []
    number = 0
    while number < len(lines):
        line = lines[number].strip()
        if line.startswith("```"):
            number = _after(lines, number + 1, lambda other: other.strip().startswith("```"))
        elif line.startswith("<!--"):
            number = _after(lines, number, lambda other: "-->" in other)
        elif line.startswith("<table"):
            end = _after(lines, number, lambda other: "</table>" in other)
            tables.append(read_html("\n".join(lines[number:end]), [title for _, title in path]))
            number = end
        elif heading := HEADING.fullmatch(lines[number]):
            level = len(heading[1])
            path = [*(above for above in path if above[0] < level), (level, inline(heading[2])[0])]
            number += 1
        elif "|" in line and number + 1 < len(lines) and DELIMITER.fullmatch(lines[number + 1].strip()):
            end = number + 2
            while end < len(lines) and "|" in lines[end]:
                end += 1
            tables.append(_pipe_table([title for _, title in path], [lines[number], *lines[number + 2 : end]]))
            number = end
        else:
            number += 1
    return tables


def read_flat(text):
    """Return the tables of a text whose table headers are wrapped and whose links are lost; there are no headings."""
    lines = text.splitlines()
    tables = []
    for number, line in enumerate(lines):
        if not re.fullmatch(r"(---\|)+", line):
            continue
        first, last = number, number + 1
        while lines[first - 1].endswith("|"):
            first -= 1
        while last < len(lines) and lines[last].endswith("|"):
            last += 1
        columns = [_folded(cell) for cell in " ".join(lines[first:number]).split("|")[:-1]]
        rows = []
        for row in lines[number + 1 : last]:
            cells = [_folded(cell) for cell in row.split("|")[:-1]]
            # The last column holds several links, and what stood between them is what stands between cells.
            cells = [
                *cells[: len(columns) - 1],
                *([" | ".join(cells[len(columns) - 1 :])] if cells[len(columns) - 1 :] else []),
            ]
            rows.append({"cells": cells + [None] * (len(columns) - len(cells)), "links": []})
        tables.append({"section": [], "columns": columns, "rows": rows})
    return tables


def read_html(text, path):
    """Return the one table of an HTML text; a cell that one above spans is None."""
    parser = _TableParser()
    parser.feed(text)
    parser.close()
    columns = [_folded("".join(cell["text"])) for cell in parser.header]
    rows, spanned = [], {}
    for parsed in parser.rows:
        cells, links = [], []
        waiting = list(parsed)
        while waiting or spanned.get(len(cells), 0):
            column = len(cells)
            if spanned.get(column, 0):
                spanned[column] -= 1
                cells.append(None)
                continue
            cell = waiting.pop(0)
            spanned[column] = cell["span"] - 1
            cells.append(_folded("".join(cell["text"])))
            links += [[column, _folded("".join(words)), url] for words, url in cell["links"]]
        rows.append({"cells": cells + [None] * (len(columns) - len(cells)), "links": links})
    return {"section": path, "columns": columns, "rows": rows}


class _TableParser(HTMLParser):
    """Collects header cells and rows of cells; the documents' header cells stand outside of rows, or in one."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.header, self.rows = [], []
        self.cell = self.link = None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = {"text": [], "links": [], "span": int(attrs.get("rowspan", 1))}
            (self.header if tag == "th" else self.rows[-1]).append(self.cell)
        elif tag == "a" and self.cell is not None:
            self.link = ([], attrs.get("href", ""))
            self.cell["links"].append(self.link)
        elif tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        if tag == "a":
            self.link = None
        elif tag in ("td", "th"):
            self.cell = None
        elif tag == "tr" and not self.rows[-1]:
            self.rows.pop()  # it held the header

    def handle_data(self, data):
        if self.cell is not None:
            self.cell["text"].append(data)
            if self.link is not None:
                self.link[0].append(data)


def inline(text):
    """Return the text that a cell of Markdown shows, and its links as [text, URL]."""
    links = [[_plain(found[1]), html.unescape(found[2])] for found in LINK.finditer(text)]
    return _plain(LINK.sub(lambda found: found[1], text)), links


def _pipe_table(path, lines):
    header, *body = ([inline(cell) for cell in _cells(line)] for line in lines)
    columns = [text for text, _ in header]
    rows = []
    for row in body:
        texts = [text for text, _ in row]
        links = [[column, *link] for column, (_, found) in enumerate(row) for link in found]
        rows.append({"cells": texts + [None] * (len(columns) - len(texts)), "links": links})
    return {"section": path, "columns": columns, "rows": rows}


def _cells(line):
    """Return the cells between the pipes that are not escaped; pipes at the line's ends are its frame."""
    line = line.strip()
    line = line[1:] if line.startswith("|") else line
    line = line[:-1] if line.endswith("|") and not line.endswith("\\|") else line
    return [cell.replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]


def _plain(text):
    while (stripped := EMPHASIS.sub(r"\2", text)) != text:
        text = stripped
    text = re.sub(r"\\([\\`*_\[\]<>|])", r"\1", text)
    return _folded(html.unescape(re.sub(r"</?\w+ */?>", " ", text)))


def _folded(text):
    return " ".join(text.split())


def _after(lines, number, is_end):
    """Return the number after the first line, from `number` on, that is the end; or that of the text's end."""
    while number < len(lines) and not is_end(lines[number]):
        number += 1
    return number + 1


READERS = {"detectron": read_flat}
"""How a document is read that is not Markdown."""

OUTERMOST = {"detectron2": 2, "mmdet-v0": 1}
"""How many headings stand above all tables of a document."""


def find(folder):
    """Return the text of each document in the folder, by source; other files are left out."""
    texts = {}
    for path in sorted(Path(folder).iterdir()):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            for source, mark in MARKS.items():
                if mark in text and source not in texts:
                    texts[source] = text
                    break
    return texts


def differences(expected, tables, *, outermost=0, links=True):
    """Yield a line for each difference between what the document holds and what the command wrote.

    The data leave out the `outermost` headings, which stand above all tables, and the colons at the ends of headings.
    """
    for number, (here, there) in enumerate(zip_longest(expected, tables)):
        where = f"table {number}"
        if here is None or there is None:
            yield f"{where} is only in the {'data' if here is None else 'document'}"
            continue
        section = there["section"]
        if [_heading(heading) for heading in here["section"][outermost:]] != [_heading(heading) for heading in section]:
            yield f"{where}: section {here['section']} in the document, {section} in the data"
        if here["columns"] != there["columns"]:
            yield f"{where}: columns {here['columns']} in the document, {there['columns']} in the data"
        for position, (row, other) in enumerate(zip_longest(here["rows"], there["rows"])):
            place = f"{where} {section[-1:]}, row {position}"
            if row is None or other is None:
                yield f"{place} is only in the {'data' if row is None else 'document'}"
                continue
            for column, (cell, written) in enumerate(zip_longest(row["cells"], other["cells"], fillvalue="<no cell>")):
                if cell != written:
                    yield f"{place}, column {column}: {cell!r} in the document, {written!r} in the data"
            if links and row["links"] != other["links"]:
                for link, written in zip_longest(row["links"], other["links"]):
                    if link != written:
                        yield f"{place}: link {link} in the document, {written} in the data"


def _heading(text):
    return text.strip().removesuffix(":")


def digest(table):
    """Return the SHA-256 of the table's canonical JSON."""
    text = json.dumps(table, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def written(source):
    """Return what the command writes for the source."""
    command = [sys.executable, "-m", "detcli", "table", "--document", source, "--format", "json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(arguments):
    folders = [argument for argument in arguments if argument != "--write"]
    if len(folders) != 1 or not Path(folders[0]).is_dir():
        sys.exit("usage: nox -s documents -- FOLDER [--write]  (the folder of the four documents)")
    texts = find(folders[0])
    failed = False
    digests = {}
    for source in MARKS:
        if source not in texts:
            print(f"{source}: no document in {folders[0]}")
            failed = True
            continue
        expected = READERS.get(source, read_markdown)(texts[source])
        tables = written(source)
        found = list(differences(expected, tables, outermost=OUTERMOST.get(source, 0), links=source not in READERS))
        for line in found:
            print(f"{source}: {line}")
        rows = sum(len(table["rows"]) for table in expected)
        cells = sum(len(row["cells"]) for table in expected for row in table["rows"])
        links = sum(len(row["links"]) for table in expected for row in table["rows"])
        print(f"{source}: {len(expected)} tables, {rows} rows, {cells} cells, {links} links; differences: {len(found)}")
        failed |= bool(found)
        digests[source] = [digest(table) for table in tables]
    if "--write" in arguments and not failed:
        DIGESTS.parent.mkdir(exist_ok=True)
        DIGESTS.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
