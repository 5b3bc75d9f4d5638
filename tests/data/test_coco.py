from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from detcli.config import DataConfig, InputConfig
from detcli.data import open_dataset
from detcli.data.annotations import bitmaps, turn
from detcli.data.coco import locate, read_coco
from detcli.errors import DetcliError, UsageError
from detcli.structures import ClassMap

Config = Callable[..., DataConfig]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*serves for training and for evaluation"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def bright_box(image: torch.Tensor) -> list[int]:
    """Return the box (x1, y1, x2, y2) of a picture's bright pixels."""
    rows, columns = np.nonzero(image.float().mean(0).numpy() > 125)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_labels_follow_category_ids_not_positions(folder: Any, config: Config, rgb: InputConfig) -> None:
    dataset = open_dataset(config(folder.write()), "val", rgb)
    assert dataset.classes == ClassMap(("dog", "cat", "person"), (3, 7, 90))
    assert [sample.target.labels.tolist() for sample in dataset] == [[1], [0], [2], []]
    folder.data["categories"].reverse()
    again = open_dataset(config(folder.write()), "val", rgb)
    assert again.classes == dataset.classes


def test_boxes_fit_the_pixels_of_every_kind_of_picture(folder: Any, config: Config, rgb: InputConfig) -> None:
    dataset = open_dataset(config(folder.write()), "val", rgb, masks=True)
    for sample in list(dataset)[:3]:
        [box] = sample.target.boxes
        assert np.abs(box.numpy() - bright_box(sample.image)).max() <= 1
        ys, xs = np.nonzero(sample.target.masks[0].numpy())
        assert np.abs(box.numpy() - [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).max() <= 1
        assert tuple(sample.image.shape[1:]) == sample.info.size


def test_boxes_of_stored_pixels_are_turned_with_the_picture(folder: Any, config: Config, rgb: InputConfig) -> None:
    upright = open_dataset(config(folder.write()), "val", rgb, masks=True)
    folder.data["images"][1] |= {"height": 60, "width": 80}
    folder.data["annotations"][1] |= {
        "bbox": [10, 20, 30, 15],
        "segmentation": [[10, 20, 10, 35, 40, 35, 40, 20]],
    }
    stored = open_dataset(config(folder.write()), "val", rgb, masks=True)
    assert stored[1].info == upright[1].info
    assert torch.equal(stored[1].target.boxes, upright[1].target.boxes)
    assert torch.equal(stored[1].target.masks, upright[1].target.masks)
    truth = stored.ground_truth()
    assert (truth["images"][1]["height"], truth["images"][1]["width"]) == (80, 60)
    assert truth["annotations"][1]["bbox"] == [25, 10, 15, 30]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_turning_annotations_is_turning_pixels(folder: Any, orientation: int) -> None:
    folder.data["annotations"][2]["image_id"] = 11
    folder.data["annotations"][2]["segmentation"] = [[5, 10, 45, 10, 45, 50, 5, 20]]
    annotations = read_coco(locate(folder.write(), "train")).store[0]
    turned = turn(annotations, orientation)
    transpose = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270}
    transpose |= {7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
    before = bitmaps(annotations.segmentations, annotations.size)
    after = bitmaps(turned.segmentations, turned.size)
    for old, new in zip(before, after, strict=True):
        expected = np.asarray(Image.fromarray(old).transpose(transpose[orientation]))
        # Polygons are filled anew, so that a row or column of pixels at their rim may differ.
        assert (expected != new).sum() <= 2 * sum(old.shape)
    run_lengths_expected = np.asarray(Image.fromarray(before[0]).transpose(transpose[orientation]))
    assert np.array_equal(run_lengths_expected, after[0])
    x, y, width, height = turned.xywh[0].astype(int)
    ys, xs = np.nonzero(after[0])
    assert [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] == [x, y, width, height]
    picture = np.zeros((60, 80), np.uint8)
    for column, row, _ in annotations.keypoints[1].astype(int):
        picture[row, column] = 1
    shown = np.asarray(Image.fromarray(picture).transpose(transpose[orientation]))
    places = {(int(row), int(column)) for column, row, _ in turned.keypoints[1]}
    assert places == set(zip(*(axis.tolist() for axis in np.nonzero(shown)), strict=True))


def test_run_lengths_and_polygons_are_what_pycocotools_makes_of_them(folder: Any) -> None:
    store = read_coco(locate(folder.write(), "train")).store
    for place, numbers in enumerate([[0], [1], [2, 3]]):
        annotations = store[place]
        for row, number in enumerate(numbers):
            segmentation = folder.data["annotations"][number]["segmentation"]
            size = annotations.size
            runs = mask_utils.frPyObjects(segmentation, *size) if number else segmentation
            expected = mask_utils.decode(mask_utils.merge(runs) if isinstance(runs, list) else runs)
            assert expected.sum() > 0
            assert np.array_equal(bitmaps([annotations.segmentations[row]], size)[0], expected)


def test_crowd_is_ignored_in_training_and_kept_in_ground_truth(folder: Any, config: Config, rgb: InputConfig) -> None:
    dataset = open_dataset(config(folder.write()), "val", rgb)
    target = dataset[2].target
    assert target.labels.tolist() == [2]
    assert target.ignored.shape == (1, 4)
    crowd = dataset.ground_truth()["annotations"][3]
    assert crowd["iscrowd"] == 1
    assert crowd["area"] == 1800
    assert mask_utils.decode(crowd["segmentation"]).sum() == 1800


def test_a_file_of_keypoints_stands_in_for_the_one_beside_it(folder: Any, config: Config, rgb: InputConfig) -> None:
    folder.write()
    people = folder.json.with_name("person_keypoints_train2017.json")
    people.write_text(json.dumps({**folder.data, "annotations": folder.data["annotations"][2:3]}))
    dataset = open_dataset(config(folder.path), "train", rgb, keypoints=True)
    assert dataset.image_ids == [8]
    assert dataset.classes.keypoints == ("nose", "left_eye", "right_eye")
    assert len(open_dataset(config(folder.path), "train", rgb)) == 3


def test_pictures_without_a_labelled_keypoint_are_not_trained_on(folder: Any, config: Config, rgb: InputConfig) -> None:
    assert open_dataset(config(folder.write()), "train", rgb, keypoints=True).image_ids == [8]
    folder.data["annotations"][2]["keypoints"] = [0] * 9
    with pytest.raises(DetcliError, match="no picture of an object with a labelled keypoint"):
        open_dataset(config(folder.write()), "train", rgb, keypoints=True)
    for category in folder.data["categories"]:
        category.pop("keypoints", None)
    with pytest.raises(DetcliError, match="has no keypoints"):
        open_dataset(config(folder.write()), "train", rgb, keypoints=True)


def test_ground_truth_is_the_file(folder: Any, config: Config, rgb: InputConfig) -> None:
    truth = open_dataset(config(folder.write()), "val", rgb).ground_truth()
    assert [image["id"] for image in truth["images"]] == [11, 5, 8, 2]
    assert [item["category_id"] for item in truth["annotations"]] == [7, 3, 90, 3]
    assert [item["bbox"] for item in truth["annotations"]] == [item["bbox"] for item in folder.data["annotations"]]
    assert truth["annotations"][1]["segmentation"] == folder.data["annotations"][1]["segmentation"]
    assert truth["annotations"][2]["keypoints"] == folder.data["annotations"][2]["keypoints"]
    assert [item["id"] for item in truth["annotations"]] == [1, 2, 3, 4]


def test_pictures_without_objects(folder: Any, config: Config, rgb: InputConfig) -> None:
    source = folder.write()
    assert open_dataset(config(source), "train", rgb).image_ids == [11, 5, 8]
    assert open_dataset(config(source, keep_empty=True), "train", rgb).image_ids == [11, 5, 8, 2]
    assert open_dataset(config(source), "val", rgb).image_ids == [11, 5, 8, 2]
    assert open_dataset(config(source), "train", rgb, augment=False).image_ids == [11, 5, 8, 2]


def test_classes_of_a_checkpoint_are_matched_by_name(folder: Any, config: Config, rgb: InputConfig) -> None:
    model = ClassMap(("cat", "bird", "person", "dog"), (90, 3, 100, 101))
    dataset = open_dataset(config(folder.write()), "val", rgb, classes=model)
    assert [sample.target.labels.tolist() for sample in dataset] == [[0], [3], [2], []]
    assert dataset.classes.names == model.names
    ids = dataset.classes.ids
    assert (ids[0], ids[2], ids[3]) == (7, 90, 3)
    assert ids[1] not in (3, 7, 90)


def test_classes_are_matched_by_id_where_no_name_matches(folder: Any, config: Config, rgb: InputConfig) -> None:
    model = ClassMap(("Hund", "Katze"), (3, 7))
    with pytest.warns(UserWarning, match="by id"), pytest.warns(UserWarning, match="does not know person"):
        dataset = open_dataset(config(folder.write()), "val", rgb, classes=model)
    assert [sample.target.labels.tolist() for sample in dataset] == [[1], [0], [], []]


def test_classes_that_do_not_match_are_both_listed(folder: Any, config: Config, rgb: InputConfig) -> None:
    with pytest.raises(DetcliError, match=r"dog, cat, person.*plane, ship"):
        open_dataset(config(folder.write()), "val", rgb, classes=ClassMap(("plane", "ship"), (1, 2)))


LAYOUTS = {
    "coco": ("annotations/instances_{}2017.json", "{}2017"),
    "roboflow": ("{}/_annotations.coco.json", "{}"),
    "names": ("{}.json", "images"),
    "split_images": ("annotations/{}.json", "images/{}"),
    "folders": ("annotations/{}.json", "{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder_layouts(tmp_path: Path, folder: Any, config: Config, rgb: InputConfig, layout: str) -> None:
    json_path, pictures = LAYOUTS[layout]
    root = tmp_path / "elsewhere"
    folder.write()
    for split in ("train", "val"):
        annotations = root / json_path.format("valid" if (layout, split) == ("roboflow", "val") else split)
        images = root / pictures.format("valid" if (layout, split) == ("roboflow", "val") else split)
        shutil.copytree(folder.pictures, images, dirs_exist_ok=True)
        annotations.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder.json, annotations)
        assert len(open_dataset(config(annotations), split, rgb)) > 0
    for split, count in (("train", 3), ("val", 4)):
        dataset = open_dataset(config(root), split, rgb)
        assert len(dataset) == count
        assert dataset[0].info.name == "plain.jpg"
        assert split in Path(dataset.source.name).as_posix().replace("valid", "val").rsplit("elsewhere")[1]


def test_single_file_serves_both_splits_with_a_warning(folder: Any, config: Config, rgb: InputConfig) -> None:
    folder.write()
    with pytest.warns(UserWarning, match="serves for training and for evaluation"):
        open_dataset(config(folder.json), "train", rgb)
    assert len(open_dataset(config(folder.json), "val", rgb)) == 4


def test_pictures_are_found_where_the_setting_says(
    tmp_path: Path, folder: Any, config: Config, rgb: InputConfig
) -> None:
    folder.write()
    moved = tmp_path / "far" / "away"
    moved.parent.mkdir()
    folder.pictures.rename(moved)
    with pytest.raises(DetcliError, match=r"looked in .*--images") as error:
        open_dataset(config(folder.json), "val", rgb)
    assert str(folder.json.parent) in str(error.value)
    assert len(open_dataset(config(folder.json, images=str(moved)), "val", rgb)) == 4


def test_folder_without_annotations_says_what_was_looked_for(tmp_path: Path, config: Config, rgb: InputConfig) -> None:
    (tmp_path / "readme.json").write_text("{}")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DetcliError, match=r"annotations/instances_train\.json.*other\.json, readme\.json"):
        open_dataset(config(tmp_path), "train", rgb)


def test_unknown_names(tmp_path: Path, config: Config, rgb: InputConfig) -> None:
    with pytest.raises(UsageError, match="did you mean 'shapes'"):
        open_dataset(config("shape"), "train", rgb)
    with pytest.raises(UsageError, match="there is no file or folder"):
        open_dataset(config(tmp_path / "nothing"), "train", rgb)
    with pytest.raises(UsageError, match="no data for train"):
        open_dataset(config(""), "train", rgb)


def change(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("annotations.0.bbox", [1, float("nan"), 5, 5], r"annotation 1 of plain\.jpg .*not finite"),
        ("annotations.0.bbox", [1, 1, 0, 5], r"annotation 1 of plain\.jpg has a box without area"),
        ("annotations.0.bbox", [1, 1, -4, 5], r"annotation 1 of plain\.jpg has a box without area"),
        ("annotations.0.bbox", [1, 1, None, 5], r"annotation 1 has no box of four numbers"),
        ("annotations.0.bbox", [1, 1], r"annotation 1 has no box of four numbers"),
        ("annotations.0.category_id", 4, r"annotation 1 has the category id 4"),
        ("annotations.0.image_id", 99, r"annotation 1 belongs to image 99"),
        ("annotations.1.id", 1, r"two annotations have the id 1"),
        ("images.1.id", 11, r"two images have the id 11: plain\.jpg and turned\.jpg"),
        ("categories.1.id", 90, r"two categories have the id 90: 'person' and 'cat'"),
        ("categories.1.name", "dog", r"two categories are called 'dog'"),
        ("images.0.id", "first", r"an image without a whole-number id"),
        ("annotations.1.segmentation", [[1, 2, 3, 4, 5, 6, 7]], r"annotation 2 has a segmentation"),
        ("annotations.1.segmentation", [[1, 2, "x", 4, 5, 6]], r"annotation 2 has a segmentation"),
        ("annotations.1.segmentation.0.1", float("nan"), r"annotation 2 has .* not finite"),
        ("annotations.3.segmentation.counts", [4500, 17], r"annotation 4 .*cover 4517 of 6300"),
        ("annotations.3.segmentation.size", [70, 90], r"annotation 4 .*\[70, 90\].*\[90, 70\]"),
    ],
)
def test_entries_that_would_train_wrongly_are_named(
    folder: Any, config: Config, rgb: InputConfig, path: str, value: Any, message: str
) -> None:
    change(folder.data, path, value)
    with pytest.raises(DetcliError, match=message) as error:
        open_dataset(config(folder.write()), "train", rgb, masks=True)
    assert "\n" not in str(error.value)
    assert "detcli data check" in str(error.value)


