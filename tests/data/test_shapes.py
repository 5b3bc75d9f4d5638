from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from detcli.config import DataConfig, InputConfig
from detcli.data import open_dataset
from detcli.data.annotations import bitmaps
from detcli.data.export import write_annotated, write_shapes
from detcli.data.shapes import CORNERS, KEYPOINTS, LEAST_VISIBLE, STUFF, THINGS, shapes
from detcli.errors import DetcliError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_scenes_depend_on_seed_split_and_number_alone() -> None:
    few, many = shapes(split="train", train_images=3), shapes(split="train", train_images=30)
    for index in (2, 0):
        assert np.array_equal(few.read(index)[0], many.read(index)[0])
        assert np.array_equal(few.read(index)[1].xywh, few.annotations(index).xywh)
    assert np.array_equal(few.sizes, many.sizes[:3])
    others = [shapes(split="val"), shapes(split="train", seed=1)]
    for other in others:
        assert other.read(0)[0].shape != few.read(0)[0].shape or (other.read(0)[0] != few.read(0)[0]).any()


def test_annotations_describe_what_is_drawn() -> None:
    source = shapes(split="train", train_images=60)
    seen = set()
    for index in range(60):
        image, annotations = source.read(index)
        assert image.shape == (*annotations.size, 3)
        assert tuple(source.sizes[index]) == annotations.size
        assert 1 <= len(annotations) <= 6
        masks = bitmaps(annotations.segmentations, annotations.size)
        assert masks.sum(0).max() == 1
        for mask, box, area, label in zip(
            masks, annotations.xywh, annotations.areas, annotations.categories, strict=True
        ):
            ys, xs = np.nonzero(mask)
            assert [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] == box.tolist()
            assert area == mask.sum()
            assert (annotations.semantic[mask > 0] == label).all()
            seen.add(int(label))
        stuff = annotations.semantic[masks.sum(0) == 0]
        assert stuff.min() >= len(THINGS)
        assert stuff.max() < len(THINGS) + len(STUFF)
    assert seen == set(range(len(THINGS)))


def test_masks_are_tight_around_the_shapes() -> None:
    """A disc fills pi / 4 of its box, a square in general position more than half, a triangle about half."""
    source = shapes(split="train", train_images=200, size=(320, 256))
    fills: dict[int, list[float]] = {}
    for index in range(200):
        annotations = source.annotations(index)
        if len(annotations) == 1:
            x, y, width, height = annotations.xywh[0]
            if x > 0 and y > 0 and x + width < annotations.size[1] and y + height < annotations.size[0]:
                fill = annotations.areas[0] / (width * height)
                fills.setdefault(int(annotations.categories[0]), []).append(fill)
    assert np.allclose(fills[0], np.pi / 4, atol=0.03)
    assert all(0.55 < fill <= 1 for fill in fills[1])
    assert all(0.4 < fill < 0.66 for fill in fills[2])
    assert all(0.2 < fill < 0.45 for fill in fills[3])


def test_objects_stand_out_from_what_is_behind_them() -> None:
    source = shapes(split="train", train_images=40)
    differences = []
    for index in range(40):
        image, annotations = source.read(index)
        for mask in bitmaps(annotations.segmentations, annotations.size):
            around = cv2.dilate(mask, np.ones((5, 5), np.uint8)) - mask
            differences.append(np.abs(image[mask > 0].mean(0) - image[around > 0].mean(0)).max())
    assert np.median(differences) > 50


def test_objects_differ_in_size() -> None:
    source = shapes(split="val")
    areas = np.concatenate([source.annotations(index).areas for index in range(40)])
    assert (areas < 32**2).mean() > 0.2
    assert (areas >= 32**2).mean() > 0.2
    assert 0 < LEAST_VISIBLE < 1


def test_folder_holds_the_same_as_memory(tmp_path: Path, config: Callable[..., DataConfig], rgb: InputConfig) -> None:
    sizes = {"train_images": 4, "val_images": 3, "seed": 2}
    write_shapes(
        {"train": shapes(split="train", **sizes), "val": shapes(split="val", **sizes)},
        tmp_path / "out",
        lambda done, total: None,
    )
    for split in ("train", "val"):
        memory = open_dataset(config("shapes", args=sizes), split, rgb, masks=True)
        written = open_dataset(config(tmp_path / "out"), split, rgb, masks=True)
        assert memory.classes == written.classes
        assert memory.ground_truth() == written.ground_truth()
        for index, image_id in enumerate(memory.image_ids):
            assert np.array_equal(memory.picture(image_id), written.picture(image_id))
            one, other = memory[index], written[index]
            assert one.info == other.info
            assert one.target.boxes.equal(other.target.boxes)
            assert one.target.masks.equal(other.target.masks)
            labels = tmp_path / "out" / "stuffthingmaps" / split / memory.source.file_name(index)
            expected = memory.annotations(index).semantic
            assert np.array_equal(cv2.imread(str(labels), cv2.IMREAD_UNCHANGED), expected)
    data = json.loads((tmp_path / "out" / "annotations" / "instances_val.json").read_text())
    assert [stuff["name"] for stuff in data["stuff"]] == list(STUFF)
    assert mask_utils.area(data["annotations"][0]["segmentation"]) == data["annotations"][0]["area"]


