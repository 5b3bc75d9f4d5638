"""Cityscapes: its folders as COCO dicts, and its figures against those that cityscapesscripts gives for the folders."""

import types

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from detcli.config import DataConfig, InputConfig
from detcli.data import open_dataset
from detcli.data.cityscapes import cityscapes_to_coco, is_cityscapes
from detcli.data.export import convert
from detcli.errors import DetcliError, UsageError
from detcli.eval.cityscapes import evaluate

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 96, 160
CLASSES = {24: "person", 26: "car", 33: "bicycle"}


def draw(folder, split, city, number, labels):
    """Write a picture and the labels of its pixels."""
    name = f"{city}_{number:06d}_000019"
    for kind, ending, pixels in (
        ("gtFine", "gtFine_instanceIds", labels.astype(np.uint16)),
        ("leftImg8bit", "leftImg8bit", np.full((*labels.shape, 3), 90, np.uint8)),
    ):
        path = folder / kind / split / city / f"{name}_{ending}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)
    return name


def random_labels(random):
    """Return labels with void, a background, objects of all sizes, groups, and trailers, which are not evaluated."""
    labels = np.full((HEIGHT, WIDTH), 7)
    labels[:, :12] = 3
    for value in (26, 24, 30001, 30, *(1000 * key + n for key in CLASSES for n in range(random.integers(0, 4)))):
        height, width = random.integers(4, 45, 2)
        top, left = random.integers(0, HEIGHT - 4), random.integers(0, WIDTH - 4)
        labels[top : top + height, left : left + width] = value
    return labels


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(3)
    for split, city in (("train", "aachen"), ("val", "munster"), ("val", "lindau")):
        for number in range(6):
            draw(tmp_path / "cityscapes", split, city, number, random_labels(random))
    return tmp_path / "cityscapes"


def detections(data, seed):
    """Return results near the objects, groups, void and elsewhere, some of them equal in score, one empty."""
    random = np.random.default_rng(seed)
    results = []
    for image in data["images"]:
        own = [item for item in data["annotations"] if item["image_id"] == image["id"]]
        for _ in range(14):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            category = int(random.choice(list(CLASSES)))
            if own and random.random() < 0.75:
                near = own[random.integers(len(own))]
                moved = mask_utils.decode(near["segmentation"])
                mask = np.roll(moved, random.integers(-3, 4, 2), (0, 1))
                category = near["category_id"] if random.random() < 0.9 else category
            else:
                top, left = random.integers(0, 80), random.integers(0, 140)
                mask[top : top + random.integers(2, 40), left : left + random.integers(2, 40)] = 1
            results.append(found(image["id"], category, mask, round(float(random.random()), 1)))
    return [*results, found(data["images"][0]["id"], 26, np.zeros((HEIGHT, WIDTH), np.uint8), 0.9)]


def found(image_id, category, mask, score):
    encoded = mask_utils.encode(np.asfortranarray(mask))
    segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    box = mask_utils.toBbox(encoded).tolist()
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score, "segmentation": segmentation}


class OldNumpy(types.ModuleType):
    """NumPy with the name that cityscapesscripts still uses, for its module alone."""

    in1d = staticmethod(np.isin)

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture
def cityscapesscripts(tmp_path, monkeypatch):
    """Return cityscapesscripts' evaluation: (folder, COCO dict, results) to its averages."""
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as module

    monkeypatch.setattr(module, "np", OldNumpy("numpy"))
    # It writes what it found on the way, which fails with the integers of NumPy 2.
    monkeypatch.setattr(module, "writeDict2JSON", lambda content, path: None)

    def measured(folder, data, results):
        place = tmp_path / "results"
        place.mkdir()
        labels, texts = [], []
        for image in data["images"]:
            city, name = image["file_name"].split("/")[2:]
            stem = name.removesuffix("_leftImg8bit.png")
            labels.append(str(folder / "gtFine" / "val" / city / f"{stem}_gtFine_instanceIds.png"))
            lines = []
            for number, item in enumerate(item for item in results if item["image_id"] == image["id"]):
                mask = mask_utils.decode(item["segmentation"])
                cv2.imwrite(str(place / f"{stem}_{number}.png"), 255 * mask)
                lines.append(f"{stem}_{number}.png {item['category_id']} {item['score']}\n")
            texts.append(place / f"{stem}.txt")
            texts[-1].write_text("".join(lines))
        module.args.predictionPath = str(place)
        module.args.gtInstancesFile = str(place / "instances.json")
        module.args.JSONOutput, module.args.quiet = False, True
        return module.evaluateImgLists([str(path) for path in texts], labels, module.args)["averages"]

    return measured


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_cityscapesscripts(folder, seed, cityscapesscripts):
    data = cityscapes_to_coco(folder, "val")
    results = detections(data, seed)
    reference = cityscapesscripts(folder, data, results)
    mine = evaluate(data, results)
    assert mine.metrics["mask_AP"] == pytest.approx(100 * reference["allAp"], abs=1e-9)
    assert mine.metrics["mask_AP50"] == pytest.approx(100 * reference["allAp50%"], abs=1e-9)
    assert 5 < mine.metrics["mask_AP"] < 95
    for name, classes in reference["classes"].items():
        expected = -1 if np.isnan(classes["ap"]) else 100 * classes["ap"]
        assert mine.per_class[name] == pytest.approx(expected, abs=1e-9), name
    assert {name for name, value in mine.per_class.items() if value >= 0} == set(CLASSES.values())