def test_one_box_without_area_among_very_many_is_left_out(folder: Any) -> None:
    extra = folder.annotation(0, 11, 7, [1, 1, 5, 5])
    folder.data["annotations"] += [extra | {"id": number} for number in range(100, 10_100)]
    folder.data["annotations"].append(folder.annotation(10_100, 11, 7, [1, 1, 0, 5]))
    store = read_coco(locate(folder.write(), "train")).store
    assert not store.trainable()[-1]
    assert store.trainable()[:-1].sum() == 10_003


def test_boxes_are_clipped_and_slivers_left_out(folder: Any, config: Config, rgb: InputConfig) -> None:
    for number, box in enumerate([[-10, -10, 20, 20], [0.2, 0, 0.9, 30], [200, 0, 9, 9]], start=20):
        folder.data["annotations"].append(folder.annotation(number, 2, 7, box))
    target = open_dataset(config(folder.write()), "val", rgb)[3].target
    assert target.boxes.tolist() == [[0, 0, 12.5, 12.5]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations" []}', "line 2, column 16"),
        ("[]", "it is a list"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "has no images"),
        ("\udcff", "not a text file in UTF-8"),
    ],
)
def test_malformed_json_is_located(folder: Any, config: Config, rgb: InputConfig, text: str, message: str) -> None:
    folder.json.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DetcliError, match=message):
        open_dataset(config(folder.path), "train", rgb)


