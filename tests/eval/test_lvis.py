"""LVIS figures against lvis-api's own evaluation, on random federated data."""

import copy
import types

import numpy as np
import pytest
from pycocotools import mask as mask_utils

import detcli.eval.lvis
from detcli.errors import DetcliError
from detcli.eval.lvis import evaluate

HEIGHT, WIDTH = 240, 300
FREQUENCY = "rrccff"


class OldNumpy(types.ModuleType):
    """NumPy with the names that lvis-api still uses, for its module alone."""

    float = float

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture(scope="module")
def lvis_api():
    """Return lvis-api's evaluation: (ground truth, results, IoU type) to its figures in 0..1."""
    import lvis.eval as module
    from lvis.lvis import LVIS
    from lvis.results import LVISResults

    own, module.np = module.np, OldNumpy("numpy")

    def measured(truth, results, iou_type):
        dataset = LVIS.__new__(LVIS)
        dataset.logger = module.logging.getLogger("lvis")
        dataset.dataset = copy.deepcopy(truth)
        dataset._create_index()
        evaluation = module.LVISEval(dataset, LVISResults(dataset, copy.deepcopy(results)), iou_type)
        evaluation.run()
        return evaluation

    yield measured
    module.np = own


def rectangle(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[max(0, round(y)) : round(y + h), max(0, round(x)) : round(x + w)] = 1
    encoded = mask_utils.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def scene(seed, images=30, detections=12):
    """Return random ground truth and results: categories searched for or not, in full or not, and equal scores."""
    random = np.random.default_rng(seed)
    categories = [{"id": 3 * n + 2, "name": f"thing {n}", "frequency": f} for n, f in enumerate(FREQUENCY)]
    ids = [category["id"] for category in categories]
    truth = {"images": [], "annotations": [], "categories": categories}
    results = []
    for image in range(images):
        present = random.choice(ids, random.integers(0, 4), replace=False).tolist()
        others = [key for key in ids if key not in present]
        absent = random.choice(others, random.integers(0, len(others)), replace=False).tolist()
        partial = [key for key in present if random.random() < 0.3]
        item = {"id": 5 * image, "height": HEIGHT, "width": WIDTH}
        truth["images"].append({**item, "neg_category_ids": absent, "not_exhaustive_category_ids": partial})
        for category in present:
            for _ in range(random.integers(1, 4)):
                w, h = random.uniform(4, 160, 2)
                x, y = random.uniform(0, WIDTH - w), random.uniform(0, HEIGHT - h)
                segmentation = rectangle(x, y, w, h)
                area = float(mask_utils.area(segmentation))
                truth["annotations"].append(
                    {
                        "id": len(truth["annotations"]) + 1,
                        "image_id": 5 * image,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": area,
                        "iscrowd": 0,
                        "segmentation": segmentation,
                    }
                )
        for _ in range(detections):
            own = [item for item in truth["annotations"] if item["image_id"] == 5 * image]
            if own and random.random() < 0.7:
                near = own[random.integers(len(own))]
                box = (np.array(near["bbox"]) + random.normal(0, 5, 4)).tolist()
                category = near["category_id"] if random.random() < 0.8 else int(random.choice(ids))
            else:
                box = [*random.uniform(0, 150, 2).tolist(), *random.uniform(5, 90, 2).tolist()]
                category = int(random.choice(ids))
            box = [max(box[0], 0), max(box[1], 0), max(box[2], 2), max(box[3], 2)]
            results.append(
                {
                    "image_id": 5 * image,
                    "category_id": category,
                    "bbox": box,
                    "score": round(float(random.random()), 2),
                    "segmentation": rectangle(*box),
                }
            )
    return truth, results


FIGURES = {
    **{name: name for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")},
    **{"AR300": "AR@300", "ARs": "ARs@300", "ARm": "ARm@300", "ARl": "ARl@300"},
}


@pytest.mark.parametrize("task", ["box", "mask"])
@pytest.mark.parametrize(("seed", "at_once"), [(0, 50), (1, 50), (2, 50), (3, 4), (4, 1), (5, 3)])
def test_figures_are_those_of_lvis_api(task, seed, at_once, lvis_api, monkeypatch):
    monkeypatch.setattr(detcli.eval.lvis, "AT_ONCE", at_once)
    truth, results = scene(seed)
    before = copy.deepcopy((truth, results))
    found = evaluate(truth, results, task=task)
    assert (truth, results) == before
    # Results with boxes have the areas of those in lvis-api, results of masks alone those of the masks.
    given = [{k: v for k, v in item.items() if k != "bbox"} for item in results] if task == "mask" else results
    reference = lvis_api(truth, given, {"box": "bbox", "mask": "segm"}[task])
    assert set(found.metrics) == {f"{task}_{name}" for name in FIGURES}
    for ours, theirs in FIGURES.items():
        value = reference.results[theirs]
        assert found.metrics[f"{task}_{ours}"] == pytest.approx(100 * value if value > -1 else -1, abs=1e-9), ours
    assert 5 < found.metrics[f"{task}_AP"] < 95
    for position, name in enumerate(f"thing {n}" for n in range(len(FREQUENCY))):
        values = reference.eval["precision"][:, :, position, 0]
        assert found.per_class[name] == pytest.approx(100 * values.mean(), abs=1e-9)


def test_only_the_best_300_of_a_picture_count(lvis_api):
    truth, results = scene(20, images=3, detections=420)
    found = evaluate(truth, results, task="box")
    assert found.metrics["box_AP"] == pytest.approx(100 * lvis_api(truth, results, "bbox").results["AP"], abs=1e-9)
    best = sorted((item for item in results if item["image_id"] == 0), key=lambda item: -item["score"])[:300]
    others = [item for item in results if item["image_id"] != 0]
    assert evaluate(truth, best + others, task="box").metrics == found.metrics


def one_image(**image):
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [
            {"id": 1, "name": "cat", "frequency": "f"},
            {"id": 2, "name": "axolotl", "frequency": "r"},
        ],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 1600}],
    }
    truth["images"][0].update(image)
    return truth


def found(category, x, score):
    return {"image_id": 1, "category_id": category, "bbox": [x, 10, 40, 40], "score": score}


def test_the_federated_rules():
    hit, miss = found(1, 10, 0.5), found(1, 55, 0.9)
    assert evaluate(one_image(), [hit, miss], task="box").metrics["box_AP50"] == pytest.approx(50)
    partial = one_image(not_exhaustive_category_ids=[1])
    assert evaluate(partial, [hit, miss], task="box").metrics["box_AP50"] == pytest.approx(100)
    assert evaluate(one_image(), [hit, found(2, 55, 0.9)], task="box").metrics["box_APf"] == pytest.approx(100)


def test_notes_name_what_has_no_objects():
    notes = evaluate(one_image(), [found(1, 10, 0.5)], task="box").notes
    assert "no objects of rare categories (in up to 10 pictures): box_APr is -1" in notes


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids", "frequency"])
def test_other_data_are_an_error(key):
    truth = one_image()
    for item in (*truth["images"], *truth["categories"]):
        item.pop(key, None)
    with pytest.raises(DetcliError, match=rf"they don't say '{key}'.*--evaluator faster"):
        evaluate(truth, [found(1, 10, 0.5)], task="box")
