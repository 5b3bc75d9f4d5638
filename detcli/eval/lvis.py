"""LVIS evaluation of boxes and masks: a federated dataset with rare, common and frequent categories.

A picture is searched for some of the categories only. It says which ones are verified to be absent
(``neg_category_ids``); detections of a category that it neither has nor lacks are left out. Where not every object of a
category is annotated (``not_exhaustive_category_ids``), detections that match none are left out, too. Source: Gupta,
Dollár, Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", section 2 (arXiv 1908.03195).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detcli.errors import DetcliError
from detcli.eval.coco import SIZES, accumulated, class_names, explained, percent, usable_objects, usable_results
from detcli.eval.evaluator import MAIN, Evaluator, Result

MAX_DETECTIONS = 300
"""How many detections of a picture count, those of all categories together."""

AT_ONCE = 20
"""How many categories are measured together."""

FREQUENCIES = {
    "r": "rare categories (in up to 10 pictures)",
    "c": "common categories (in 11 to 100 pictures)",
    "f": "frequent categories (in more than 100 pictures)",
}


def lvis(*, task: Literal["box", "mask"]) -> Evaluator:
    """Return LVIS' evaluation of one task."""
    return partial(evaluate, task=task)


def evaluate(ground_truth: dict[str, Any], results: list[dict[str, Any]], *, task: Literal["box", "mask"]) -> Result:
    """Measure `results` (COCO results) against `ground_truth` (a COCO dict); neither is changed.

    AP at IoU 0.50:0.95, 0.50 and 0.75, by size and by frequency of the category, and AR with 300 detections a picture.
    The area of a found mask is its own, not that of its box. Raises DetcliError where the ground truth is not LVIS'.
    """
    images, categories = ground_truth["images"], ground_truth["categories"]
    _require_lvis(images, categories)
    notes: list[str] = []
    objects = [item for item in usable_objects(ground_truth, task, notes) if item["area"] > 0]
    usable = usable_results(images, categories, _best(results), task, notes)
    searched = {(image["id"], category) for image in images for category in image["neg_category_ids"]}
    searched |= {(item["image_id"], item["category_id"]) for item in objects}
    found = [item for item in usable if item["area"] > 0 and (item["image_id"], item["category_id"]) in searched]

    ordered = sorted(categories, key=lambda category: category["id"])
    precision, recall = _accumulated(images, ordered, objects, found, "segm" if task == "mask" else "bbox")

    main = MAIN[task]
    prefix = main.partition("_")[0]
    # precision [IoU, recall, class, size, detections]; recall [IoU, class, size, detections]; size 0: all.
    metrics = {
        main: percent(precision[..., 0, -1]),
        f"{prefix}_AP50": percent(precision[0, ..., 0, -1]),
        f"{prefix}_AP75": percent(precision[5, ..., 0, -1]),
    }
    for position, size in enumerate(SIZES, 1):
        metrics[f"{prefix}_AP{size}"] = percent(precision[..., position, -1])
    for frequency in FREQUENCIES:
        chosen = [position for position, category in enumerate(ordered) if category["frequency"] == frequency]
        metrics[f"{prefix}_AP{frequency}"] = percent(precision[:, :, chosen, 0, -1])
    metrics[f"{prefix}_AR{MAX_DETECTIONS}"] = percent(recall[..., 0, -1])
    for position, size in enumerate(SIZES, 1):
        metrics[f"{prefix}_AR{size}"] = percent(recall[..., position, -1])
    per_class = {name: percent(precision[:, :, i, 0, -1]) for i, name in enumerate(class_names(categories))}

    notes += explained(main, metrics, per_class, len(results), len(usable))
    for frequency, description in FREQUENCIES.items():
        if metrics[main] != -1 and metrics[f"{prefix}_AP{frequency}"] == -1:
            notes.append(f"no objects of {description}: {prefix}_AP{frequency} is -1")
    return Result(metrics, per_class, notes)


def _accumulated(
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    objects: list[dict[str, Any]],
    found: list[dict[str, Any]],
    iou_type: str,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision [10,101,K,4,1] and recall [10,K,4,1], -1 where there are no objects.

    It takes some categories at a time, with the pictures that have them: the evaluation keeps something for each pair
    of a picture and a category, of which LVIS has 24 million.
    """
    part_of = {category["id"]: position // AT_ONCE for position, category in enumerate(categories)}
    objects_of, found_of = (_grouped(items, lambda item: part_of[item["category_id"]]) for items in (objects, found))
    parts = []
    for number, first in enumerate(range(0, len(categories), AT_ONCE)):
        shown = {item["image_id"] for item in (*objects_of[number], *found_of[number])}
        contents = {
            "images": [image for image in images if image["id"] in shown],
            "categories": categories[first : first + AT_ONCE],
        }
        dataset, detected = ({**contents, "annotations": own[number]} for own in (objects_of, found_of))
        parts.append(accumulated("faster", dataset, detected, iou_type, [MAX_DETECTIONS], lvis_style=True))
    return np.concatenate([part[0] for part in parts], axis=2), np.concatenate([part[1] for part in parts], axis=1)


def _grouped(
    items: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any]
) -> defaultdict[Any, list[dict[str, Any]]]:
    grouped: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        grouped[key(item)].append(item)
    return grouped


def _require_lvis(images: list[dict[str, Any]], categories: list[dict[str, Any]]) -> None:
    if not images:
        raise DetcliError("nothing to evaluate on: the ground truth has no images")
    for items, keys in ((images, ("neg_category_ids", "not_exhaustive_category_ids")), (categories, ("frequency",))):
        for key in keys:
            if any(key not in item for item in items):
                raise DetcliError(
                    f"the data are not LVIS': they don't say {key!r}. "
                    "Give those of lvisdataset.org, or measure with `--evaluator faster`."
                )


def _best(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the best `MAX_DETECTIONS` results of each picture."""
    best: list[dict[str, Any]] = []
    for found in _grouped(results, lambda result: result["image_id"]).values():
        order = np.argsort([-result["score"] for result in found], kind="stable")[:MAX_DETECTIONS]
        best += [found[position] for position in order] if len(found) > MAX_DETECTIONS else found
    return best
