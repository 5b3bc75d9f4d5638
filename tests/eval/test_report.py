"""Tables for people and metrics.json for programs."""

import io
import json

import pytest
from rich.console import Console

from detcli.eval.report import show_metrics, write_metrics

METRICS = {
    "box_AP": 41.26,
    "box_AP50": 60.0,
    "box_APs": -1.0,
    "box_AR1": 30.0,
    "mask_AP": 38.0,
    "mask_AP50": 55.5,
}
PER_CLASS = {"box": {"cat": 51.0, "[bold]dog": -1.0}, "mask": {"cat": 38.0, "[bold]dog": -1.0}}
NOTES = ["no objects of [bold]dog: not in the mean"] * 2


def text(metrics, per_class, notes=()):
    console = Console(width=80, file=io.StringIO())
    show_metrics(console, metrics, per_class, list(notes))
    return console.file.getvalue()


def test_tables_hold_the_figures_the_classes_and_the_notes():
    lines = text(METRICS, PER_CLASS, NOTES).splitlines()
    boxes = next(line for line in lines if "boxes" in line and "41.3" in line)
    assert "60.0" in boxes
    assert "-1" not in boxes
    assert any("masks" in line and "38.0" in line and "55.5" in line for line in lines)
    assert any("boxes" in line and "30.0" in line for line in lines)
    assert any("cat" in line and "51.0" in line and "38.0" in line for line in lines)
    assert sum(line.startswith("note: no objects of [bold]dog") for line in lines) == 1


def test_proposals_have_recall_only():
    output = text({"prop_AR": 61.0, "prop_AR100": 50.0}, {"proposal": {}})
    assert "proposals" in output
    assert "AR100" in output
    assert "class" not in output
    assert "precision" not in output


def test_segments_and_keypoints_have_tables():
    metrics = {"PQ": 40.1, "SQ": 80.0, "RQ": 50.0, "things_PQ": 45.5, "stuff_PQ": 30.5, "keypoint_AP": 61.5}
    lines = text(metrics, {"panoptic": {"cat": 45.5, "sky": 30.5}, "box": {"cat": 33.3}}).splitlines()
    assert any("all segments" in line and "40.1" in line and "50.0" in line for line in lines)
    assert any("things" in line and "45.5" in line for line in lines)
    assert any("stuff" in line and "30.5" in line for line in lines)
    assert any("keypoints" in line and "61.5" in line for line in lines)
    assert any("sky" in line and "30.5" in line for line in lines)


@pytest.mark.parametrize("count", [2, 11, 31, 80])
def test_every_class_is_shown_once(count):
    names = [f"class{i:03}" for i in range(count)]
    output = text({"box_AP": 1.0}, {"box": {name: float(i) for i, name in enumerate(names)}})
    assert all(output.count(name) == 1 for name in names)
    assert len(output.splitlines()) < 45


def test_metrics_file(tmp_path):
    write_metrics(tmp_path / "metrics.json", METRICS, PER_CLASS, NOTES)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content == {**METRICS, "per_class": PER_CLASS, "notes": NOTES[:1]}
