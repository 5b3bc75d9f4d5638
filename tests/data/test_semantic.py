import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from detcli.data.dataset import open_dataset
from detcli.errors import DetcliError

pytestmark = pytest.mark.filterwarnings("ignore:.*serves for training and for evaluation")
SIZE = (60, 80)


@pytest.fixture
def labelled(tmp_path):
    """Return a folder of two pictures with masks, and one of their pixels' labels."""
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "maps").mkdir()
    square = [[10, 10, 40, 10, 40, 40, 10, 40]]
    images, objects = [], []
    for number in (1, 2):
        images.append({"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]})
        box = {"bbox": [10, 10, 30, 30], "area": 900, "segmentation": square, "iscrowd": 0}
        objects.append({"id": number, "image_id": number, "category_id": 7, **box})
        cv2.imwrite(str(tmp_path / "pictures" / f"{number}.jpg"), random.integers(0, 255, (*SIZE, 3), np.uint8))
        cv2.imwrite(str(tmp_path / "maps" / f"{number}.png"), np.full(SIZE, 90 + number, np.uint8))
    data = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "thing"}]}
    (tmp_path / "pictures.json").write_text(json.dumps(data))
    return tmp_path


@pytest.fixture
def opened(labelled, config, rgb):
    def opened(split="train", **settings):
        places = {"images": str(labelled / "pictures"), "semantic": str(labelled / "maps")}
        sizes = {"flip": 0.0, "resize": [(160, 120)], "args": {}}
        data = config(labelled / "pictures.json", **places, **{**sizes, **settings})
        return open_dataset(data, split, rgb, masks=split == "train", semantic=True)

    return opened


def test_labels_of_a_folder_go_with_their_pictures(opened, labelled):
    labels = cv2.imread(str(labelled / "maps" / "1.png"), cv2.IMREAD_GRAYSCALE)
    labels[:30, :40] = 255
    cv2.imwrite(str(labelled / "maps" / "1.png"), labels)
    dataset = opened(flip=1.0)
    first, second = (sample.target.semantic for sample in dataset)
    assert first.shape == second.shape == (120, 160)
    assert (second == 92).all()
    assert (first[:60, 80:] == 255).all()  # flipped, with the picture
    assert (first[60:] == 91).all()
    assert dataset.classes.stuff == ()


def test_pictures_that_are_only_evaluated_need_no_labels(opened, labelled):
    (labelled / "maps" / "2.png").unlink()
    assert opened("val")[1].target.semantic is None


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (None, "has no labels of 2.jpg: 2.png is missing (1 such pictures of"),
        (np.zeros((60, 79), np.uint8), "2.png is 79x60 pixels, but its picture 80x60"),
        (np.zeros((60, 80, 3), np.uint8), "2.png is a PNG, but not of grey with 8 bits"),
        (np.zeros((60, 80), np.uint16), "2.png is a PNG, but not of grey with 8 bits"),
    ],
)
def test_files_that_are_no_labels_are_named(opened, labelled: Path, pixels, message):
    path = labelled / "maps" / "2.png"
    path.unlink()
    if pixels is not None:
        cv2.imwrite(str(path), pixels)
    with pytest.raises(DetcliError, match=re.escape(message)):
        opened()[1]


def test_a_folder_that_is_not_there_is_named(opened, labelled):
    (labelled / "maps").rename(labelled / "other")
    with pytest.raises(DetcliError, match=r"data\.semantic, is no folder"):
        opened()
