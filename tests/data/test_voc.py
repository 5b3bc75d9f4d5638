"""VOC folders: what is read, difficult objects, the sets of a split, and files that are not read."""

import cv2
import numpy as np
import pytest

from detcli.config import DataConfig, InputConfig
from detcli.data import open_dataset
from detcli.data.voc import is_voc, voc, voc_to_coco
from detcli.errors import DetcliError

OBJECT = """
  <object>
    <name>{name}</name><difficult>{difficult}</difficult>
    <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>"""


def write_picture(year, key, *objects, size=(60, 80), tail=""):
    """Write a picture of `size` (height, width) with objects (name, (xmin, ymin, xmax, ymax), difficult)."""
    for folder in ("JPEGImages", "Annotations"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(year / "JPEGImages" / f"{key}.jpg"), np.full((*size, 3), 120, np.uint8))
    written = "".join(OBJECT.format(name=name, box=box, difficult=hard) for name, box, hard in objects)
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    text = f"{tail}<annotation><filename>{key}.jpg</filename>{sides}{written}\n</annotation>"
    (year / "Annotations" / f"{key}.xml").write_text(text)


def write_set(year, name, *keys):
    (year / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (year / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{key}\n" for key in keys))


@pytest.fixture
def kit(tmp_path):
    """Return a VOCdevkit of 2007, with a test set, and of 2012, without."""
    old, new = tmp_path / "VOCdevkit" / "VOC2007", tmp_path / "VOCdevkit" / "VOC2012"
    write_picture(old, "000001", ("dog", (1, 1, 10, 20), 0), ("person", (11, 31, 60, 60), 1))
    write_picture(old, "000002", ("tvmonitor", ("5.5", "6", "40", "50.25"), 0), size=(50, 70))
    write_picture(new, "2008_000007", ("boat", (2, 3, 80, 60), 0))
    write_set(old, "trainval", "000001  1")
    write_set(old, "test", "000002 -1")
    write_set(new, "trainval", "2008_000007")
    write_set(new, "train", "2008_000007")
    return tmp_path / "VOCdevkit"


def test_pixels_count_from_one_and_a_box_has_its_last_one(kit):
    data = voc_to_coco(kit, ("VOC2007/trainval", "VOC2007/test"))
    assert [item["bbox"] for item in data["annotations"]] == [[0, 0, 10, 20], [10, 30, 50, 30], [4.5, 5, 35.5, 45.25]]
    assert [item["area"] for item in data["annotations"]] == [200, 1500, 35.5 * 45.25]
    assert [item["category_id"] for item in data["annotations"]] == [12, 15, 20]
    assert [item["iscrowd"] for item in data["annotations"]] == [0, 1, 0]
    assert data["images"] == [
        {"id": 1, "file_name": "VOC2007/JPEGImages/000001.jpg", "width": 80, "height": 60},
        {"id": 2, "file_name": "VOC2007/JPEGImages/000002.jpg", "width": 70, "height": 50},
    ]
    assert [item["name"] for item in data["categories"]][:3] == ["aeroplane", "bicycle", "bird"]
    assert [item["id"] for item in data["categories"]] == list(range(1, 21))


def test_a_folder_is_data_without_being_converted(kit):
    assert is_voc(kit)
    config = DataConfig(source=str(kit), resize=[(80, 60)], test_resize=(80, 60), flip=0)
    train = open_dataset(config, "train", InputConfig())
    assert train.source.name == f"{kit} (VOC2007/trainval, VOC2012/trainval)"
    assert len(train) == 2
    target = train[0].target
    assert (target.boxes.tolist(), target.labels.tolist()) == ([[0, 0, 10, 20]], [11])
    assert target.ignored.tolist() == [[10, 30, 60, 60]]
    val = open_dataset(config, "val", InputConfig(), classes=train.classes)
    assert [item["file_name"] for item in val.ground_truth()["images"]] == ["VOC2007/JPEGImages/000002.jpg"]


def test_difficult_objects_can_be_trained_on_and_are_never_evaluated(kit):
    args = {"train_difficult": True, "val_sets": ("VOC2007/trainval",)}
    config = DataConfig(source=str(kit), args=args)
    assert open_dataset(config, "train", InputConfig())[0].target.labels.tolist() == [11, 14]
    val = open_dataset(config, "val", InputConfig())
    assert [item["iscrowd"] for item in val.ground_truth()["annotations"]] == [0, 1]


def test_without_a_test_set_there_is_val(kit):
    write_set(kit / "VOC2012", "val", "2008_000007")
    year = kit / "VOC2012"
    assert is_voc(year)
    for split in ("train", "val"):
        source = voc(split=split, root=str(year))
        assert (source.name, source.file_name(0)) == (f"{year} ({split})", "JPEGImages/2008_000007.jpg")


def test_other_names_of_classes_are_in_order_of_the_alphabet(tmp_path):
    write_picture(tmp_path, "a", ("zebra", (1, 1, 9, 9), 0), ("cat", (1, 1, 9, 9), 0), ("emu", (1, 1, 9, 9), 0))
    write_set(tmp_path, "train", "a")
    data = voc_to_coco(tmp_path, ("train",))
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "emu"}, {"id": 3, "name": "zebra"}]
    assert [item["category_id"] for item in data["annotations"]] == [3, 1, 2]


BOMB = '<!DOCTYPE a [<!ENTITY b "aaaaaaaa"><!ENTITY c "&b;&b;&b;&b;">]>'
FILE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize("tail", [BOMB, FILE, '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">'])
def test_entities_are_not_read(tmp_path, tail):
    write_picture(tmp_path, "a", ("&c;" if tail is BOMB else "&b;", (1, 1, 9, 9), 0), tail=tail)
    write_set(tmp_path, "train", "a")
    with pytest.raises(DetcliError, match=r"a\.xml has a document type, .* it is not read"):
        voc_to_coco(tmp_path, ("train",))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("<xmin>1<", "<xmin>one<", r"xmin of bndbox is 'one', not a number"),
        ("<xmin>1<", "<xmin>nan<", "not finite"),
        ("<name>dog<", "<name><", "an object has no name or no bndbox"),
        ("</annotation>", "", r"is not valid XML: no element found"),
        ("<name>dog<", "<name>&b;<", r"is not valid XML: undefined entity"),
    ],
)
def test_broken_files_are_named(kit, old, new, problem):
    path = kit / "VOC2007" / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DetcliError, match=problem):
        voc(split="train", root=str(kit))


def test_what_is_not_there_is_named(kit, tmp_path):
    with pytest.raises(DetcliError, match=r"has no ImageSets/Main/train\.txt, nor has a VOC2007"):
        voc(split="train", root=str(tmp_path / "empty"))
    with pytest.raises(DetcliError, match=r"can't read the set VOC2007/other"):
        voc(split="train", root=str(kit), train_sets=("VOC2007/other",))
    with pytest.raises(DetcliError, match=r"Give its folder: `--data path/to/VOCdevkit`"):
        voc(split="train")
    write_set(kit / "VOC2007", "trainval", "000009")
    with pytest.raises(DetcliError, match=r"can't read .*000009\.xml"):
        voc(split="train", root=str(kit))
