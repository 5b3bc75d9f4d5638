"""COCO evaluation of boxes: 2,000 images with 100 detections each, against pycocotools with equal figures."""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.report import Row, interleaved, times_faster
from detcli.eval.coco import evaluate

IMAGES, DETECTIONS, OBJECTS, CATEGORIES = 2000, 100, 7, 80
SIZE = (480, 640)
TIMES = 4.0
TOLERANCE = 1e-9


def data(images: int = IMAGES, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a ground truth of about `OBJECTS` an image, and detections: some near an object, the others anywhere."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        count = int(random.poisson(OBJECTS))
        boxes, labels = _boxes(random, count), random.integers(1, CATEGORIES + 1, count)
        crowd = random.random(count) < 0.01
        for box, label, is_crowd in zip(boxes.tolist(), labels.tolist(), crowd.tolist(), strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "bbox": box}
            annotations.append({**annotation, "area": 0.7 * box[2] * box[3], "iscrowd": int(is_crowd)})
        found, classes = _boxes(random, DETECTIONS), random.integers(1, CATEGORIES + 1, DETECTIONS)
        near = min(3 * count, DETECTIONS)
        if near:
            source = random.integers(0, count, near)
            found[:near] = boxes[source] + random.normal(size=(near, 4)) * boxes[source][:, [2, 3, 2, 3]] * 0.08
            found[:near, 2:] = found[:near, 2:].clip(1)
            classes[:near] = np.where(random.random(near) < 0.8, labels[source], classes[:near])
        scores = random.random(DETECTIONS) ** 2
        scores[:near] = scores[:near] ** 0.5
        for box, label, score in zip(found.tolist(), classes.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
    return {
        "images": [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(1, images + 1)],
        "categories": [{"id": label, "name": f"class {label}"} for label in range(1, CATEGORIES + 1)],
        "annotations": annotations,
    }, results


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes [count,4] (left, top, width, height), of all three sizes of COCO."""
    sides = np.exp(random.uniform(np.log(8), np.log(240), (count, 2)))
    corners = random.random((count, 2)) * (np.array(SIZE[::-1]) - sides)
    return np.concatenate([corners, sides], axis=1)


def run(images: int = IMAGES, runs: int = 3) -> list[Row]:
    """Return the row of seconds; raises `AssertionError` where a figure differs by more than `TOLERANCE`."""
    ground_truth, results = data(images)
    backends = [
        partial(evaluate, ground_truth, results, task="box", backend=name) for name in ("faster", "pycocotools")
    ]
    ours, theirs = (backend() for backend in backends)
    for one, other in ((ours.metrics, theirs.metrics), (ours.per_class, theirs.per_class)):
        assert one.keys() == other.keys()
        far = [key for key, value in one.items() if abs(value - other[key]) > TOLERANCE]
        assert not far, f"{far[0]}: {one[far[0]]} and {other[far[0]]}"
    assert 5 < ours.metrics["box_AP"] < 95
    seconds = interleaved(backends, runs, warmup=0)
    note = f"{images} images, {len(results)} detections, equal figures (box AP {ours.metrics['box_AP']:.3f})"
    return [times_faster("COCO evaluation of boxes", *seconds, "s", TIMES, note)]
