"""COCO's panoptic format: what is written is read again, and files that are wrong are named."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from detcli.cli.data import app as data_app
from detcli.config import DataConfig, InputConfig
from detcli.data import open_dataset
from detcli.data.annotations import bitmaps
from detcli.data.export import write_shapes
from detcli.data.panoptic import decode_ids, encode_ids
from detcli.data.shapes import STUFF, THINGS, shapes
from detcli.errors import DetcliError

Config = Callable[..., DataConfig]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a COCO folder of three shapes scenes a split, with panoptic files."""
    sources = {split: shapes(split=split, train_images=3, val_images=3) for split in ("train", "val")}
    write_shapes(sources, tmp_path / "data", lambda done, total: None)
    return tmp_path / "data"


def change(written: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = written / "annotations" / "panoptic_train.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_ids_are_colours() -> None:
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]])
    colours = cv2.imdecode(np.frombuffer(encode_ids(ids), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    assert np.array_equal(colours @ [1, 256, 65536], ids)
    assert np.array_equal(decode_ids(encode_ids(ids), (2, 3), "a.png"), ids)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def _claims(width: int, height: int, kind: bytes = b"\x08\x02") -> bytes:
    header = width.to_bytes(4) + height.to_bytes(4) + kind + bytes(3)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"x")) + _chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.png is no whole PNG"),
        (b"GIF89a" * 20, "a.png is no whole PNG"),
        (encode_ids(np.zeros((4, 5), int))[:-9], "a.png is no whole PNG"),
        (encode_ids(np.zeros((5, 4), int)), "a.png is 4x5 pixels, but its picture 5x4"),
        (_claims(100_000, 100_000), "a.png is 100000x100000 pixels"),
        (_claims(5, 4, b"\x08\x03"), "not of red, green and blue with 8 bits"),
        (_claims(5, 4, b"\x10\x02"), "not of red, green and blue with 8 bits"),
        (_claims(5, 4), "can't be decoded"),
    ],
)
def test_files_that_are_no_ids_are_named(data: bytes, message: str) -> None:
    with pytest.raises(DetcliError, match=message):
        decode_ids(data, (4, 5), "a.png")


def test_objects_of_the_instances_and_segments_of_the_panoptic_file(
    written: Path, config: Config, rgb: InputConfig
) -> None:
    settings = config(written, flip=0.0, resize=[(160, 128)], args={})
    dataset = open_dataset(settings, "train", rgb, masks=True, semantic=True)
    memory = config("shapes", flip=0.0, resize=[(160, 128)], args={"train_images": 3, "val_images": 3})
    expected = open_dataset(memory, "train", rgb, masks=True, semantic=True)
    assert dataset.classes == expected.classes
    assert dataset.classes.things_and_stuff == (*THINGS, *STUFF)
    ours, theirs = dataset.segments(), expected.segments()
    assert ours["categories"] == theirs["categories"]
    assert ours["annotations"] == theirs["annotations"]
    for one, other in zip(dataset, expected, strict=True):
        assert one.target.boxes.equal(other.target.boxes)
        assert one.target.masks.equal(other.target.masks)
        assert one.target.semantic.equal(other.target.semantic)


def test_a_panoptic_file_alone_is_a_dataset(written: Path, config: Config, rgb: InputConfig) -> None:
    both = config(written, flip=0.0, resize=[(160, 128)])
    alone = config(written / "annotations" / "panoptic_train.json", flip=0.0, resize=[(160, 128)])
    expected = open_dataset(both, "train", rgb, masks=True, semantic=True)
    with pytest.warns(UserWarning, match="serves for training and for evaluation"):
        dataset = open_dataset(alone, "train", rgb, masks=True, semantic=True)
    assert dataset.classes == expected.classes
    assert dataset.segments() == expected.segments()
    for index, (one, other) in enumerate(zip(dataset, expected, strict=True)):
        assert one.target.boxes.equal(other.target.boxes)
        assert one.target.masks.equal(other.target.masks)
        assert one.target.semantic.equal(other.target.semantic)
        sizes = [bitmaps(data.annotations(index).segmentations, one.info.size).sum() for data in (dataset, expected)]
        assert sizes[0] == sizes[1] > 0


def test_pixels_without_a_segment_are_unlabelled(written: Path, config: Config, rgb: InputConfig) -> None:
    removed = []

    def remove_stuff(data: dict[str, Any]) -> None:
        infos = data["annotations"][0]["segments_info"]
        removed.append(infos.pop())

    change(written, remove_stuff)
    dataset = open_dataset(config(written, flip=0.0, resize=[(160, 128)]), "train", rgb, semantic=True)
    label = removed[0]["category_id"] - 1
    semantic = dataset[0].target.semantic
    assert (semantic == 255).any()
    assert not (semantic == label).any()


