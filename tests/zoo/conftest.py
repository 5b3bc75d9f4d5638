"""Sources made of text, in the place of the published ones."""

import io
import json
import os
import resource
import subprocess
import sys

import pytest

from detcli.cli import main
from detcli.zoo import rows

COLUMNS = ["Name", "lr sched", "box AP", "download"]


class MadeUpZoo:
    """Four sources in a folder of their own, empty until rows are written."""

    def __init__(self, folder):
        self.folder = folder
        for name in rows.SOURCES:
            self.write(source=name)

    def write(self, *tables, source="mmdet-v2", mirrors=(), schedules=None):
        """Write `tables`, each a list of rows; a row holds what differs from a plain one, such as `id` and `files`."""
        header = {"source": source, "title": f"{source}, made up", "mirrors": mirrors, "schedules": schedules or {}}
        records = [header]
        for number, table in enumerate(tables):
            records.append({"section": ["Made up", f"Table {number}"], "columns": COLUMNS})
            records += [made_up_row(source, f"{number}-{position}", row) for position, row in enumerate(table)]
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (self.folder / f"{source}.jsonl").write_text(text, encoding="utf-8")
        rows.source.cache_clear()

    @property
    def command(self):
        """The beginning of a command line that runs detcli with these sources in a process of its own."""
        code = (
            "import sys; from pathlib import Path; from detcli.zoo import rows; rows.DATA = Path(sys.argv.pop(1)); "
            "from detcli.cli import main; main()"
        )
        return [sys.executable, "-c", code, str(self.folder)]


@pytest.fixture
def timed():
    """Return a function that runs a command, and returns what came of it and the seconds that it kept a core busy."""

    def run(command):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def made_up_row(source, place, given):
    """Return the record of a row: `given`, and what every row has."""
    row = {
        "id": f"{source}/row-{place}",
        "name": "R50-FPN",
        "method": "faster_rcnn",
        "model": "faster_rcnn",
        "backbone": "r50",
        "neck": "fpn",
        "sched": "1x",
        "dataset": "coco",
        "task": "detection",
        **given,
    }
    row.setdefault("cells", [row["name"], row["sched"], "", "model"])
    row.setdefault("links", [[3, "model", file["url"]] for file in row.get("files", ())])
    return row


@pytest.fixture
def made_up_zoo(tmp_path, monkeypatch):
    """Point `detcli.zoo.rows` at four sources without rows; `write` gives them some."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    monkeypatch.setattr(rows, "DATA", folder)
    yield MadeUpZoo(folder)
    rows.source.cache_clear()


@pytest.fixture
def detcli(monkeypatch, capsys):
    """Return a function that runs a command in this process and returns its status, output and errors."""

    def run(*arguments, answer=""):
        monkeypatch.setattr(sys, "argv", ["detcli", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return ended.value.code, said.out, said.err

    return run
