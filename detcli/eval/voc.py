"""PASCAL VOC evaluation of boxes: the average precision of its development kit.

Each detection, best score first, is held to the object of its class and picture that it overlaps most. It is right
when the overlap is large enough and no better detection has that object, wrong otherwise; where that object is marked
as difficult, the detection is left out. Difficult objects are what COCO calls crowd regions. Source: Everingham et
al., "The PASCAL Visual Object Classes Challenge", section 4.2, and VOCevaldet.m of the development kit.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from detcli.errors import DetcliError
from detcli.eval.coco import class_names, explained, percent, usable_objects, usable_results
from detcli.eval.evaluator import Evaluator, Result

Floats: TypeAlias = NDArray[np.float64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.arange(11) / 10
"""Where the challenges of up to 2009 read the precision."""


def voc(*, task: Literal["box"], interpolation: Literal["area", "11_points"] = "area") -> Evaluator:
    """Return VOC's evaluation: AP is the area below the curve, as since 2010, or the mean at 11 recalls, as before."""
    assert task == "box"
    return partial(evaluate, interpolation=interpolation)


def evaluate(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    interpolation: Literal["area", "11_points"] = "area",
) -> Result:
    """Measure `results` (COCO results) against `ground_truth` (a COCO dict); neither is changed.

    ``box_AP50`` is VOC's own figure; ``box_AP75`` and ``box_AP``, the mean from IoU 0.50 to 0.95, are what it would
    be with other overlaps. Raises DetcliError where the ground truth has no images.
    """
    images, categories = ground_truth["images"], ground_truth["categories"]
    if not images:
        raise DetcliError("nothing to evaluate on: the ground truth has no images")
    notes: list[str] = []
    objects = usable_objects(ground_truth, "box", notes)
    found = usable_results(images, categories, results, "box", notes)
    objects_of, found_of = _by_category(objects), _by_category(found)
    precision = np.array(
        [
            _average_precisions(objects_of[category["id"]], found_of[category["id"]], interpolation)
            for category in sorted(categories, key=lambda category: category["id"])
        ]
    )
    metrics = {
        "box_AP": percent(precision),
        "box_AP50": percent(precision[:, 0]),
        "box_AP75": percent(precision[:, 5]),
    }
    per_class = {name: percent(ap) for name, ap in zip(class_names(categories), precision[:, :1], strict=True)}
    notes += explained("box_AP50", metrics, per_class, len(results), len(found))
    if metrics["box_AP"] != -1:
        notes.append("the AP of each class is that at IoU 0.5, as VOC's")
    return Result(metrics, per_class, notes)


def _by_category(items: list[dict[str, Any]]) -> defaultdict[int, list[dict[str, Any]]]:
    grouped: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        grouped[item["category_id"]].append(item)
    return grouped


def _average_precisions(
    objects: list[dict[str, Any]], found: list[dict[str, Any]], interpolation: Literal["area", "11_points"]
) -> Floats:
    """Return the AP of one class at each of `IOU_THRESHOLDS`, all of them -1 when it has no objects that count."""
    difficult = np.array([item["iscrowd"] for item in objects], np.bool_)
    count = len(objects) - int(difficult.sum())
    if not count:
        return np.full(len(IOU_THRESHOLDS), -1.0)
    found = [found[position] for position in np.argsort([-item["score"] for item in found], kind="stable")]
    overlap, nearest = _nearest_objects(objects, found)
    averages = []
    for threshold in IOU_THRESHOLDS:
        hits = overlap >= threshold
        left_out = hits & difficult[nearest]
        right = np.zeros(len(found), np.bool_)
        candidates = np.flatnonzero(hits & ~left_out)
        right[candidates[np.unique(nearest[candidates], return_index=True)[1]]] = True
        averages.append(_average_precision(right[~left_out], count, interpolation))
    return np.array(averages)


def _nearest_objects(objects: list[dict[str, Any]], found: list[dict[str, Any]]) -> tuple[Floats, NDArray[np.int64]]:
    """Return the largest overlap of each detection with an object of its picture, and which one that is."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for position, item in enumerate(objects):
        places[item["image_id"]].append(position)
    xyxy = np.array([item["bbox"] for item in objects], np.float64)
    xyxy[:, 2:] += xyxy[:, :2]
    overlap, nearest = np.zeros(len(found)), np.zeros(len(found), np.int64)
    for position, item in enumerate(found):
        if own := places[item["image_id"]]:
            overlaps = _overlaps(item["bbox"], xyxy[own])
            best = int(overlaps.argmax())
            overlap[position], nearest[position] = overlaps[best], own[best]
    return overlap, nearest


def _overlaps(xywh: list[float], xyxy: Floats) -> Floats:
    """Return the IoU of one box with others."""
    left, top, width, height = xywh
    right, bottom = left + width, top + height
    shared_width = np.minimum(xyxy[:, 2], right) - np.maximum(xyxy[:, 0], left)
    shared_height = np.minimum(xyxy[:, 3], bottom) - np.maximum(xyxy[:, 1], top)
    shared = np.maximum(shared_width, 0) * np.maximum(shared_height, 0)
    areas = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
    iou: Floats = shared / np.maximum(width * height + areas - shared, np.finfo(np.float64).tiny)
    return iou


def _average_precision(right: NDArray[np.bool_], count: int, interpolation: Literal["area", "11_points"]) -> float:
    """Return the AP of detections, best first, of which some are `right`, with `count` objects to be found."""
    true = np.cumsum(right)
    recall = true / count
    # Interpolated: the best precision at this recall or a higher one.
    precision = np.maximum.accumulate((true / np.arange(1, len(right) + 1))[::-1])[::-1]
    if interpolation == "area":
        return float((precision * np.diff(recall, prepend=0)).sum())
    reached = np.searchsorted(recall, RECALLS)
    return float(np.append(precision, 0)[reached].mean())
