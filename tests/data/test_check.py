from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
from typer.testing import CliRunner, Result

from detcli.cli.data import app
from detcli.errors import DetcliError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*serves for training and for evaluation"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def lines(result: Result, kind: str) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith(f"{kind}: ")]


def test_good_data_pass_and_the_turned_picture_is_noted(folder: Any) -> None:
    result = call("check", folder.write())
    assert result.exit_code == 0
    assert lines(result, "error") == []
    [note] = lines(result, "note")
    assert "turned.jpg is turned by its EXIF orientation 6" in note
    assert "4 pictures, 4 annotations; errors: 0, notes: 1" in result.stdout


def test_corrupt_file_and_nan_are_both_named(folder: Any) -> None:
    folder.data["annotations"][0]["bbox"][2] = float("nan")
    (folder.pictures / "grey.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    result = call("check", folder.write())
    assert result.exit_code == 1
    assert len(lines(result, "error")) == 2
    assert "annotation 1 of plain.jpg has a box that is not finite: [10.0, 30.0, nan, 20.0]" in result.stdout
    assert "grey.png" in lines(result, "error")[1]


def test_every_problem_has_its_line(folder: Any) -> None:
    data = folder.data
    (folder.pictures / "plain.jpg").unlink()
    cv2.imwrite(str(folder.pictures / "grey.png"), cv2.imread(str(folder.pictures / "grey.png"))[:40])
    data["images"].append({"id": 9, "file_name": "empty.png", "height": 64, "width": 64})
    data["categories"].append({"id": 33, "name": "unicorn"})
    data["annotations"] += [
        folder.annotation(10, 9, 33, [200, 0, 20, 20]),
        folder.annotation(11, 9, 7, [50, 50, 30, 10], {"size": [64, 64], "counts": [4096]}),
        folder.annotation(12, 9, 7, [1, 1, 0.5, 10]),
        folder.annotation(13, 9, 44, [1, 1, 10, 10]),
        folder.annotation(14, 77, 7, [1, 1, 10, 10]),
        folder.annotation(14, 9, 7, [1, 1, 10, -1]),
        folder.annotation(15, 9, 7, [1, 1, 10, 10], [[1, 1, 5, 5, float("inf"), 1]]),
        folder.annotation(16, 9, 7, [1, 1, 10, 10]),
    ]
    result = call("check", folder.write())
    assert result.exit_code == 1
    expected = [
        "annotation 13 has the category id 44",
        "annotation 14 belongs to image 77",
        "two annotations have the id 14",
        "annotation 15 has a segmentation",
        "annotation 14 of empty.png has a box without area",
        "annotation 10 of empty.png has a box outside its picture: [200.0, 0.0, 20.0, 20.0] in 64x64",
        "annotation 11 of empty.png has an empty mask",
        "plain.jpg is missing",
        "grey.png is 70x40 pixels, but",
    ]
    errors = lines(result, "error")
    assert [part for part in expected if not any(part in error for error in errors)] == []
    assert len(errors) == len(expected)
    noted = [
        "annotation 11 of empty.png has a box that sticks out by 16.0 pixels",
        "annotation 12 of empty.png is thinner than a pixel",
        "annotation 16 of empty.png has no mask",
        "empty.png is the picture of two images: 2 and 9",
    ]
    notes = lines(result, "note")
    assert [part for part in noted if not any(part in note for note in notes)] == []


def test_malformed_file_is_one_line(folder: Any) -> None:
    folder.json.write_text('{"images": [1,]}')
    result = call("check", folder.path)
    assert result.exit_code == 1
    [error] = lines(result, "error")
    assert "line 1, column 15" in error


def test_class_without_objects_is_noted(folder: Any) -> None:
    folder.data["categories"].append({"id": 33, "name": "unicorn"})
    result = call("check", folder.write())
    assert result.exit_code == 0
    assert any("'unicorn' has no objects" in note for note in lines(result, "note"))


def test_splits_whose_classes_differ(folder: Any) -> None:
    folder.write()
    train = folder.json.read_text()
    folder.json.with_name("instances_val2017.json").write_text(
        train.replace('"cat"', '"Katze"')
        .replace('"dog"', '"Hund"')
        .replace('"person"', '"Mensch"')
        .replace('": 90', '": 91')
        .replace('": 7,', '": 71,')
        .replace('": 3,', '": 31,')
    )
    shutil.copytree(folder.pictures, folder.path / "val2017")
    result = call("check", folder.path)
    assert result.exit_code == 1
    assert "no class of" in lines(result, "error")[-1]


def test_data_that_are_not_there(tmp_path: Path) -> None:
    result = call("check", tmp_path / "nothing.json")
    assert isinstance(result.exception, DetcliError)
    assert "there is no file or folder" in str(result.exception)


def test_built_in_data_pass() -> None:
    from detcli.config import DataConfig
    from detcli.data.check import check

    [train, val] = check(DataConfig(source="shapes", args={"train_images": 3, "val_images": 2}))
    assert (train.pictures, val.pictures, train.errors, val.errors) == (3, 2, [], [])
    assert train.objects >= 3


def test_stats_are_counted(folder: Any, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    result = call("stats", folder.write(), "--out", plot)
    assert result.exit_code == 0
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    figures = {row[0]: row[1] for row in cells if len(row) == 2}
    assert figures["pictures"] == "4"
    assert figures["pictures without objects"] == "1"
    assert figures["objects"] == "3"
    assert figures["crowd regions"] == "1"
    assert figures["small, medium, large objects"] == "2, 1, 0"
    classes = {row[0]: row[1:] for row in cells if len(row) == 7}
    assert classes["person"] == ["1", "33.3%", "1", "0", "1", "0"]
    assert cv2.imread(str(plot)).shape[1] > 800
    assert isinstance(call("stats", folder.path, "--out", plot).exception, DetcliError)
    assert call("stats", folder.path, "--out", plot, "--overwrite").exit_code == 0


def test_synth_then_show(tmp_path: Path) -> None:
    written = call("synth", tmp_path / "drawn", "--train", 3, "--val", 2, "--size", 96, 64)
    assert written.exit_code == 0
    assert cv2.imread(str(tmp_path / "drawn" / "train" / "000001.png")).shape[:2] in [
        (height, 96) for height in range(55, 75)
    ] + [(96, width) for width in range(55, 75)]
    shown = call("show", tmp_path / "drawn", "--out", tmp_path / "shown", "--count", 2, "--split", "val")
    assert shown.exit_code == 0
    assert len(list((tmp_path / "shown").iterdir())) == 3
    assert call("check", tmp_path / "drawn").exit_code == 0
