"""LVIS evaluation of boxes and masks: a federated dataset with rare, common and frequent categories.

A picture is searched for some of the categories only. It says which ones are verified to be absent
(``neg_category_ids``); detections of a category that it neither has nor lacks are left out. Where not every object of a
category is annotated (``not_exhaustive_category_ids``), detections that match none are left out, too. Source: Gupta,
Dollár, Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", section 2 (arXiv 1908.03195).
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any, Literal

import numpy as np

from detcli.errors import DetcliError
from detcli.eval.coco import SIZES, accumulated, class_names, explained, percent, usable_objects, usable_results
from detcli.eval.evaluator import MAIN, Evaluator, Result

MAX_DETECTIONS = 300
"""How many detections of a picture count, those of all categories together."""

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

    dataset = {"images": images, "categories": categories, "annotations": objects}
    detected = {"images": images, "categories": categories, "annotations": found}
    iou_type = "segm" if task == "mask" else "bbox"
    precision, recall = accumulated("faster", dataset, detected, iou_type, [MAX_DETECTIONS], lvis_style=True)

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
    ordered = sorted(categories, key=lambda category: category["id"])
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
    by_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    best: list[dict[str, Any]] = []
    for found in by_image.values():
        order = np.argsort([-result["score"] for result in found], kind="stable")[:MAX_DETECTIONS]
        best += [found[position] for position in order] if len(found) > MAX_DETECTIONS else found
    return best
