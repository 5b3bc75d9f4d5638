"""YOLO folders: the forms of data.yaml, boxes and polygons, and the way from COCO and VOC to YOLO and back."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from detcli.config import DataConfig, InputConfig
from detcli.data import open_dataset
from detcli.data.annotations import bitmaps
from detcli.data.check import check
from detcli.data.export import convert
from detcli.data.yolo import yolo, yolo_to_coco
from detcli.errors import DetcliError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPLITS = "train: images/train\nval: images/val\n"


def picture(path, size=(60, 80)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), 120, np.uint8))


def write(folder, yaml, labels="0 0.5 0.5 0.25 0.5\n"):
    """Write a folder with a picture of 60x80 pixels in each split, those of train with `labels`."""
    folder.mkdir()
    (folder / "data.yaml").write_text(yaml)
    for split in ("train", "val"):
        picture(folder / "images" / split / f"{split}.png")
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "labels" / "train" / "train.txt").write_text(labels)
    return folder


def nothing(done, total):
    return None


@pytest.mark.parametrize(
    "names",
    [
        "names: [cat, dog]",
        "names: ['cat', \"dog\"]  # two",
        "names:\n  0: cat\n  1: dog",
        "names:\n- cat\n- 'dog'",
        "names:\n    - cat\n    # a comment\n    - dog\n\nnc: 2",
        "nc: 2\nnames: {0: cat, 1: dog}",
    ],
)
def test_forms_of_data_yaml(tmp_path, names):
    data = yolo_to_coco(write(tmp_path / "yolo", f"# made by hand\npath: .\n{SPLITS}{names}\n"), "train")
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [(item["file_name"], item["height"], item["width"]) for item in data["images"]] == [
        ("images/train/train.png", 60, 80)
    ]
    assert [item["bbox"] for item in data["annotations"]] == [[30, 15, 20, 30]]


def test_places_of_pictures(tmp_path):
    folder = write(tmp_path / "yolo", "train: ../train/images\nvalid: list.txt\nnames: [a]\n")
    picture(folder / "train" / "images" / "p.jpg")
    (folder / "train" / "labels").mkdir()
    (folder / "train" / "labels" / "p.txt").write_text("0 0.5 0.5 1 1")
    (folder / "list.txt").write_text("./images/val/val.png\n")
    data = yolo_to_coco(folder, "train")
    assert [item["file_name"] for item in data["images"]] == ["train/images/p.jpg"]
    assert [item["bbox"] for item in data["annotations"]] == [[0, 0, 80, 60]]
    assert [item["file_name"] for item in yolo_to_coco(folder, "val")["images"]] == ["images/val/val.png"]


def test_polygons(tmp_path):
    folder = write(tmp_path / "yolo", f"{SPLITS}names: [a]", "0 0.25 0.5 0.5 0.5 0.5 0.75\n0 .5 .5 .1 .1\n")
    polygon, box = yolo_to_coco(folder, "train")["annotations"]
    assert polygon["segmentation"] == [[20, 30, 40, 30, 40, 45]]
    assert polygon["bbox"] == [20, 30, 20, 15]
    assert "segmentation" not in box
    dataset = open_dataset(DataConfig(source=str(folder)), "train", InputConfig())
    assert dataset.annotations(0).areas[0] == pytest.approx(150, abs=30)


@pytest.mark.parametrize(
    ("yaml", "labels", "problem"),
    [
        ("names: [a]", "", r"names no pictures for train: it has no `train:`"),
        (f"{SPLITS}nc: 2", "", "`names` must list the names of the classes"),
        (f"{SPLITS}names:\n  1: a", "", "`names` must list the names of the classes"),
        ("train: nowhere\nnames: [a]", "", "names nowhere for train: there are no pictures"),
        ("train: ../../etc\nnames: [a]", "", r"etc leads out of"),
        ("train: images\n! names", "", "can't make sense of the line '! names'"),
        (f"{SPLITS}names: [a]", "0 0.5 0.5 0.1", r"train\.txt, line 1: 3 numbers are neither a box nor a polygon"),
        (f"{SPLITS}names: [a]", "\n0 0.5 x 0.1 0.1", r"line 2: '0 0.5 x 0.1 0.1' is not made of numbers"),
        (f"{SPLITS}names: [a]", "inf 0.5 0.5 0.1 0.1", "line 1: there is no class inf"),
        (f"{SPLITS}names: [a]", "0.5 0.5 0.5 0.1 0.1", "line 1: there is no class 0.5"),
        (f"{SPLITS}names: [a]", "0 nan 0.5 0.1 0.1", "not finite"),
        (f"{SPLITS}names: [a]", "1 0.5 0.5 0.1 0.1", r"line 1: there is no class 1; data.yaml names 1"),
    ],
)
def test_broken_folders_are_named(tmp_path, yaml, labels, problem):
    with pytest.raises(DetcliError, match=problem):
        yolo(split="train", root=str(write(tmp_path / "yolo", yaml, labels)))


@pytest.fixture
def coco(tmp_path):
    """Return a COCO folder of two splits, with names that YAML would take for something else, and a crowd region."""
    random = np.random.default_rng(0)
    folder = tmp_path / "coco"
    categories = [{"id": 4, "name": "yes"}, {"id": 9, "name": "dog's, tail"}, {"id": 11, "name": "12: #3"}]
    for split in ("train", "val"):
        data = {"images": [], "annotations": [], "categories": categories}
        for number in range(1, 5):
            size = int(random.integers(40, 90)), int(random.integers(40, 90))
            picture(folder / split / f"{split}_{number}.png", size)
            image = {"id": 10 * number, "file_name": f"{split}_{number}.png", "height": size[0], "width": size[1]}
            data["images"].append(image)
            for _ in range(number - 1):  # the first one has no objects
                x, y = random.uniform(0, 20, 2)
                w, h = random.uniform(3, 19, 2)
                item = {"id": len(data["annotations"]) + 1, "image_id": 10 * number}
                kind = {"category_id": int(random.choice([4, 9, 11])), "iscrowd": int(len(data["annotations"]) == 2)}
                data["annotations"].append({**item, **kind, "bbox": [x, y, w, h], "area": w * h})
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    return folder


def boxes_by_picture(source, split):
    """Return {picture: [(class, box), ...]} of a folder, crowd regions left out."""
    truth = open_dataset(DataConfig(source=str(source), keep_empty=True), split, InputConfig()).ground_truth()
    names = {item["id"]: item["name"] for item in truth["categories"]}
    found = {item["file_name"].split("/")[-1]: [] for item in truth["images"]}
    pictures = {item["id"]: item["file_name"].split("/")[-1] for item in truth["images"]}
    for item in truth["annotations"]:
        if not item["iscrowd"]:
            found[pictures[item["image_id"]]].append((names[item["category_id"]], item["bbox"]))
    return found


def assert_same(one, other):
    assert set(one) == set(other)
    for name, objects in one.items():
        assert [kind for kind, _ in objects] == [kind for kind, _ in other[name]]
        for (_, box), (_, back) in zip(objects, other[name], strict=True):
            assert box == pytest.approx(back, abs=1e-6)


def test_from_coco_to_yolo_and_back(coco, tmp_path):
    notes = convert("coco", coco, tmp_path / "yolo", "yolo", nothing)
    assert notes == ["2 crowd regions (difficult objects) are left out: YOLO can't hold them"]
    assert convert("yolo", tmp_path / "yolo", tmp_path / "back", "coco", nothing) == []
    for split in ("train", "val"):
        original = boxes_by_picture(coco, split)
        assert sum(map(len, original.values())) == 5
        assert_same(original, boxes_by_picture(tmp_path / "yolo", split))
        assert_same(original, boxes_by_picture(tmp_path / "back", split))
    assert (tmp_path / "yolo" / "labels" / "train" / "train_1.txt").read_text() == ""
    assert not any(findings.errors for findings in check(DataConfig(source=str(tmp_path / "back"))))


def test_masks_go_from_coco_to_yolo_and_back(tmp_path):
    random = np.random.default_rng(0)
    ring = np.zeros((60, 80), np.uint8)
    cv2.circle(ring, (30, 30), 20, 1, -1)
    cv2.circle(ring, (27, 33), 9, 0, -1)
    ring[3:9, 60:75] = ring[9, 75] = 1  # another part, and a pixel at its corner
    runs = mask_utils.encode(np.asfortranarray(ring))
    apart = [[5.1, 5.3, 30.7, 8.9, 12.1, 30.5], [40.3, 40.1, 70.9, 41.7, 60.5, 55.3]]
    across = [[5.5, 5.5, 40.1, 5.5, 40.1, 40.3], [20.1, 10.3, 60.5, 10.3, 60.5, 30.1]]
    masks = [
        {"size": [60, 80], "counts": runs["counts"].decode()},
        apart,
        across,
        *([np.round(random.uniform(0, 60, 12), 2).tolist()] for _ in range(30)),
        {"size": [60, 80], "counts": [60 * 80]},
        None,
    ]
    boxes = [[1.0, 2.0, 30.0, 40.0]] * len(masks)
    items = [
        {"id": number, "image_id": 1, "category_id": 3, "bbox": box, "iscrowd": 0, "area": 1}
        | ({"segmentation": mask} if mask else {})
        for number, (mask, box) in enumerate(zip(masks, boxes, strict=True), 1)
    ]
    categories = [{"id": 3, "name": "ring"}]
    for split in ("train", "val"):
        picture(tmp_path / "coco" / split / f"{split}.png")
        images = [{"id": 1, "file_name": f"{split}.png", "height": 60, "width": 80}]
        path = tmp_path / "coco" / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": items, "categories": categories}))
    notes = convert("coco", tmp_path / "coco", tmp_path / "yolo", "yolo-seg", nothing)
    assert notes == [f"4 of {2 * len(items)} objects have no mask, and are boxes"]
    convert("yolo", tmp_path / "yolo", tmp_path / "back", "coco", nothing)
    original = open_dataset(DataConfig(source=str(tmp_path / "coco")), "val", InputConfig()).annotations(0)
    back = open_dataset(DataConfig(source=str(tmp_path / "back")), "val", InputConfig()).annotations(0)
    assert len(back) == len(items)
    for one, other in zip(original.segmentations[:-2], back.segmentations[:-2], strict=True):
        assert np.array_equal(bitmaps([one], (60, 80)), bitmaps([other], (60, 80)))
    assert back.segmentations[-2:] == [[], []]
    assert back.xywh[-2:].tolist() == [pytest.approx(box) for box in boxes[:2]]
    assert convert("coco", tmp_path / "coco", tmp_path / "boxes", "yolo", nothing) == [
        "masks are left out: `--to yolo-seg` writes polygons"
    ]


def test_data_without_masks_have_no_polygons(coco, tmp_path):
    with pytest.raises(DetcliError, match=r"has no masks. Write its boxes, with `--to yolo`"):
        convert("coco", coco, tmp_path / "yolo", "yolo-seg", nothing)


def test_from_coco_to_coco_keeps_ids_and_crowd_regions(coco, tmp_path):
    convert("coco", coco, tmp_path / "copy", "coco", nothing)
    for split in ("train", "val"):
        one, other = (
            open_dataset(DataConfig(source=str(place), keep_empty=True), split, InputConfig()).ground_truth()
            for place in (coco, tmp_path / "copy")
        )
        assert one == other


@pytest.mark.filterwarnings("ignore:.* serves for training and for evaluation:UserWarning")
def test_one_file_for_both_splits_stays_one(coco, tmp_path):
    (coco / "annotations" / "instances_val.json").unlink()
    (coco / "annotations" / "instances_train.json").rename(coco / "train" / "annotations.json")
    convert("coco", coco / "train", tmp_path / "yolo", "yolo", nothing)
    text = (tmp_path / "yolo" / "data.yaml").read_text()
    assert text.startswith("train: images/train_val\nval: images/train_val\n")
    convert("coco", coco / "train", tmp_path / "copy", "coco", nothing)
    for split in ("train", "val"):
        boxes = boxes_by_picture(coco / "train", "train")
        assert_same(boxes, boxes_by_picture(tmp_path / "yolo", split))
        assert_same(boxes, boxes_by_picture(tmp_path / "copy", split))


def test_pictures_are_linked_not_copied(coco, tmp_path):
    convert("coco", coco, tmp_path / "yolo", "yolo", nothing)
    assert (coco / "train" / "train_1.png").samefile(tmp_path / "yolo" / "images" / "train" / "train_1.png")


def test_what_can_not_be_written_is_said_and_nothing_is_overwritten(coco, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(DetcliError, match="is there already and not empty"):
        convert("coco", coco, tmp_path / "full", "yolo", nothing)
    with pytest.raises(UsageError, match="there is no file or folder"):
        convert("yolo", tmp_path / "nowhere", tmp_path / "out", "coco", nothing)
    with pytest.raises(DetcliError, match=r"can't read .*data\.yaml"):
        convert("yolo", coco, tmp_path / "out", "coco", nothing)
    (coco / "val" / "val_2.png").unlink()
    with pytest.raises(DetcliError, match=r"the picture .*val_2\.png is missing"):
        convert("coco", coco, tmp_path / "out", "yolo", nothing)