def test_without_the_panoptic_file_data_can_be_evaluated_and_not_trained_on(
    written: Path, config: Config, rgb: InputConfig
) -> None:
    for split in ("train", "val"):
        (written / "annotations" / f"panoptic_{split}.json").unlink()
    assert not open_dataset(config(written), "val", rgb, semantic=True).has_segments
    with pytest.raises(DetcliError, match=r"no segments of stuff.*Train mask_rcnn"):
        open_dataset(config(written), "train", rgb, masks=True, semantic=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["annotations"][0].pop("segments_info"), "image 1 has no list segments_info"),
        (lambda data: data["annotations"][0].update(file_name="../1.png"), "image 1 has no file_name of a PNG file"),
        (lambda data: data["annotations"][0].update(file_name="lost.png"), r"can't find lost.png of .*looked in"),
        (lambda data: data["annotations"][1].update(file_name="lost.png"), r"can't read .*lost.png"),
        (lambda data: data["annotations"][0].update(image_id="x"), "no whole-number image_id"),
        (lambda data: data["annotations"].pop(), r"has no segments for image 3 \(1 such images\)"),
        (lambda data: data["annotations"][0]["segments_info"][0].update(id=0), "ids are not different whole numbers"),
        (lambda data: data["annotations"][0]["segments_info"][0].update(id=2**24), "ids are not different whole"),
        (lambda data: data["annotations"][0]["segments_info"][0].update(category_id=77), "the category id 77"),
        (lambda data: data["categories"].append({"id": 50, "name": "cat", "isthing": 1}), "cat are things that"),
        (lambda data: data["categories"].append({"id": 1, "name": "again"}), "a whole-number id of their own"),
    ],
)
def test_what_is_wrong_is_named(
    edit: Callable[[dict[str, Any]], Any], message: str, written: Path, config: Config, rgb: InputConfig
) -> None:
    change(written, edit)
    with pytest.raises(DetcliError, match=message):
        list(open_dataset(config(written), "train", rgb, semantic=True))


def test_segments_of_another_size_are_named(written: Path, config: Config, rgb: InputConfig) -> None:
    path = written / "annotations" / "panoptic_train" / "000002.png"
    path.write_bytes(encode_ids(np.ones((3, 4), int)))
    dataset = open_dataset(config(written), "train", rgb, semantic=True)
    with pytest.raises(DetcliError, match=r"000002.png is 4x3 pixels, but its picture"):
        list(dataset)


def test_categories_of_stuff_are_matched_by_name(written: Path, config: Config, rgb: InputConfig) -> None:
    model = open_dataset(config(written), "train", rgb, semantic=True).classes
    other = type(model)(model.names, model.ids, ("ice", *model.stuff[::-1]), (90, 91, 92, 93))
    classes = open_dataset(config(written), "val", rgb, classes=other, semantic=True).classes
    assert classes.stuff_ids[1:] == model.stuff_ids[::-1]
    assert classes.stuff_ids[0] not in (*model.ids, *model.stuff_ids)


def test_good_segments_are_checked_and_counted(written: Path) -> None:
    result = CliRunner().invoke(data_app, ["check", str(written)])
    infos = [
        record["segments_info"]
        for record in json.loads((written / "annotations" / "panoptic_train.json").read_text())["annotations"]
    ]
    assert result.exit_code == 0
    assert f", {sum(map(len, infos))} segments; errors: 0" in result.stdout
    alone = CliRunner().invoke(data_app, ["check", str(written / "annotations" / "panoptic_train.json")])
    assert alone.exit_code == 0
    assert f", {sum(map(len, infos))} segments; errors: 0" in alone.stdout


def test_every_difference_between_segments_and_their_pixels_has_its_line(written: Path) -> None:
    maps = written / "annotations" / "panoptic_train"
    found: dict[str, Any] = {}

    def edit(data: dict[str, Any]) -> None:
        first, second, third = data["annotations"]
        data["categories"].append({"id": 99, "name": "lava", "isthing": 0})
        names = {category["id"]: category["name"] for category in data["categories"]}
        found["first"], found["third"] = first["file_name"], third["file_name"]
        found["ghost"] = f"the segment 7777 ({names[first['segments_info'][0]['category_id']]}) of {maps}"
        first["segments_info"].append({**first["segments_info"][0], "id": 7777})
        found["unnamed"] = second["segments_info"].pop()
        found["second"] = second["file_name"]
        found["area"] = third["segments_info"][0]["area"]
        third["segments_info"][0]["area"] += 5

    change(written, edit)
    path = maps / found["first"]
    colours = cv2.imread(str(path))
    colours[:10, :10] = 0
    cv2.imwrite(str(path), colours)
    result = CliRunner().invoke(data_app, ["check", str(written)])
    assert result.exit_code == 1
    unnamed = found["unnamed"]
    lines = result.stdout.splitlines()
    errors = [line for line in lines if line.startswith("error")]
    assert errors == [
        f"error: {found['ghost']}/{found['first']} has no pixels",
        f"error: {maps}/{found['second']} has {unnamed['area']} pixels of the id {unnamed['id']}, which no segment has",
    ]
    assert any(
        f"{found['third']} has an area of {found['area'] + 5}, and {found['area']} pixels" in line for line in lines
    )
    assert any("% of the pixels, in 1 pictures, have no segment" in line for line in lines)
    assert any(line.endswith("the class 'lava' has no segments") for line in lines)


def test_a_panoptic_file_that_cant_be_read_is_one_line_of_the_check(written: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        del data["annotations"][0]["segments_info"]

    change(written, edit)
    missing = sorted((written / "annotations" / "panoptic_val").iterdir())[-1]
    missing.unlink()
    result = CliRunner().invoke(data_app, ["check", str(written)])
    errors = [line for line in result.stdout.splitlines() if line.startswith("error")]
    assert "has no list segments_info" in errors[0]
    assert errors[1:] == [f"error: can't read {missing}: No such file or directory"]
    assert "instances_train.json: 3 pictures" in result.stdout


def test_stats_count_the_pixels_of_stuff(written: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(data_app, ["stats", str(written), "--out", str(tmp_path / "plot.png")])
    assert result.exit_code == 0
    rows = {cells[1]: cells[2:4] for line in result.stdout.splitlines() if len(cells := line.split("│")) == 5}
    shares = {name.strip(): float(share.strip(" %")) for name, (share, _) in rows.items() if "%" in share}
    assert shares.keys() == {*STUFF, "(things)", "(no segment)"}
    assert sum(shares.values()) == pytest.approx(100, abs=0.3)
    assert min(shares[name] for name in STUFF) > 0
    assert shares["(no segment)"] == 0
