"""Run a model over a dataset and measure it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch

from detcli.config import RunConfig
from detcli.data import DetectionDataset, make_loader
from detcli.data.transforms import to_pixels
from detcli.engine import distributed
from detcli.engine.device import Precision, autocast
from detcli.engine.model import Normalizer
from detcli.engine.tta import Augmented
from detcli.eval.evaluator import MAIN, measure
from detcli.eval.results import rescale_boxes, to_coco, to_coco_panoptic
from detcli.nn.detector import Detector
from detcli.structures import Detections, ImageInfo

T = TypeVar("T")
MISSING: Any = object()


@dataclass(slots=True)
class Evaluation:
    """Figures of all tasks of a model, the COCO results that they come from, and the first pictures' detections.

    `segments` are in COCO's panoptic format, each with the bytes of its PNG file under "png".
    """

    metrics: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    shown: list[tuple[ImageInfo, Detections]] = field(default_factory=list)


def primary_metric(model: Detector) -> str:
    """Return the name of the figure that says which checkpoint is best: that of the model's last task."""
    return MAIN[model.tasks[-1]]


def detect_in(
    model: Detector, dataset: DetectionDataset, config: RunConfig, device: torch.device, precision: Precision
) -> Iterator[tuple[ImageInfo, Detections]]:
    """Yield what `model`, in eval mode, finds in each picture of `dataset`, in the picture's own pixels.

    Of several processes, each takes every so many-th picture. Test-time augmentation is that of `config.eval.tta`.
    """
    if config.eval.tta.active:
        yield from _detect_augmented(Augmented(model, config, dataset.classes, device, precision), dataset)
        return
    normalize = Normalizer(config.input, device)
    loader = make_loader(
        dataset,
        batch=config.eval.batch,
        train=False,
        seed=0,
        workers=config.data.workers,
        pad_divisor=config.input.pad_divisor,
        group_aspect=False,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    for batch in loader:
        with torch.inference_mode(), autocast(device, precision):
            found = model(normalize(batch, config.train.channels_last))
        for info, detections in zip(batch.infos, found, strict=True):
            yield info, merged(model, rescale_boxes(detections, info), info)


def _detect_augmented(augmented: Augmented, dataset: DetectionDataset) -> Iterator[tuple[ImageInfo, Detections]]:
    """Yield what is found in several views of each picture, one picture at a time."""
    loader = make_loader(
        dataset.unchanged(),
        batch=1,
        train=False,
        seed=0,
        workers=augmented.config.data.workers,
        pad_divisor=1,
        group_aspect=False,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    for batch in loader:
        proposals = batch.targets[0].proposals if batch.targets else None
        yield batch.infos[0], augmented(to_pixels(batch.images[0]), proposals)


def merged(model: Detector, detections: Detections, info: ImageInfo) -> Detections:
    """Return detections in pixels of the original picture, of a panoptic model with its segments."""
    if "panoptic" not in model.tasks:
        return detections
    return replace(detections, panoptic=model.merge(detections, info), semantic=None)


def evaluate_model(
    model: Detector,
    dataset: DetectionDataset,
    config: RunConfig,
    device: torch.device,
    *,
    precision: Precision = "fp32",
    show: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Detect in every picture of `dataset` and measure the model's tasks.

    `show` is how many pictures' detections are kept to be drawn; `advance(done, total)` is called after each
    picture. The model's training flag is put back afterwards. Of several processes, each detects in its share of the
    pictures; the main one measures and has `results` and `shown`, all have the figures.
    """
    training = model.training
    model.eval()
    processes = distributed.world_size()
    results: list[list[dict[str, Any]]] = []
    segments: list[dict[str, Any]] = []
    shown: list[tuple[ImageInfo, Detections]] = []
    for done, (info, detections) in enumerate(detect_in(model, dataset, config, device, precision)):
        results.append(to_coco(detections, info, dataset.classes))
        if detections.panoptic is not None:
            segments.append(to_coco_panoptic(detections.panoptic, info, dataset.classes))
        if done * processes + distributed.rank() < show:
            shown.append((info, detections.to("cpu")))
        if advance:
            advance(min((done + 1) * processes, len(dataset)), len(dataset))
    model.train(training)
    evaluation = Evaluation()
    gathered = distributed.gathered((results, segments, shown))
    if distributed.is_main():
        by_picture: Iterator[list[dict[str, Any]]] = _interleaved([part for part, _, _ in gathered])
        evaluation.results = list(chain.from_iterable(by_picture))
        evaluation.segments = list(_interleaved([part for _, part, _ in gathered]))
        evaluation.shown = list(_interleaved([part for _, _, part in gathered]))
        _measure(evaluation, model, dataset, config)
    figures = evaluation.metrics, evaluation.per_class, evaluation.notes
    evaluation.metrics, evaluation.per_class, evaluation.notes = distributed.of_main(figures)
    return evaluation


def _interleaved(parts: list[list[T]]) -> Iterator[T]:
    """Yield the items of shares in their order in the dataset: the first of each share, the second, ..."""
    for items in zip_longest(*parts, fillvalue=MISSING):
        yield from (item for item in items if item is not MISSING)


def unmeasured(dataset: DetectionDataset) -> dict[str, str]:
    """Return the tasks that can't be measured on `dataset`, and a note that says why."""
    notes = {
        "mask": (dataset.has_masks, "mask AP was not measured: the data have no masks"),
        "keypoint": (dataset.has_keypoints, "keypoint AP was not measured: the data have no keypoints"),
        "panoptic": (dataset.has_segments, "PQ was not measured: the data have no segments of things and stuff"),
    }
    return {task: note for task, (measured, note) in notes.items() if not measured}


def _measure(evaluation: Evaluation, model: Detector, dataset: DetectionDataset, config: RunConfig) -> None:
    """Add the figures of the model's tasks to an `evaluation` with results."""
    ground_truth = dataset.ground_truth()
    lacking = unmeasured(dataset)
    for task in model.tasks:
        if task in lacking:
            evaluation.notes.append(lacking[task])
            continue
        truth, results = ground_truth, evaluation.results
        if task == "panoptic":
            truth, results = dataset.segments(), evaluation.segments
        result = measure(config.eval.evaluator, task, truth, results)
        evaluation.metrics |= result.metrics
        evaluation.per_class[task] = result.per_class
        evaluation.notes += result.notes
