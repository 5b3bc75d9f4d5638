"""COCO evaluation of keypoints (https://cocodataset.org/#keypoints-eval).

Object keypoint similarity stands in for IoU: the mean of exp(-d² / (8 area sigma²)) over an object's labelled
keypoints, d being the distance in pixels and sigma how far annotators are apart, by the root of the object's area.
"""

from __future__ import annotations

from typing import Any

from detcli.errors import DetcliError
from detcli.eval.coco import Backend, accumulated, class_names, explained, percent, usable_objects, usable_results
from detcli.eval.evaluator import MAIN, Result

COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""Of COCO's 17 keypoints of a person: face, arms, legs."""

OTHER_SIGMA = 0.05
"""Of each keypoint where an object has not 17 of them."""

MAX_DETECTIONS = 20
SIZES = ("m", "l")
"""Objects of 32x32 to 96x96 pixels, and larger ones; small persons have no keypoints in COCO."""


def evaluate(ground_truth: dict[str, Any], results: list[dict[str, Any]], *, backend: Backend = "faster") -> Result:
    """Measure the keypoints of `results` (COCO results) against `ground_truth` (a COCO dict); neither is changed.

    AP and AR with 20 detections an image, at similarities of 0.50:0.95, 0.50 and 0.75, and by size, which for a
    detection is that of its box. Objects without a labelled keypoint neither count nor punish, like crowd regions.
    Raises DetcliError where the ground truth has no images, or its categories no keypoints.
    """
    images = [{**image, "id": int(image["id"])} for image in ground_truth["images"]]
    if not images:
        raise DetcliError("nothing to evaluate on: the ground truth has no images")
    categories = ground_truth["categories"]
    count = max((len(category.get("keypoints", ())) for category in categories), default=0)
    if not count:
        raise DetcliError("the ground truth has no keypoints: keypoint AP needs categories with `keypoints`")
    notes: list[str] = []
    objects = usable_objects(ground_truth, "keypoint", notes)
    for item in objects:
        item["keypoints"] = [*item["keypoints"], *[0] * (3 * count - len(item["keypoints"]))]
        item["num_keypoints"] = sum(visibility > 0 for visibility in item["keypoints"][2::3])
    found = usable_results(images, categories, results, "keypoint", notes)
    sigmas = COCO_SIGMAS if count == len(COCO_SIGMAS) else [OTHER_SIGMA] * count
    precision, recall = accumulated(
        backend,
        {"images": images, "categories": categories, "annotations": objects},
        {"images": images, "categories": categories, "annotations": found},
        "keypoints",
        [MAX_DETECTIONS],
        sigmas=list(sigmas),
    )

    # precision [similarity, recall, class, size, 1]; recall [similarity, class, size, 1]; size 0: all.
    metrics: dict[str, float] = {}
    for name, values in (("AP", precision), ("AR", recall)):
        metrics[f"keypoint_{name}"] = percent(values[..., 0, 0])
        metrics[f"keypoint_{name}50"] = percent(values[0, ..., 0, 0])
        metrics[f"keypoint_{name}75"] = percent(values[5, ..., 0, 0])
        for position, size in enumerate(SIZES, 1):
            metrics[f"keypoint_{name}{size}"] = percent(values[..., position, 0])
    per_class = {name: percent(precision[:, :, i, 0, 0]) for i, name in enumerate(class_names(categories))}
    notes.extend(explained(MAIN["keypoint"], metrics, per_class, len(results), len(found)))
    return Result(metrics, per_class, notes)
