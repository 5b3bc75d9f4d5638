"""COCO figures: known cases, both backends against each other, and the notes on figures that say nothing."""

import copy

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from detcli.errors import DetcliError
from detcli.eval.coco import evaluate

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}, {"id": 17, "name": "emu"}]
BACKENDS = ["faster", "pycocotools"]


def rle(mask, compressed=True):
    encoded = mask_utils.encode(np.asfortranarray(mask))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


def rectangle(height, width, x, y, w, h):
    mask = np.zeros((height, width), np.uint8)
    mask[max(0, int(y)) : int(y + h), max(0, int(x)) : int(x + w)] = 1
    return mask


def scene(seed, images=24):
    """Return random ground truth and results: crowd, polygons, run lengths, empty images, equal scores."""
    random = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": CATEGORIES[:2]}
    results = []
    for image in range(images):
        height, width = 220 + image, 260
        truth["images"].append({"id": 7 * image, "height": height, "width": width})
        for _ in range(random.integers(1, 7) if image % 6 else 0):
            w, h = random.uniform(4, 200, 2)
            x, y = random.uniform(0, width - w), random.uniform(0, height - h)
            category = int(random.choice([3, 90]))
            crowd = random.random() < 0.15
            mask = rectangle(height, width, x, y, w, h)
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            form = random.integers(3)
            annotation = {
                "id": len(truth["annotations"]),
                "image_id": 7 * image,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": w * h * 0.9,
                "iscrowd": int(crowd),
                "segmentation": polygon if form == 0 and not crowd else rle(mask, compressed=form == 1),
            }
            truth["annotations"].append(annotation)
            for _ in range(random.integers(0, 4)):
                dx, dy, dw, dh = random.normal(0, 6, 4)
                box = [x + dx, y + dy, max(2.0, w + dw), max(2.0, h + dh)]
                result = {
                    "image_id": 7 * image,
                    "category_id": category if random.random() < 0.8 else 3,
                    "bbox": box,
                    "score": round(float(random.random()), 2),
                    "segmentation": rle(rectangle(height, width, *box)),
                }
                results.append(result)
    return truth, results


@pytest.mark.parametrize("task", ["box", "mask", "proposal"])
@pytest.mark.parametrize("seed", range(4))
def test_backends_are_equal(task, seed):
    truth, results = scene(seed)
    assert {a["iscrowd"] for a in truth["annotations"]} == {0, 1}
    faster = evaluate(truth, results, task=task)
    reference = evaluate(truth, results, task=task, backend="pycocotools")
    assert list(faster.metrics) == list(reference.metrics)
    np.testing.assert_allclose(list(faster.metrics.values()), list(reference.metrics.values()), rtol=0, atol=1e-12)
    assert list(faster.per_class) == list(reference.per_class)
    np.testing.assert_allclose(list(faster.per_class.values()), list(reference.per_class.values()), rtol=0, atol=1e-12)
    assert 5 < next(iter(faster.metrics.values())) < 95
    assert faster.notes == reference.notes == []


