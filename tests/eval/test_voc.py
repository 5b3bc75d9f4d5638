"""VOC's figures against the definition of its development kit, written out with loops and fractions."""

import copy
from fractions import Fraction

import numpy as np
import pytest

from detcli.errors import DetcliError
from detcli.eval.evaluator import measure
from detcli.eval.voc import IOU_THRESHOLDS, evaluate

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 12, "name": "emu"}]


def kit_overlap(found, truth):
    """Return the overlap of boxes as VOC has them: xmin, ymin, xmax and ymax are the first and last pixels, from 1."""
    left, top = max(found[0], truth[0]), max(found[1], truth[1])
    right, bottom = min(found[2], truth[2]), min(found[3], truth[3])
    if right - left + 1 <= 0 or bottom - top + 1 <= 0:
        return Fraction(0)
    shared = (right - left + 1) * (bottom - top + 1)
    union = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (found, truth)) - shared
    return Fraction(shared) / Fraction(union)


def kit_box(xywh):
    x, y, w, h = map(Fraction, xywh)
    return x + 1, y + 1, x + w, y + h


def kit_average_precision(truth, results, category, threshold, interpolation):
    """Return AP as VOCevaldet.m computes it; None for a class without objects that count."""
    objects = [item for item in truth["annotations"] if item["category_id"] == category]
    count = sum(not item["iscrowd"] for item in objects)
    if not count:
        return None
    claimed, right, wrong = set(), [], []
    for result in sorted((r for r in results if r["category_id"] == category), key=lambda r: -r["score"]):
        best, nearest = Fraction(-1), None
        for item in objects:
            if item["image_id"] == result["image_id"]:
                overlap = kit_overlap(kit_box(result["bbox"]), kit_box(item["bbox"]))
                if overlap > best:
                    best, nearest = overlap, item
        true = false = 0
        if best >= threshold:
            if not nearest["iscrowd"]:
                true, false = (0, 1) if nearest["id"] in claimed else (1, 0)
                claimed.add(nearest["id"])
        else:
            false = 1
        right.append(true)
        wrong.append(false)
    recalls, precisions, trues, falses = [], [], 0, 0
    for true, false in zip(right, wrong, strict=True):
        trues, falses = trues + true, falses + false
        recalls.append(Fraction(trues, count))
        precisions.append(Fraction(trues, trues + falses) if trues + falses else Fraction(0))
    if interpolation == "11_points":
        levels = [Fraction(level, 10) for level in range(11)]
        reached = [[p for p, r in zip(precisions, recalls, strict=True) if r >= level] for level in levels]
        return sum((max(values, default=Fraction(0)) for values in reached), Fraction(0)) / 11
    recalls, precisions = [Fraction(0), *recalls, Fraction(1)], [Fraction(0), *precisions, Fraction(0)]
    for position in range(len(precisions) - 2, -1, -1):
        precisions[position] = max(precisions[position], precisions[position + 1])
    steps = [position for position in range(1, len(recalls)) if recalls[position] != recalls[position - 1]]
    return sum(((recalls[i] - recalls[i - 1]) * precisions[i] for i in steps), Fraction(0))


def scene(seed, images=25):
    """Return random ground truth and results in whole pixels: difficult objects, equal scores, several on one."""
    random = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": CATEGORIES[:2]}
    results = []
    for image in range(images):
        truth["images"].append({"id": 3 * image, "height": 200, "width": 300})
        for _ in range(random.integers(0, 6)):
            box = [*random.integers(0, 150, 2).tolist(), *random.integers(8, 140, 2).tolist()]
            category = int(random.choice([3, 7]))
            difficult = int(random.random() < 0.25)
            item = {"id": len(truth["annotations"]) + 1, "image_id": 3 * image, "category_id": category}
            truth["annotations"].append({**item, "bbox": box, "area": box[2] * box[3], "iscrowd": difficult})
            for _ in range(random.integers(0, 4)):
                near = np.maximum(np.array(box) + random.integers(-9, 10, 4), [0, 0, 2, 2]).tolist()
                kind = category if random.random() < 0.8 else 3
                result = {"image_id": 3 * image, "category_id": kind, "bbox": near}
                results.append({**result, "score": round(float(random.random()), 2)})
    return truth, results


