"""COCO evaluation of boxes, masks and proposals, by faster-coco-eval or by pycocotools with equal figures."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from detcli.errors import DetcliError
from detcli.eval.evaluator import MAIN, Evaluator, Result

Task = Literal["box", "mask", "keypoint", "proposal"]
Backend = Literal["faster", "pycocotools"]

SIZES = {
    "s": "small objects (below 32x32 pixels)",
    "m": "medium objects (32x32 to 96x96 pixels)",
    "l": "large objects (above 96x96 pixels)",
}


def coco(
    *, task: Literal["box", "mask", "keypoint", "proposal"], backend: Literal["faster", "pycocotools"] = "faster"
) -> Evaluator:
    """Return COCO's evaluation of one task; both backends give the same figures."""
    if task == "keypoint":
        from detcli.eval import keypoints

        return partial(keypoints.evaluate, backend=backend)
    return partial(evaluate, task=task, backend=backend)


def evaluate(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], *, task: Task, backend: Backend = "faster"
) -> Result:
    """Measure `results` (COCO results) against `ground_truth` (a COCO dict); neither is changed.

    Boxes and masks get AP at IoU 0.50:0.95, 0.50 and 0.75, by size, and AR with 1, 10 and 100 detections an
    image. Proposals get AR with 100, 300 and 1000, of all classes as one. Crowd regions neither count nor
    punish. An object without a mask is a crowd region to mask AP. Raises DetcliError where the ground truth
    has no images, or no masks for mask AP.
    """
    images = [{**image, "id": int(image["id"])} for image in ground_truth["images"]]
    if not images:
        raise DetcliError("nothing to evaluate on: the ground truth has no images")
    categories = [{"id": 1, "name": "object"}] if task == "proposal" else ground_truth["categories"]
    notes: list[str] = []
    objects = usable_objects(ground_truth, task, notes)
    found = usable_results(images, categories, results, task, notes)

    dataset = {"images": images, "categories": categories, "annotations": objects}
    detected = {"images": images, "categories": categories, "annotations": found}
    max_detections = [100, 300, 1000] if task == "proposal" else [1, 10, 100]
    iou_type = "segm" if task == "mask" else "bbox"
    precision, recall = accumulated(backend, dataset, detected, iou_type, max_detections)

    main = MAIN[task]
    prefix = main.partition("_")[0]
    # precision [IoU, recall, class, size, detections]; recall [IoU, class, size, detections]; size 0: all.
    metrics: dict[str, float] = {}
    per_class: dict[str, float] = {}
    if task == "proposal":
        metrics["prop_AR"] = percent(recall[..., 0, -1])
    else:
        metrics[f"{prefix}_AP"] = percent(precision[..., 0, -1])
        metrics[f"{prefix}_AP50"] = percent(precision[0, ..., 0, -1])
        metrics[f"{prefix}_AP75"] = percent(precision[5, ..., 0, -1])
        for position, size in enumerate(SIZES, 1):
            metrics[f"{prefix}_AP{size}"] = percent(precision[..., position, -1])
        names = class_names(categories)
        per_class = {name: percent(precision[:, :, i, 0, -1]) for i, name in enumerate(names)}
    for position, count in enumerate(max_detections):
        metrics[f"{prefix}_AR{count}"] = percent(recall[..., 0, position])
    for position, size in enumerate(SIZES, 1):
        metrics[f"{prefix}_AR{size}"] = percent(recall[..., position, -1])

    notes.extend(explained(main, metrics, per_class, len(results), len(found)))
    return Result(metrics, per_class, notes)


def usable_objects(ground_truth: dict[str, Any], task: Task, notes: list[str]) -> list[dict[str, Any]]:
    """Return what COCO evaluation reads of the annotations, numbered from 1 (to it, id 0 is "no match")."""
    sizes = {int(image["id"]): (image["height"], image["width"]) for image in ground_truth["images"]}
    objects = []
    without_mask = 0
    for number, annotation in enumerate(ground_truth.get("annotations", ()), 1):
        item = {
            "id": number,
            "image_id": int(annotation["image_id"]),
            "category_id": 1 if task == "proposal" else annotation["category_id"],
            "bbox": annotation["bbox"],
            "iscrowd": int(annotation.get("iscrowd", 0)),
            "area": annotation.get("area"),
        }
        if task == "mask":
            size = sizes[item["image_id"]]
            segmentation = annotation.get("segmentation")
            if not segmentation:
                without_mask += 1
                item["iscrowd"] = 1
                segmentation = [_rectangle(annotation["bbox"])]
            item["segmentation"] = _run_lengths(segmentation, *size)
        if task == "keypoint":
            item["keypoints"] = annotation.get("keypoints") or []
        if item["area"] is None:
            item["area"] = _area(item)
        objects.append(item)
    if objects and without_mask == len(objects):
        raise DetcliError("the ground truth has no masks: mask AP needs annotations with `segmentation`")
    if without_mask:
        notes.append(f"{without_mask} of {len(objects)} objects have no mask; mask AP leaves them out")
    return objects


