"""Cityscapes' evaluation of instance masks.

Of the detections that cover an object by more than the threshold, the best one is right, the others are wrong. A
detection that covers none is left out when a larger share of it than the threshold lies on what is not evaluated:
void pixels, groups of objects (crowd regions), and objects of less than 100 pixels. Source: cityscapesscripts,
evalInstanceLevelSemanticLabeling.py; Cordts et al., "The Cityscapes Dataset", section 4.2 (arXiv 1604.01685).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from detcli.errors import DetcliError
from detcli.eval.coco import class_names, explained, percent, usable_objects, usable_results
from detcli.eval.evaluator import Evaluator, Result

Floats: TypeAlias = NDArray[np.float64]

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)
LEAST_AREA = 100
"""Smaller objects, in pixels, are not evaluated."""


def cityscapes(*, task: Literal["mask"]) -> Evaluator:
    """Return Cityscapes' evaluation."""
    assert task == "mask"
    return evaluate


@dataclass(slots=True)
class Overlaps:
    """The D detections and G objects of one class in one picture.

    scores [D]; areas [D] and object_areas [G] in pixels; shared [D,G] pixels; counts [G]: objects that are evaluated;
    left_out [D]: pixels on what is not evaluated.
    """

    scores: Floats
    areas: Floats
    object_areas: Floats
    shared: Floats
    counts: NDArray[np.bool_]
    left_out: Floats


def evaluate(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Result:
    """Measure the masks of `results` (COCO results) against `ground_truth` (a COCO dict); neither is changed.

    ``mask_AP`` is the mean from IoU 0.50 to 0.95. Images say which pixels are void (``void``, run lengths). Raises
    DetcliError where the ground truth has no images or no masks.
    """
    images, categories = ground_truth["images"], ground_truth["categories"]
    if not images:
        raise DetcliError("nothing to evaluate on: the ground truth has no images")
    notes: list[str] = []
    objects = usable_objects(ground_truth, "mask", notes)
    found = usable_results(images, categories, results, "mask", notes)
    if not any("void" in image for image in images):
        notes.append(
            "the data don't say which pixels are void, so detections there count as wrong: "
            "write them with `detcli data convert cityscapes`"
        )
    void = {image["id"]: image["void"] for image in images if "void" in image}
    objects_at, found_at = _by_place(objects), _by_place(found)
    by_class: defaultdict[int, list[Overlaps]] = defaultdict(list)
    for place in dict.fromkeys([*objects_at, *found_at]):
        by_class[place[1]].append(_overlaps(objects_at[place], found_at[place], void.get(place[0])))
    precision = np.array(
        [
            [_average_precision(by_class[category["id"]], threshold) for threshold in IOU_THRESHOLDS]
            for category in sorted(categories, key=lambda category: category["id"])
        ]
    )
    metrics = {"mask_AP": percent(precision), "mask_AP50": percent(precision[:, 0])}
    per_class = {name: percent(ap) for name, ap in zip(class_names(categories), precision, strict=True)}
    notes += explained("mask_AP", metrics, per_class, len(results), len(found))
    return Result(metrics, per_class, notes)


def _by_place(items: list[dict[str, Any]]) -> defaultdict[tuple[int, int], list[dict[str, Any]]]:
    """Return items by (image id, category id)."""
    grouped: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        grouped[item["image_id"], item["category_id"]].append(item)
    return grouped


def _overlaps(objects: list[dict[str, Any]], found: list[dict[str, Any]], void: Any) -> Overlaps:
    found_masks = [item["segmentation"] for item in found]
    object_masks = [item["segmentation"] for item in objects]
    areas, object_areas = _areas(found_masks), _areas(object_masks)
    kept = areas > 0
    shared = _shared(found_masks, object_masks, areas)[kept]
    groups = np.array([item["iscrowd"] for item in objects], np.bool_)
    small = object_areas < LEAST_AREA
    # A group that is small is left out twice, as cityscapesscripts does.
    left_out = shared @ (groups.astype(np.float64) + small)
    if void is not None:
        left_out = left_out + _shared(found_masks, [void], areas)[kept, 0]
    scores = np.array([item["score"] for item in found], np.float64)[kept]
    return Overlaps(scores, areas[kept], object_areas, shared, ~groups & ~small, left_out)


def _areas(masks: list[Any]) -> Floats:
    return np.array(mask_utils.area(masks) if masks else [], np.float64)


def _shared(found: list[Any], others: list[Any], areas: Floats) -> Floats:
    """Return the number of pixels [D,G] that each mask found has with each of the others; `areas` [D] are its own."""
    if not found or not others:
        return np.zeros((len(found), len(others)))
    # To a crowd region, COCO's overlap is the share of what was found.
    shares = np.asarray(mask_utils.iou(found, others, [1] * len(others)))
    pixels: Floats = np.rint(np.nan_to_num(shares) * areas[:, None])
    return pixels


def _average_precision(pictures: list[Overlaps], threshold: float) -> float:
    """Return the AP of one class, -1 when it has no objects that are evaluated."""
    objects = sum(int(picture.counts.sum()) for picture in pictures)
    if not objects:
        return -1.0
    right: list[float] = []
    wrong: list[float] = []
    for picture in pictures:
        unions = picture.areas[:, None] + picture.object_areas - picture.shared
        hits = picture.shared / np.maximum(unions, 1) > threshold
        for column in np.flatnonzero(picture.counts):
            *others, best = [-np.inf, *np.sort(picture.scores[hits[:, column]])]
            right += [best] if best > -np.inf else []
            wrong += others[1:]
        free = ~hits.any(axis=1) & (picture.left_out / np.maximum(picture.areas, 1) <= threshold)
        wrong += picture.scores[free].tolist()
    return _area_below_curve(np.array(right), np.array(wrong), objects)


def _area_below_curve(right: Floats, wrong: Floats, objects: int) -> float:
    """Return the area below precision over recall, by trapezoids between equal scores, from the `right` and `wrong`
    scores.
    """
    scores = np.unique(np.concatenate([right, wrong]))
    if not len(scores):
        return 0.0
    # How many score as much or more.
    true = len(right) - np.searchsorted(np.sort(right), scores)
    false = len(wrong) - np.searchsorted(np.sort(wrong), scores)
    precision = np.append(true / (true + false), 1.0)
    recall = np.append(true / objects, 0.0)
    # Each point stands for half the way to its neighbours.
    padded = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ ((padded[:-2] - padded[2:]) / 2))