def test_no_annotations_at_all(folder: Any, config: Config, rgb: InputConfig) -> None:
    folder.data["annotations"] = []
    with pytest.raises(DetcliError, match=r"no annotations to train on.*4 pictures"):
        open_dataset(config(folder.write()), "train", rgb)


def test_masks_are_asked_for_and_not_there(folder: Any, config: Config, rgb: InputConfig) -> None:
    some = copy.deepcopy(folder.data)
    del folder.data["annotations"][1]["segmentation"]
    with pytest.raises(DetcliError, match="1 objects have a box but no mask, such as annotation 2"):
        open_dataset(config(folder.write()), "train", rgb, masks=True)
    for item in some["annotations"]:
        del item["segmentation"]
    folder.data = some
    dataset = open_dataset(config(folder.write()), "train", rgb)
    assert not dataset.has_masks
    with pytest.raises(DetcliError, match="has no masks"):
        open_dataset(config(folder.path), "train", rgb, masks=True)


def test_size_that_the_json_does_not_give_is_read(folder: Any, config: Config, rgb: InputConfig) -> None:
    expected = open_dataset(config(folder.write()), "val", rgb).ground_truth()
    for image in folder.data["images"]:
        del image["height"], image["width"]
    assert open_dataset(config(folder.write()), "val", rgb).ground_truth()["images"] == expected["images"]