def test_what_is_not_evaluated_is_left_out():
    image = {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}
    categories = [{"id": 26, "name": "car"}]

    def rectangle(left, width, height=30):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[10 : 10 + height, left : left + width] = 1
        return mask

    def truth(*objects, void=None):
        annotations = [
            {**found(1, 26, mask, 1.0), "id": number, "iscrowd": int(group)}
            for number, (mask, group) in enumerate(objects, 1)
        ]
        images = [{**image, "void": found(1, 26, void, 1)["segmentation"]} if void is not None else image]
        return {"images": images, "categories": categories, "annotations": annotations}

    nothing = np.zeros((HEIGHT, WIDTH), np.uint8)
    hit, miss = found(1, 26, rectangle(10, 30), 0.5), found(1, 26, rectangle(80, 30), 0.9)
    car = (rectangle(10, 30), False)
    for data, expected in (
        (truth(car, void=nothing), 25),  # a wrong one that scores more: precision 1/2 at recall 1, 0 at recall 0
        (truth(car, void=rectangle(80, 30)), 100),
        (truth(car, (rectangle(80, 60), True), void=nothing), 100),
        (truth(car, (rectangle(80, 30, 3), False), void=nothing), 25),  # too small an object, and too small a share
    ):
        assert evaluate(data, [hit, miss]).metrics["mask_AP50"] == pytest.approx(expected)
    assert evaluate(truth(car, void=nothing), []).metrics["mask_AP"] == 0
    assert evaluate(truth((rectangle(1, 5, 5), False), void=nothing), [hit]).metrics["mask_AP"] == -1
    notes = evaluate(truth(car), [hit]).notes
    assert notes[0].endswith("write them with `detcli data convert cityscapes`")


def test_objects_have_the_ids_and_classes_of_cityscapes(tmp_path):
    labels = np.full((HEIGHT, WIDTH), 7)
    labels[10:30, 20:50], labels[40:60, 20:50], labels[70:90, 60:80] = 26001, 26, 33000
    labels[:5], labels[90:, 100:] = 3, 30002
    draw(tmp_path, "train", "ulm", 4, labels)
    data = cityscapes_to_coco(tmp_path, "train")
    name = "leftImg8bit/train/ulm/ulm_000004_000019_leftImg8bit.png"
    assert [item["file_name"] for item in data["images"]] == [name]
    names = {item["id"]: item["name"] for item in data["categories"]}
    assert {24: "person", 25: "rider", 26: "car", 33: "bicycle"}.items() <= names.items()
    assert {(item["category_id"], item["iscrowd"], *item["bbox"]) for item in data["annotations"]} == {
        (26, 0, 20, 10, 30, 20),
        (26, 1, 20, 40, 30, 20),
        (33, 0, 60, 70, 20, 20),
    }
    assert [item["area"] for item in data["annotations"]] == [600, 600, 400]
    np.testing.assert_array_equal(mask_utils.decode(data["images"][0]["void"]), labels == 3)


def test_the_converted_folder_is_data(folder, tmp_path):
    convert("cityscapes", folder, tmp_path / "coco", "coco", lambda done, total: None)
    for split, count in (("train", 6), ("val", 12)):
        data = cityscapes_to_coco(folder, split)
        config = DataConfig(source=str(tmp_path / "coco"), keep_empty=True)
        dataset = open_dataset(config, split, InputConfig(), masks=True)
        truth = dataset.ground_truth()
        assert len(truth["images"]) == count
        assert truth["images"] == data["images"]
        assert truth["annotations"] == data["annotations"]
        assert dataset[0].image.shape[0] == 3
    results = detections(data, 5)
    assert evaluate(truth, results).metrics == evaluate(data, results).metrics


def test_the_downloaded_folder_is_named_with_the_command(folder, tmp_path):
    assert is_cityscapes(folder)
    with pytest.raises(UsageError, match=r"`detcli data convert cityscapes .* OUT`"):
        open_dataset(DataConfig(source=str(folder)), "train", InputConfig())
    with pytest.raises(DetcliError, match=r"has no gtFine/train/CITY"):
        cityscapes_to_coco(tmp_path, "train")
