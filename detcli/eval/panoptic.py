"""Panoptic quality (Kirillov et al. 2019, Panoptic Segmentation, arXiv 1801.00868, section 4).

A found segment is right when its IoU with one of its category is more than a half, which it then is with one alone. The
quality of a category is the sum of these IoUs divided by the number of right ones and half of those that were missed or
wrong; it is the product of segmentation quality, the mean IoU, and recognition quality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detcli.data.panoptic import decode_ids
from detcli.errors import DetcliError
from detcli.eval.coco import class_names
from detcli.eval.evaluator import Evaluator, Result

Counts = NDArray[np.int64]

MATCHED = 0.5
"""A segment is found at a greater IoU, and left out where more of it than this lies on what has no label."""


def panoptic(*, task: Literal["panoptic"]) -> Evaluator:
    """Return the evaluation of things and stuff by panoptic quality."""
    assert task == "panoptic"
    return evaluate


def evaluate(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Result:
    """Measure `results` against `ground_truth`, both in COCO's panoptic format; neither is changed.

    Each of the results, and of the annotations of the ground truth, has under "png" the bytes of its PNG file.
    PQ, SQ and RQ are means over categories that occur, of all, of things and of stuff. Raises DetcliError where the
    ground truth has no images, or a PNG file is none of ids.
    """
    images = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    if not images:
        raise DetcliError("nothing to evaluate on: the ground truth has no images")
    categories = sorted(ground_truth["categories"], key=lambda category: int(category["id"]))
    position = {category["id"]: index for index, category in enumerate(categories)}
    found = {result["image_id"]: result for result in results}
    tally = Tally.of(len(categories))
    unknown = 0
    for annotation in ground_truth["annotations"]:
        number = annotation["image_id"]
        truth = _segments(annotation, images[number], position, f"the ground truth of image {number}")
        result = found.get(number, {"segments_info": []})
        known = [info for info in result["segments_info"] if info["category_id"] in position]
        unknown += len(result["segments_info"]) - len(known)
        ours = _segments(result | {"segments_info": known}, images[number], position, f"the result of image {number}")
        tally.add(truth, ours)

    things = np.array([bool(category["isthing"]) for category in categories])
    metrics = {
        f"{prefix}{name}": value
        for prefix, chosen in (("", things | True), ("things_", things), ("stuff_", ~things))
        for name, value in tally.quality(chosen).items()
    }
    every = [tally.quality(np.arange(len(categories)) == index)["PQ"] for index in range(len(categories))]
    notes = []
    if metrics["PQ"] == -1:
        notes.append("PQ is -1: the ground truth has no segments")
    elif not any(result["segments_info"] for result in results):
        notes.append("PQ is 0: the model found no segments")
    if unknown:
        notes.append(f"{unknown} segments left out: the ground truth has not their categories")
    return Result(metrics, dict(zip(class_names(categories), every, strict=True)), notes)


@dataclass(slots=True)
class LabelledMap:
    """The S segments of a picture.

    index [H,W] is the number of each pixel's segment in 1..S, 0 where there is none; categories [S] are positions in
    the list of categories; crowd [S].
    """

    index: Counts
    categories: Counts
    crowd: NDArray[np.bool_]


@dataclass(slots=True)
class Tally:
    """What was counted of each category: the sum of IoUs, right, wrong and missed segments."""

    iou: NDArray[np.float64]
    right: Counts
    wrong: Counts
    missed: Counts

    @classmethod
    def of(cls, categories: int) -> Tally:
        """Return a tally of nothing."""
        return cls(np.zeros(categories), *(np.zeros(categories, np.int64) for _ in range(3)))

    def add(self, truth: LabelledMap, found: LabelledMap) -> None:
        """Count the segments of one picture."""
        rows, columns = len(truth.categories) + 1, len(found.categories) + 1
        both = truth.index.ravel() * columns + found.index.ravel()
        shared = np.bincount(both, minlength=rows * columns).reshape(rows, columns)
        # Pixels without a label in the ground truth don't count against what was found there.
        union = shared.sum(1)[1:, None] + shared[1:].sum(0)[1:] - shared[1:, 1:]
        iou = shared[1:, 1:] / np.maximum(union, 1)
        alike = (truth.categories[:, None] == found.categories) & ~truth.crowd[:, None]
        matched = alike & (iou > MATCHED)
        self._count("right", truth.categories[matched.any(1)])
        np.add.at(self.iou, truth.categories[matched.any(1)], iou.max(1, initial=0, where=matched)[matched.any(1)])
        self._count("missed", truth.categories[~matched.any(1) & ~truth.crowd])
        of_crowd = (truth.categories[:, None] == found.categories) & truth.crowd[:, None]
        ignored = shared[0, 1:] + (shared[1:, 1:] * of_crowd).sum(0)
        left_out = ignored > MATCHED * shared.sum(0)[1:]
        self._count("wrong", found.categories[~matched.any(0) & ~left_out])

    def quality(self, chosen: NDArray[np.bool_]) -> dict[str, float]:
        """Return PQ, SQ and RQ of the `chosen` categories that occur, in percent; -1 where none does."""
        divisor = self.right + 0.5 * self.wrong + 0.5 * self.missed
        chosen = chosen & (divisor > 0)
        if not chosen.any():
            return {"PQ": -1.0, "SQ": -1.0, "RQ": -1.0}
        quality = {
            "PQ": self.iou[chosen] / divisor[chosen],
            "SQ": self.iou[chosen] / np.maximum(self.right[chosen], 1),
            "RQ": self.right[chosen] / divisor[chosen],
        }
        return {name: 100 * float(values.mean()) for name, values in quality.items()}

    def _count(self, what: Literal["right", "wrong", "missed"], categories: Counts) -> None:
        counts = getattr(self, what)
        counts += np.bincount(categories, minlength=len(counts))


def _segments(annotation: dict[str, Any], size: tuple[int, int], position: dict[int, int], name: str) -> LabelledMap:
    """Return the segments of a picture, those of unknown ids as none."""
    infos = annotation["segments_info"]
    numbers = np.array([info["id"] for info in infos], np.int64)
    categories = np.array([position[info["category_id"]] for info in infos], np.int64)
    crowd = np.array([bool(info.get("iscrowd")) for info in infos], np.bool_)
    if not infos:
        return LabelledMap(np.zeros(size, np.int64), categories, crowd)
    ids = decode_ids(annotation["png"], size, name)
    order = np.argsort(numbers)
    place = np.searchsorted(numbers[order], ids).clip(max=len(numbers) - 1)
    return LabelledMap(np.where(numbers[order][place] == ids, order[place] + 1, 0), categories, crowd)