def test_nothing_is_overwritten(tmp_path: Path, config: Callable[..., DataConfig]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    source = shapes(split="train", train_images=1)
    with pytest.raises(DetcliError, match="is there already"):
        write_shapes({"train": source}, tmp_path, lambda done, total: None)
    with pytest.raises(DetcliError, match="is there already"):
        write_annotated(config("shapes"), "train", tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_annotated_pictures(tmp_path: Path, folder, config: Callable[..., DataConfig]) -> None:  # type: ignore[no-untyped-def]
    files = write_annotated(config(folder.write()), "val", tmp_path / "shown", 10)
    assert [file.name for file in files] == [
        "11_plain.png",
        "5_turned.png",
        "8_grey.png",
        "2_empty.png",
        "all.png",
    ]
    for file in files:
        assert min(cv2.imread(str(file)).shape[:2]) >= 320
    assert len(write_annotated(config("shapes"), "val", tmp_path / "few", 2)) == 3


def test_keypoints_are_corners_of_what_is_there() -> None:
    source = shapes(split="val", val_images=30, keypoints=True)
    assert all(category.keypoints == KEYPOINTS for category in source.categories)
    seen = {THINGS[label]: set() for label in range(len(THINGS))}
    for index in range(30):
        annotations = source.annotations(index)
        masks = bitmaps(annotations.segmentations, annotations.size)
        for row, (x, y, width, height) in enumerate(annotations.xywh):
            labelled = annotations.keypoints[row][annotations.keypoints[row, :, 2] > 0]
            seen[THINGS[annotations.categories[row]]] |= {
                KEYPOINTS[place] for place in np.flatnonzero(annotations.keypoints[row, :, 2])
            }
            visible = labelled[labelled[:, 2] == 2, :2]
            assert (visible > [x - 2, y - 2]).all()  # the tip of a star covers less than half of its pixel
            assert (visible < [x + width + 2, y + height + 2]).all()
            centre = np.array([x + width / 2, y + height / 2])
            for column, line in (visible * 0.88 + centre * 0.12).astype(int):
                assert masks[row, max(0, line - 2) : line + 3, max(0, column - 2) : column + 3].any()
    assert seen == {"circle": set(), **{name: set(corners.values()) for name, corners in CORNERS.items()}}


def test_left_keypoints_stay_left_in_a_mirror(config: Callable[..., DataConfig], rgb: InputConfig) -> None:
    settings = {"args": {"train_images": 20, "keypoints": True}, "resize": [(160, 128)]}
    plain = open_dataset(config("shapes", flip=0.0, **settings), "train", rgb, keypoints=True)
    mirrored = open_dataset(config("shapes", flip=1.0, **settings), "train", rgb, keypoints=True)
    assert plain.classes.keypoints == KEYPOINTS
    pairs = [(KEYPOINTS.index(f"{side}left"), KEYPOINTS.index(f"{side}right")) for side in ("top_", "bottom_")]
    count = 0
    for one, other in zip(plain, mirrored, strict=True):
        width = one.info.size[1]
        for left, right in pairs:
            torch.testing.assert_close(other.target.keypoints[:, left, 2], one.target.keypoints[:, right, 2])
            torch.testing.assert_close(other.target.keypoints[:, left, 0], width - one.target.keypoints[:, right, 0])
            both = (other.target.keypoints[:, [left, right], 2] > 0).all(1)
            points = other.target.keypoints[both]
            assert (points[:, left, 0] < points[:, right, 0]).all()
            count += int(both.sum())
    assert count > 20


@pytest.mark.parametrize("unused", [0, 76])
def test_segments_are_objects_and_stuff(unused: int) -> None:
    source = shapes(split="val", val_images=3, unused_classes=unused)
    for index in range(3):
        segments, annotations = source.segments(index), source.annotations(index)
        assert np.unique(segments.ids).tolist() == segments.numbers.tolist()
        masks = bitmaps(annotations.segmentations, annotations.size)
        for number, (mask, category) in enumerate(zip(masks, annotations.categories, strict=True), 1):
            assert np.array_equal(segments.ids == number, mask > 0)
            assert segments.categories[segments.numbers == number] == source.categories[category].id
        stuff = {category.id: category.name for category in source.stuff}
        assert set(stuff.values()) == set(STUFF)
        labels = [*(category.id for category in source.categories), *stuff]
        for number, category in zip(segments.numbers, segments.categories, strict=True):
            assert (annotations.semantic[segments.ids == number] == labels.index(category)).all()
