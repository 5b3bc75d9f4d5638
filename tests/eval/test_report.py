"""Tables for people and metrics.json for programs."""

import io
import json

import pytest
from rich.console import Console

from detcli.errors import DetcliError
from detcli.eval.coco import Result
from detcli.eval.report import read_metrics, show, write_metrics

BOX = Result(
    {"box_AP": 41.26, "box_AP50": 60.0, "box_APs": -1.0, "box_AR1": 30.0},
    {"cat": 51.0, "[bold]dog": -1.0},
    ["no objects of [bold]dog: not in the mean"],
    "box_AP",
)
MASK = Result(
    {"mask_AP": 38.0, "mask_AP50": 55.5}, {"cat": 38.0, "[bold]dog": -1.0}, list(BOX.notes), "mask_AP"
)
PROPOSALS = Result({"prop_AR": 61.0, "prop_AR100": 50.0}, {}, [], "prop_AR")


def text(*results, width=80):
    console = Console(width=width, file=io.StringIO())
    show(results, console)
    return console.file.getvalue()


def test_tables_hold_the_figures_the_classes_and_the_notes():
    lines = text(BOX, MASK).splitlines()
    boxes = next(line for line in lines if "boxes" in line and "41.3" in line)
    assert "60.0" in boxes
    assert "-1" not in boxes
    assert any("masks" in line and "38.0" in line and "55.5" in line for line in lines)
    assert any("boxes" in line and "30.0" in line for line in lines)
    assert any("cat" in line and "51.0" in line and "38.0" in line for line in lines)
    assert sum(line.startswith("note: no objects of [bold]dog") for line in lines) == 1


def test_proposals_have_no_class_table():
    output = text(PROPOSALS)
    assert "proposals" in output
    assert "AR100" in output
    assert "class" not in output


@pytest.mark.parametrize("count", [2, 11, 31, 80])
def test_every_class_is_shown_once(count):
    names = [f"class{i:03}" for i in range(count)]
    output = text(Result({"box_AP": 1.0}, {name: float(i) for i, name in enumerate(names)}))
    assert all(output.count(name) == 1 for name in names)
    assert len(output.splitlines()) < 45


def test_metrics_file_round_trip(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, [BOX, MASK], iteration=90000)
    content = read_metrics(path)
    assert content == json.loads(path.read_text())
    assert content["box_AP"] == 41.26
    assert content["box_APs"] == -1
    assert content["mask_AP50"] == 55.5
    assert content["iteration"] == 90000
    assert content["per_class"] == {"box_AP": BOX.per_class, "mask_AP": MASK.per_class}
    assert content["notes"] == BOX.notes


@pytest.mark.parametrize("content", [None, "{", "[1]", b"\xff\xfe"])
def test_unreadable_metrics_are_one_line(tmp_path, content):
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DetcliError, match=r"metrics\.json") as error:
        read_metrics(path)
    assert "\n" not in str(error.value)
