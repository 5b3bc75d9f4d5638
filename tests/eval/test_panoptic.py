"""Panoptic quality: cases made by hand, and random ones against torchmetrics."""

import copy

import numpy as np
import pytest
import torch
from torchmetrics.detection import PanopticQuality

from detcli.data.panoptic import encode_ids
from detcli.errors import DetcliError
from detcli.eval.evaluator import measure
from detcli.eval.panoptic import evaluate

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
    {"id": 10, "name": "road", "isthing": 0},
]


def cut(ids, categories, crowd=(), image_id=1):
    """Return an annotation or a result from ids [H,W] and {id: category id}."""
    infos = [
        {"id": number, "category_id": category, "iscrowd": int(number in crowd)}
        for number, category in categories.items()
    ]
    return {"image_id": image_id, "segments_info": infos, "png": encode_ids(np.asarray(ids))}


def truth_of(*annotations, size=(10, 10)):
    images = [{"id": item["image_id"], "height": size[0], "width": size[1]} for item in annotations]
    return {"images": images, "annotations": list(annotations), "categories": CATEGORIES}


def strips(*widths):
    """Return ids [10,10] of upright strips from the left, numbered from 1, 0 in what is left."""
    ids = np.zeros((10, 10), np.int64)
    for number, (start, end) in enumerate(zip(np.cumsum([0, *widths]), np.cumsum(widths), strict=False), 1):
        ids[:, start:end] = number
    return ids


def test_all_right():
    ids = strips(4, 6)
    found = measure("panoptic", "panoptic", truth_of(cut(ids, {1: 1, 2: 9})), [cut(ids, {1: 1, 2: 9})])
    assert set(found.metrics.values()) == {100.0}
    assert found.per_class == {"cat": 100.0, "dog": -1.0, "sky": 100.0, "road": -1.0}
    assert found.notes == []


def test_quality_is_that_of_segmentation_times_that_of_recognition():
    truth = truth_of(cut(strips(6, 4), {1: 1, 2: 1}))
    # The first cat is found with an IoU of 5/6; of the second a quarter, which is wrong, and it is missed.
    found = evaluate(truth, [cut(strips(5, 2, 1), {1: 1, 3: 1})])
    assert found.metrics["SQ"] == pytest.approx(100 * 5 / 6)
    assert found.metrics["RQ"] == pytest.approx(50)
    assert found.metrics["PQ"] == found.metrics["things_PQ"] == pytest.approx(100 * 5 / 12)
    assert found.metrics["stuff_PQ"] == -1


def test_half_is_not_enough():
    found = evaluate(truth_of(cut(strips(10), {1: 9})), [cut(strips(5), {1: 9})])
    assert found.metrics["PQ"] == 0
    assert found.metrics["stuff_RQ"] == 0


def test_a_category_that_was_found_and_is_not_there_counts():
    ids = strips(5, 5)
    found = evaluate(truth_of(cut(ids, {1: 1, 2: 9})), [cut(ids, {1: 5, 2: 9})])
    assert found.per_class == {"cat": 0.0, "dog": 0.0, "sky": 100.0, "road": -1.0}
    assert found.metrics["PQ"] == pytest.approx(100 / 3)


def test_pixels_without_a_label_do_not_count_against_a_segment():
    truth = truth_of(cut(strips(3), {1: 1}))
    assert evaluate(truth, [cut(strips(10), {1: 1})]).metrics["PQ"] == 100
    # The second one is wrong: not more than a half of it lies there.
    wrong = np.zeros((10, 10), np.int64)
    wrong[:, 2:4] = 7
    assert evaluate(truth, [cut(wrong, {7: 5})]).per_class["dog"] == 0
    wrong[:, 4] = 7
    assert evaluate(truth, [cut(wrong, {7: 5})]).per_class["dog"] == -1


def test_crowd_is_neither_missed_nor_makes_its_own_category_wrong():
    truth = truth_of(cut(strips(6, 4), {1: 1, 2: 9}, crowd=[1]))
    assert evaluate(truth, []).per_class == {"cat": -1.0, "dog": -1.0, "sky": 0.0, "road": -1.0}
    found = evaluate(truth, [cut(strips(3, 3, 4), {1: 1, 2: 5, 3: 9})])
    assert found.per_class == {"cat": -1.0, "dog": 0.0, "sky": 100.0, "road": -1.0}