@pytest.mark.parametrize("task", ["box", "mask"])
def test_figures_are_those_of_summarize(task, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = scene(9)
    for number, annotation in enumerate(truth["annotations"], 1):
        annotation["id"] = number
    if task == "mask":
        results = [{k: v for k, v in result.items() if k != "bbox"} for result in copy.deepcopy(results)]
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    reference = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), {"box": "bbox", "mask": "segm"}[task])
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    if task == "mask":
        results = [{**result, "bbox": [0, 0, 1, 1]} for result in results]
    found = evaluate(truth, results, task=task)
    np.testing.assert_allclose(list(found.metrics.values()), 100 * reference.stats, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", ["box", "mask", "proposal"])
def test_nothing_is_printed_or_changed(task, backend, capfd):
    truth, results = scene(0)
    before = copy.deepcopy((truth, results))
    evaluate(truth, results, task=task, backend=backend)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")


def one_image(**annotation):
    truth = {
        "images": [{"id": 1, "height": 300, "width": 300}],
        "categories": CATEGORIES,
        "annotations": [{"id": 0, "image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 50], "area": 2500}],
    }
    truth["annotations"][0].update(annotation)
    return truth


HIT = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 50], "score": 0.5}


@pytest.mark.parametrize("backend", BACKENDS)
def test_perfect_detection(backend):
    found = evaluate(one_image(), [HIT], task="box", backend=backend)
    expected = {
        "box_AP": 100,
        "box_AP50": 100,
        "box_AP75": 100,
        "box_APs": -1,
        "box_APm": 100,
        "box_APl": -1,
        "box_AR1": 100,
        "box_AR10": 100,
        "box_AR100": 100,
        "box_ARs": -1,
        "box_ARm": 100,
        "box_ARl": -1,
    }
    assert found.metrics == pytest.approx(expected, abs=1e-9)
    assert found.per_class == pytest.approx({"cat": 100, "emu": -1, "dog": -1}, abs=1e-9)
    assert list(found.per_class) == ["cat", "emu", "dog"]
    assert found.notes == [
        "no objects of emu, dog: not in the mean",
        "no small objects (below 32x32 pixels): box_APs and box_ARs are -1",
        "no large objects (above 96x96 pixels): box_APl and box_ARl are -1",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_crowd_neither_counts_nor_punishes(backend):
    truth = one_image()
    crowd = {**truth["annotations"][0], "bbox": [100, 100, 150, 150], "area": 22500, "iscrowd": 1}
    truth["annotations"].append(crowd)
    inside = {**HIT, "bbox": [120, 120, 40, 40], "score": 0.9}
    assert evaluate(truth, [HIT, inside], task="box", backend=backend).metrics["box_AP"] == pytest.approx(100)
    crowd["iscrowd"] = 0
    assert evaluate(truth, [HIT, inside], task="box", backend=backend).metrics["box_AP"] < 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_proposals_are_measured_without_classes(backend):
    proposal = {**HIT, "category_id": 0}
    found = evaluate(one_image(category_id=90), [proposal], task="proposal", backend=backend)
    assert [found.metrics[f"prop_AR{n}"] for n in ("", 100, 300, 1000)] == [100] * 4
    late = [{**HIT, "bbox": [200, 200, 5, 5], "score": 0.9} for _ in range(150)] + [HIT]
    found = evaluate(one_image(), late, task="proposal", backend=backend)
    assert [found.metrics[f"prop_AR{n}"] for n in ("", 100, 300, 1000)] == [100, 0, 100, 100]
    assert found.per_class == {}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", ["box", "mask", "proposal"])
def test_no_detections(task, backend):
    truth, _ = scene(1)
    found = evaluate(truth, [], task=task, backend=backend)
    assert set(found.metrics.values()) == {0}
    assert found.notes == [f"{next(iter(found.metrics))} is 0: the model found nothing above the score threshold"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("results", [[], [HIT]])
def test_no_objects(results, backend):
    truth = {**one_image(), "annotations": []}
    found = evaluate(truth, results, task="box", backend=backend)
    assert set(found.metrics.values()) == {-1}
    assert found.notes == ["box_AP is -1: the ground truth has no objects"]


def test_no_images():
    with pytest.raises(DetcliError, match="no images"):
        evaluate({"images": [], "annotations": [], "categories": CATEGORIES}, [], task="box")


def test_ids_that_do_not_match():
    found = evaluate(one_image(), [{**HIT, "category_id": 1}, {**HIT, "category_id": 2}], task="box")
    assert found.metrics["box_AP"] == 0
    assert found.notes[:2] == [
        "2 results left out: the ground truth has no category id 1, 2",
        "box_AP is 0: none of the results belongs to the ground truth",
    ]
    found = evaluate(one_image(), [HIT, {**HIT, "image_id": 5}], task="box")
    assert found.metrics["box_AP"] == 100
    assert found.notes[0] == "1 result left out: the ground truth has no such image id"


def test_results_that_are_not_numbers_are_left_out():
    broken = [{**HIT, "score": float("nan")}, {**HIT, "bbox": [0, 0, float("inf"), 1], "score": 0.9}]
    found = evaluate(one_image(), [*broken, HIT], task="box")
    assert found.metrics["box_AP"] == 100
    assert found.notes[0] == "2 results left out: their score or box is not a finite number"


def test_nothing_overlaps():
    found = evaluate(one_image(), [{**HIT, "bbox": [200, 200, 50, 50]}], task="box")
    assert found.metrics["box_AP"] == 0
    assert "box_AP is 0: nothing that was found overlaps an object of its class by half or more" in found.notes


def test_area_is_computed_where_it_is_missing():
    truth = one_image(bbox=[10, 10, 100, 100], segmentation=[[10, 10, 30, 10, 30, 30, 10, 30]])
    del truth["annotations"][0]["area"]
    hit = {**HIT, "bbox": [10, 10, 100, 100], "segmentation": rle(rectangle(300, 300, 10, 10, 20, 20))}
    assert evaluate(truth, [hit], task="box").metrics["box_APl"] == 100
    assert evaluate(truth, [hit], task="mask").metrics["mask_APs"] == 100


def test_mask_ap_without_masks():
    with pytest.raises(DetcliError, match="no masks"):
        evaluate(one_image(), [], task="mask")


def test_objects_without_a_mask_are_left_out_of_mask_ap():
    truth = one_image(segmentation=[[10, 10, 60, 10, 60, 60, 10, 60]])
    truth["annotations"].append({**truth["annotations"][0], "bbox": [100, 100, 50, 50], "segmentation": []})
    hit = {**HIT, "segmentation": rle(rectangle(300, 300, 10, 10, 50, 50))}
    other = {**HIT, "segmentation": rle(rectangle(300, 300, 100, 100, 50, 50)), "score": 0.9}
    found = evaluate(truth, [hit, other], task="mask")
    assert found.metrics["mask_AP"] == 100
    assert found.notes[0] == "1 of 2 objects have no mask; mask AP leaves them out"


def test_class_names_that_occur_twice_keep_their_own_figure():
    truth = one_image()
    truth["categories"] = [{"id": 3, "name": "bat"}, {"id": 5, "name": "bat"}]
    assert evaluate(truth, [HIT], task="box").per_class == {"bat (3)": 100, "bat (5)": -1}