@pytest.mark.parametrize("interpolation", ["area", "11_points"])
@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_the_development_kit(seed, interpolation):
    truth, results = scene(seed)
    assert {item["iscrowd"] for item in truth["annotations"]} == {0, 1}
    before = copy.deepcopy((truth, results))
    found = evaluate(truth, results, interpolation=interpolation)
    assert (truth, results) == before
    expected = {
        (threshold, category): kit_average_precision(
            truth, results, category, Fraction(50 + 5 * threshold, 100), interpolation
        )
        for threshold in range(len(IOU_THRESHOLDS))
        for category in (3, 7)
    }
    mean = float(100 * sum(expected.values()) / len(expected))
    assert found.metrics["box_AP"] == pytest.approx(mean, abs=1e-9)
    for name, threshold in (("box_AP50", 0), ("box_AP75", 5)):
        value = 100 * (expected[threshold, 3] + expected[threshold, 7]) / 2
        assert found.metrics[name] == pytest.approx(float(value), abs=1e-9)
    assert 20 < found.metrics["box_AP50"] < 95
    classes = {"dog": float(100 * expected[0, 3]), "cat": float(100 * expected[0, 7])}
    assert found.per_class == pytest.approx(classes, abs=1e-9)
    assert list(found.per_class) == ["dog", "cat"]


def one_image(*boxes, difficult=()):
    objects = [
        {"id": n, "image_id": 1, "category_id": 3, "bbox": box, "area": 1, "iscrowd": int(n in difficult)}
        for n, box in enumerate(boxes, 1)
    ]
    return {"images": [{"id": 1, "height": 99, "width": 99}], "categories": CATEGORIES[1:2], "annotations": objects}


def result(box, score):
    return {"image_id": 1, "category_id": 3, "bbox": box, "score": score}


def test_a_second_detection_of_an_object_is_wrong_and_one_of_a_difficult_object_is_nothing():
    truth = one_image([0, 0, 20, 20], [50, 50, 20, 20], difficult=(2,))
    hit, again = result([0, 0, 20, 20], 0.9), result([0, 1, 20, 20], 0.8)
    difficult = result([50, 50, 20, 20], 0.95)
    assert evaluate(truth, [difficult, hit, again]).metrics["box_AP50"] == pytest.approx(100)
    assert evaluate(truth, [difficult, {**again, "score": 0.99}, hit]).metrics["box_AP75"] == pytest.approx(100)
    other = one_image([0, 0, 20, 20], [50, 50, 20, 20])
    # The second one on the object comes before the other object's: precision is 2/3 where recall is whole.
    late = {**difficult, "score": 0.1}
    assert evaluate(other, [hit, again, late]).metrics["box_AP50"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    eleven = evaluate(other, [hit, again, late], interpolation="11_points").metrics["box_AP50"]
    assert eleven == pytest.approx(100 * (6 * 1 + 5 * 2 / 3) / 11)


def test_an_overlap_of_the_threshold_is_enough():
    truth = one_image([0, 0, 20, 20])
    assert evaluate(truth, [result([0, 0, 20, 10], 0.5)]).metrics["box_AP50"] == pytest.approx(100)
    assert evaluate(truth, [result([0, 0, 20, 9.99], 0.5)]).metrics["box_AP50"] == 0


def test_classes_without_objects_are_not_in_the_mean():
    truth = {**one_image([0, 0, 20, 20]), "categories": CATEGORIES}
    found = evaluate(truth, [result([0, 0, 20, 20], 0.5)])
    assert found.metrics["box_AP"] == pytest.approx(100)
    assert found.per_class == pytest.approx({"dog": 100, "cat": -1, "emu": -1})
    assert "no objects of cat, emu: not in the mean" in found.notes
    nothing = evaluate(one_image([0, 0, 9, 9], difficult=(1,)), [])
    assert set(nothing.metrics.values()) == {-1}


def test_without_images_there_is_nothing_to_measure():
    with pytest.raises(DetcliError, match="no images"):
        evaluate({"images": [], "categories": CATEGORIES, "annotations": []}, [])


def test_names_of_evaluators():
    truth, results = scene(7)
    for name, interpolation in (("voc", "area"), ("voc07", "11_points")):
        expected = evaluate(truth, results, interpolation=interpolation)
        assert measure(name, "box", truth, results).metrics == expected.metrics