def usable_results(
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    results: list[dict[str, Any]],
    task: Task,
    notes: list[str],
) -> list[dict[str, Any]]:
    """Return the usable results with what COCO evaluation reads, and note what is left out."""
    image_ids = {image["id"] for image in images}
    category_ids = {category["id"] for category in categories}
    unknown_categories: Counter[int] = Counter()
    unknown_images = broken = 0
    found: list[dict[str, Any]] = []
    for result in results:
        category_id = 1 if task == "proposal" else result["category_id"]
        if category_id not in category_ids:
            unknown_categories[category_id] += 1
        elif result["image_id"] not in image_ids:
            unknown_images += 1
        elif not all(map(math.isfinite, (result["score"], *result["bbox"]))):
            broken += 1
        else:
            item = {
                "id": len(found) + 1,
                "image_id": int(result["image_id"]),
                "category_id": category_id,
                "bbox": result["bbox"],
                "score": result["score"],
                "iscrowd": 0,
            }
            if task == "mask":
                # The size of a found mask is its own area, not that of its box.
                item["segmentation"] = result["segmentation"]
            if task == "keypoint":
                item["keypoints"] = result["keypoints"]
            item["area"] = _area(item)
            found.append(item)
    if unknown_categories:
        ids = _few(map(str, sorted(unknown_categories)))
        notes.append(f"{_results(unknown_categories.total())} left out: the ground truth has no category id {ids}")
    if unknown_images:
        notes.append(f"{_results(unknown_images)} left out: the ground truth has no such image id")
    if broken:
        notes.append(f"{_results(broken)} left out: their score or box is not a finite number")
    return found


def accumulated(
    backend: Backend,
    dataset: dict[str, Any],
    detected: dict[str, Any],
    iou_type: str,
    max_detections: list[int],
    *,
    sigmas: list[float] | None = None,
    **settings: Any,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision [10,101,K,4,M] and recall [10,K,4,M], -1 where there are no objects.

    `sigmas` are those of keypoints; `settings` are further ones of the backend's evaluation.
    """
    if backend == "faster":
        try:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as Evaluation
        except ImportError as error:
            raise DetcliError(f"faster-coco-eval does not load ({error}): use `--evaluator pycocotools`") from error
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation

    with contextlib.redirect_stdout(io.StringIO()):
        indexed = []
        for content in (dataset, detected):
            coco = COCO()
            coco.dataset = content
            coco.createIndex()
            indexed.append(coco)
        evaluation = Evaluation(*indexed, iouType=iou_type, **settings)
        evaluation.params.maxDets = max_detections
        # For keypoints, faster-coco-eval would leave out categories without objects.
        evaluation.params.catIds = sorted(category["id"] for category in dataset["categories"])
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def explained(main: str, metrics: dict[str, float], per_class: dict[str, float], results: int, found: int) -> list[str]:
    """Return why figures are -1 or 0; `found` of the `results` fit the ground truth."""
    if metrics[main] == -1:
        return [f"{main} is -1: the ground truth has no objects"]
    notes = []
    if not results:
        notes.append(f"{main} is 0: the model found nothing above the score threshold")
    elif not found:
        notes.append(f"{main} is 0: none of the results belongs to the ground truth")
    elif metrics[main] == 0:
        notes.append(f"{main} is 0: nothing that was found overlaps an object of its class by half or more")
    missing = [name for name, value in per_class.items() if value == -1]
    if missing:
        notes.append(f"no objects of {_few(missing)}: not in the mean")
    for size, description in SIZES.items():
        names = [name for name in (f"{main[:-2]}AP{size}", f"{main[:-2]}AR{size}") if metrics.get(name) == -1]
        if names:
            verb = "is" if len(names) == 1 else "are"
            notes.append(f"no {description}: {' and '.join(names)} {verb} -1")
    return notes


def percent(values: NDArray[np.float64]) -> float:
    """Return the mean of those of the `values` that are not -1, in percent; -1 when all are."""
    measured = values[values > -1]
    return 100 * float(measured.mean()) if measured.size else -1.0


def class_names(categories: list[dict[str, Any]]) -> list[str]:
    """Return the names in order of category id; names that occur twice get their id."""
    ordered = sorted(categories, key=lambda category: category["id"])
    counts = Counter(category["name"] for category in ordered)
    return [c["name"] if counts[c["name"]] == 1 else f"{c['name']} ({c['id']})" for c in ordered]


def _run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return polygons, or run lengths compressed or not, as compressed run lengths."""
    if isinstance(segmentation, list):
        return dict(mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return dict(mask_utils.frPyObjects(segmentation, height, width))
    return dict(segmentation)


def _rectangle(bbox: list[float]) -> list[float]:
    x, y, width, height = bbox
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _area(item: dict[str, Any]) -> float:
    if "segmentation" in item:
        return float(mask_utils.area(item["segmentation"]))
    return float(item["bbox"][2] * item["bbox"][3])


def _results(count: int) -> str:
    return f"{count} result{'' if count == 1 else 's'}"


def _few(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
