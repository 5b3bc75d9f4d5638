"""The tables that the documents print: none changes unseen, and what reads the documents sees every difference."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detcli.cli import app
from detcli.zoo.rows import SOURCES, source

spec = importlib.util.spec_from_file_location("documents", Path(__file__).with_name("documents.py"))
documents = importlib.util.module_from_spec(spec)
spec.loader.exec_module(documents)

SHAPE = {"detectron2": (11, 53), "detectron": (8, 75), "mmdet-v0": (14, 115), "mmdet-v2": (95, 423)}

MARKDOWN = r"""# Title
<!-- a comment
| not | a table |
| --- | --- |
-->
```sh
# not a heading
| not | a table |
| --- | --- |
```
## Over both
### First:
| Name  | box AP | Download |
|:-----:|--------|:--------:|
| [**R-50**](https://x/r50.py) | 1.0 | [model](https://x/a.pth) &#124; [log](https://x/a%2Bb.json) |
| *R-101 (dg=4) |  | [model](https://x/b.pth) \| `none`
| short |
R-18 | 2 | 3 | one more |
text that ends it
### Second
<table>
  <tr><th>Type</th><th>A<sup>1</sup><br/>(s)</th><th>B</th></tr>
  <tr><td rowspan="2">RPN &amp; more</td><td>1x</td><td><a href="https://x?a=1&amp;b=2">m</a>&nbsp;|&nbsp;n</td></tr>
  <tr>
    <td>2x</td>
    <td></td>
  </tr>
</table>
"""
TABLES = [
    {
        "section": ["Title", "Over both", "First:"],
        "columns": ["Name", "box AP", "Download"],
        "rows": [
            {
                "cells": ["R-50", "1.0", "model | log"],
                "links": [
                    [0, "R-50", "https://x/r50.py"],
                    [2, "model", "https://x/a.pth"],
                    [2, "log", "https://x/a%2Bb.json"],
                ],
            },
            {"cells": ["*R-101 (dg=4)", "", "model | none"], "links": [[2, "model", "https://x/b.pth"]]},
            {"cells": ["short", None, None], "links": []},
            {"cells": ["R-18", "2", "3", "one more"], "links": []},
        ],
    },
    {
        "section": ["Title", "Over both", "Second"],
        "columns": ["Type", "A1 (s)", "B"],
        "rows": [
            {"cells": ["RPN & more", "1x", "m | n"], "links": [[2, "m", "https://x?a=1&b=2"]]},
            {"cells": [None, "2x", ""], "links": []},
        ],
    },
]
FLAT = """Some text.
backbone | lr schd |
train mem
|
model id | download links |
---|---|---|---|---|
R-50 | 1x | 4.3 | 35 | model | boxes | masks |
[without] | 0.3 + 0.1 |
Notes:
"""


def written(name, *arguments):
    return CliRunner().invoke(app, ["table", "--document", name, *arguments]).stdout


@pytest.mark.parametrize("name", SOURCES)
def test_no_table_has_changed(name):
    """After a change that is meant: `nox -s documents -- FOLDER --write`."""
    tables = json.loads(written(name, "--format", "json"))
    assert (len(tables), sum(len(table["rows"]) for table in tables)) == SHAPE[name]
    assert [documents.digest(table) for table in tables] == json.loads(documents.DIGESTS.read_text())[name]


def test_a_digest_depends_on_every_cell_and_link():
    seen = {documents.digest(TABLES[0])}
    for row, position in ((0, 0), (1, 1), (2, 2), (3, 3)):
        table = copy.deepcopy(TABLES[0])
        table["rows"][row]["cells"][position] = "changed"
        seen.add(documents.digest(table))
    table = copy.deepcopy(TABLES[0])
    table["rows"][0]["links"][1][2] = "https://x/changed.pth"
    seen.add(documents.digest(table))
    assert len(seen) == 6


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("format", ["markdown", "html"])
def test_what_is_written_reads_as_the_same_tables(name, format):
    expected = json.loads(written(name, "--format", "json"))
    text = written(name, "--format", format)
    if format == "html":
        text = re.sub(r"<h(\d)>(.*)</h\1>", lambda found: f"\n{'#' * int(found[1])} {found[2]}\n", text)
    elif name == "mmdet-v0":  # Markdown has no cell that spans rows
        for row in expected[11]["rows"]:
            row["cells"] = [cell or "" for cell in row["cells"]]
    assert list(documents.differences(documents.read_markdown(text), expected)) == []


def test_markdown_is_read_as_it_is_shown():
    assert documents.read_markdown(MARKDOWN) == TABLES


def test_a_wrapped_header_and_cells_beyond_it_are_read():
    assert documents.read_flat(FLAT.replace("train mem\n|", "train mem |")) == [
        {
            "section": [],
            "columns": ["backbone", "lr schd", "train mem", "model id", "download links"],
            "rows": [
                {"cells": ["R-50", "1x", "4.3", "35", "model | boxes | masks"], "links": []},
                {"cells": ["[without]", "0.3 + 0.1", None, None, None], "links": []},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda tables: tables.pop(), "table 1 is only in the document"),
        (lambda tables: tables.append(tables[0]), "table 2 is only in the data"),
        (lambda tables: tables[0]["section"].pop(), "table 0: section"),
        (lambda tables: tables[0]["columns"].pop(), "table 0: columns"),
        (lambda tables: tables[1]["rows"].pop(), "row 1 is only in the document"),
        (
            lambda tables: tables[0]["rows"][1]["cells"].__setitem__(1, None),
            "row 1, column 1: '' in the document, None",
        ),
        (lambda tables: tables[0]["rows"][0]["cells"].append("x"), "row 0, column 3: '<no cell>' in the document, 'x'"),
        (lambda tables: tables[0]["rows"][0]["links"][1].__setitem__(2, "https://y"), "'https://y'] in the data"),
        (lambda tables: tables[0]["rows"][0]["links"].pop(), "None in the data"),
    ],
)
def test_each_difference_is_named(change, line):
    tables = copy.deepcopy(TABLES)
    change(tables)
    found = list(documents.differences(TABLES, tables))
    assert len(found) == 1
    assert line in found[0]


def test_the_session_fails_when_a_document_is_missing_or_differs(tmp_path, run_detcli, monkeypatch, capsys):
    for name, mark in documents.MARKS.items():
        if name != "detectron":
            (tmp_path / f"{name}.txt").write_text(f"{mark}\n{MARKDOWN}")
    monkeypatch.setattr(documents, "written", lambda name: copy.deepcopy(TABLES))
    monkeypatch.setattr(documents, "OUTERMOST", {})
    with pytest.raises(SystemExit) as stopped:
        documents.main([str(tmp_path)])
    assert stopped.value.code == 1
    assert f"detectron: no document in {tmp_path}" in capsys.readouterr().out
    (tmp_path / "flat.txt").write_text(f"{documents.MARKS['detectron']}\n{FLAT}")
    monkeypatch.setattr(
        documents, "written", lambda name: documents.read_flat(FLAT) if name == "detectron" else copy.deepcopy(TABLES)
    )
    with pytest.raises(SystemExit) as stopped:
        documents.main([str(tmp_path)])
    assert stopped.value.code == 0
    (tmp_path / "mmdet-v2.txt").write_text(f"{documents.MARKS['mmdet-v2']}\n{MARKDOWN.replace('1.0', '1.1')}")
    with pytest.raises(SystemExit) as stopped:
        documents.main([str(tmp_path)])
    assert stopped.value.code == 1
    assert "mmdet-v2: table 0 ['First:'], row 0, column 1: '1.1' in the document, '1.0' in the data" in (
        capsys.readouterr().out
    )


def test_the_data_hold_nothing_but_tables():
    """Of the documents' prose, no sentence: a heading and a cell are short."""
    for name in SOURCES:
        for table in source(name).tables:
            for text in (*table.section, *table.columns, *(cell for row in table.rows for cell in row.cells if cell)):
                assert len(text) < 140