def test_nothing_found():
    found = evaluate(truth_of(cut(strips(10), {1: 9})), [])
    assert found.metrics["PQ"] == 0
    assert found.notes == ["PQ is 0: the model found no segments"]
    assert evaluate(truth_of(cut(strips(10), {})), []).metrics["PQ"] == -1


def test_categories_that_the_ground_truth_has_not_are_left_out():
    found = evaluate(truth_of(cut(strips(5, 5), {1: 1, 2: 9})), [cut(strips(5, 5), {1: 1, 2: 77})])
    assert found.per_class["cat"] == 100
    assert found.notes == ["1 segments left out: the ground truth has not their categories"]


def test_a_map_of_another_size_is_an_error():
    with pytest.raises(DetcliError, match=r"the result of image 1 is 5x10 pixels, but its picture 10x10"):
        evaluate(truth_of(cut(strips(10), {1: 9})), [cut(strips(10)[:, :5], {1: 9})])


def blobs(random, size=(40, 50)):
    """Return random ids and categories: rectangles over each other, some of which have no label."""
    ids = np.zeros(size, np.int64)
    for number in range(1, 9):
        top, left = random.integers(0, size[0] - 8), random.integers(0, size[1] - 8)
        ids[top : top + random.integers(6, 25), left : left + random.integers(6, 25)] = number * 1000
    kept = [int(number) for number in np.unique(ids) if number and random.random() < 0.85]
    ids[~np.isin(ids, kept)] = 0
    labels = [1, 1, 5, 5, 9, 10]
    random.shuffle(labels)  # at most one segment of each kind of stuff
    categories = {number: labels[place] for place, number in enumerate(kept[:6])}
    ids[~np.isin(ids, list(categories))] = 0
    return ids, categories


def distorted(random, ids, categories):
    """Return something like `ids` and `categories`, in which every pixel has a segment.

    Without one, torchmetrics leaves a pixel out of the union, which the paper and COCO's own code don't.
    """
    shifted = np.roll(ids, random.integers(-2, 3, 2), (0, 1))
    found = {number: category if random.random() < 0.8 else 5 for number, category in categories.items()}
    found = {number: category for number, category in found.items() if (shifted == number).any()}
    road = next((number for number, category in found.items() if category == 10), 9999)
    shifted[(shifted == 0) | (random.random(shifted.shape) < 0.05)] = road
    return shifted, found | {road: 10}


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_torchmetrics(seed):
    random = np.random.default_rng(seed)
    metric = PanopticQuality(
        things={1, 5}, stuffs={9, 10}, allow_unknown_preds_category=True, return_sq_and_rq=True, return_per_class=True
    )

    def as_pairs(ids, categories):
        # Pixels without a label have a category that is neither a thing nor stuff.
        lookup = np.vectorize(lambda number: categories.get(int(number), 1000))
        return torch.from_numpy(np.stack([lookup(ids), ids], axis=-1))[None]

    annotations, results = [], []
    for image_id in range(1, 7):
        ids, categories = blobs(random)
        shifted, found = distorted(random, ids, categories)
        metric.update(as_pairs(shifted, found), as_pairs(ids, categories))
        annotations.append(cut(ids, categories, image_id=image_id))
        results.append(cut(shifted, found, image_id=image_id))
    ours = evaluate(truth_of(*annotations, size=(40, 50)), results)
    theirs = 100 * metric.compute().numpy()  # [classes, (PQ, SQ, RQ)], things and then stuff by number
    # torchmetrics computes IoUs in float32.
    np.testing.assert_allclose(list(ours.per_class.values()), theirs[:, 0], rtol=1e-6)
    for place, name in enumerate(["PQ", "SQ", "RQ"]):
        np.testing.assert_allclose(ours.metrics[name], theirs[:, place].mean(), rtol=1e-6)
        np.testing.assert_allclose(ours.metrics[f"things_{name}"], theirs[:2, place].mean(), rtol=1e-6)
    assert 10 < ours.metrics["PQ"] < 90


def test_nothing_is_changed():
    random = np.random.default_rng(0)
    ids, categories = blobs(random)
    truth, results = truth_of(cut(ids, categories), size=(40, 50)), [cut(*distorted(random, ids, categories))]
    before = copy.deepcopy((truth, results))
    evaluate(truth, results)
    assert (truth, results) == before