def test_picture_of_another_size_is_refused(folder: Any, config: Config, rgb: InputConfig) -> None:
    folder.data["images"][0] |= {"height": 120, "width": 160}
    folder.data["annotations"][0]["segmentation"] = None
    dataset = open_dataset(config(folder.write()), "val", rgb)
    with pytest.raises(DetcliError, match=r"plain\.jpg is 80x60 pixels, but .* says 160x120"):
        dataset[0]


def test_missing_pictures_are_named_when_data_are_opened(folder: Any, config: Config, rgb: InputConfig) -> None:
    (folder.pictures / "grey.png").unlink()
    with pytest.raises(DetcliError, match=r"1 of 3 pictures .* missing: .*grey\.png.*--skip-bad-images"):
        open_dataset(config(folder.write()), "train", rgb)
    with pytest.warns(UserWarning, match=r"grey\.png"):
        dataset = open_dataset(config(folder.path, skip_bad_images=True), "train", rgb)
    assert dataset.image_ids == [11, 5]


def test_corrupt_picture_is_an_error_or_gives_way(folder: Any, config: Config, rgb: InputConfig) -> None:
    (folder.pictures / "turned.jpg").write_bytes(b"no picture")
    with pytest.raises(DetcliError, match=r"turned\.jpg"):
        open_dataset(config(folder.write()), "train", rgb)[1]
    dataset = open_dataset(config(folder.path, skip_bad_images=True), "train", rgb)
    with pytest.warns(UserWarning, match=r"left out: .*turned\.jpg") as caught:
        samples = [dataset[1], dataset[1]]
    assert [sample.info.image_id for sample in samples] == [8, 8]
    assert len(caught) == 1
    val = open_dataset(config(folder.path, skip_bad_images=True), "val", rgb)
    with pytest.warns(UserWarning, match=r"turned\.jpg"):
        black = val[1]
    assert black.info.image_id == 5
    assert black.image.max() == 0
    assert val.picture(5).shape == (80, 60, 3)
    assert [item["image_id"] for item in val.ground_truth()["annotations"]] == [11, 8, 8]


