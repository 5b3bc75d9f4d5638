"""What measures a model: the evaluators that the slot holds, what they are given and what they return."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, get_args

from detcli import registry
from detcli.signature import read

MAIN = {"box": "box_AP", "mask": "mask_AP", "keypoint": "keypoint_AP", "panoptic": "PQ", "proposal": "prop_AR"}
"""The figure of each task that runs are compared by. Figures are named after their task: ``mask_AP50``."""

STANDARD = {"box": "faster", "mask": "faster", "keypoint": "faster", "panoptic": "panoptic", "proposal": "faster"}
"""The evaluator of each task where the chosen one does not measure it."""


SAMPLE = 100
"""How many pictures `check` looks at."""


@dataclass(slots=True)
class Result:
    """The figures of one task.

    `metrics` are in percent under names such as ``box_AP50``, -1 where there is nothing to measure; among them is that
    of `MAIN`. `per_class` is the AP of each class name. `notes` say why a figure is -1 or 0.
    """

    metrics: dict[str, float]
    per_class: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Evaluator(Protocol):
    """What a builder in the ``evaluators`` slot returns: it measures one task."""

    def __call__(self, ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Result:
        """Return the figures of `results` (COCO results) on `ground_truth` (a COCO dict); neither is changed.

        For the task "panoptic", both are COCO's panoptic ones, each picture with the bytes of its PNG file under "png".

        Images and categories of the ground truth have what else the dataset says of them, as LVIS' ``frequency``.
        Raises `DetcliError` where they don't suffice, in a few of the pictures and without results, too: so it is found
        before a run begins.
        """
        ...


def tasks_of(name: str) -> tuple[str, ...]:
    """Return the tasks that the evaluator called `name` measures: what its builder's argument `task` may be.

    The evaluator is not imported. Raises `UsageError` when there is none of that name.
    """
    known = {parameter.name: parameter for parameter in read(registry.find("evaluators", name).ref)}
    return get_args(known["task"].annotation) if "task" in known else ()


def measure(name: str, task: str, ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Result:
    """Return the figures of a task by the evaluator called `name`, or by the standard one if that can't measure it."""
    notes = []
    if task not in tasks_of(name):
        if name not in STANDARD.values():
            notes.append(f"{MAIN[task]} is that of {STANDARD[task]}: the evaluator {name} has none")
        name = STANDARD[task]
    evaluator: Evaluator = registry.build("evaluators", name, task=task)
    result = evaluator(ground_truth, results)
    result.notes = [*notes, *result.notes]
    return result


def check(name: str, tasks: Iterable[str], ground_truth: dict[str, Any]) -> None:
    """Find what would keep the evaluator called `name` from measuring `tasks` on `ground_truth`, a COCO dict.

    It measures a few pictures with objects, if there are any with masks and keypoints, in which nothing was found.
    Raises `DetcliError` as `measure` does.
    """
    annotations = sorted(
        ground_truth.get("annotations", ()), key=lambda item: (not item.get("segmentation"), not item.get("keypoints"))
    )
    chosen = set(list(dict.fromkeys(item["image_id"] for item in annotations))[:SAMPLE])
    images = [image for image in ground_truth["images"] if image["id"] in chosen or not chosen][:SAMPLE]
    sample = {
        **ground_truth,
        "images": images,
        "annotations": [item for item in annotations if item["image_id"] in chosen],
    }
    for task in tasks:
        measure(name, task, sample, [])