def test_data_can_name_each_split(folder: Any, config: Config, rgb: InputConfig) -> None:
    folder.write()
    other = folder.json.with_name("mine.json")
    shutil.copy(folder.json, other)
    settings = config("", train=str(folder.json), val="shapes")
    assert open_dataset(settings, "train", rgb).image_ids == [11, 5, 8]
    assert open_dataset(settings, "val", rgb).classes.names[0] == "circle"
    assert open_dataset(config("", train=str(other)), "val", rgb).source.name == str(other)


def write_lvis(folder: Path, name: str, **image: Any) -> None:
    folder.mkdir(exist_ok=True)
    data = {
        "images": [
            {"id": 5, "height": 6, "width": 8, "neg_category_ids": [2], "not_exhaustive_category_ids": [], **image}
        ],
        "categories": [{"id": 1, "name": "cat", "frequency": "f"}, {"id": 2, "name": "axolotl", "frequency": "r"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16}],
    }
    (folder / name).write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        (
            "lvis_v1_val.json",
            {"coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg"},
            "train2017/000000000009.jpg",
        ),
        ("lvis_v0.5_val.json", {"file_name": "COCO_val2014_000000000009.jpg"}, "000000000009.jpg"),
    ],
)
def test_lvis_files_are_read_as_they_are(
    tmp_path: Path, rgb: InputConfig, name: str, image: dict[str, str], expected: str
) -> None:
    write_lvis(tmp_path / "lvis", name, **image)
    for split in ("train2017", "val2017"):
        (tmp_path / "lvis" / split).mkdir()
    place = "val2017" if "v0.5" in name else "train2017"
    Image.new("RGB", (8, 6)).save(tmp_path / "lvis" / place / "000000000009.jpg")
    dataset = open_dataset(DataConfig(val=str(tmp_path / "lvis")), "val", rgb)
    assert len(dataset[0].image.shape) == 3
    truth = dataset.ground_truth()
    facts = {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    assert truth["images"] == [{"id": 5, "file_name": expected, "height": 6, "width": 8, **facts}]
    assert [(item["name"], item["frequency"]) for item in truth["categories"]] == [("cat", "f"), ("axolotl", "r")]
