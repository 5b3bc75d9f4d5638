"""The second stage as a cascade: each stage is trained on the boxes of the one before (Cai and Vasconcelos 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from detcli.errors import UsageError
from detcli.nn.assigners import AnchorAssigner, max_iou
from detcli.nn.detector import Trunk
from detcli.nn.postprocess import multiclass_nms
from detcli.nn.roi_head import BBoxHead, MaskHead, ObjectMaps, RoISample, mask_losses, sample_rois, to_rois, with_boxes
from detcli.nn.samplers import RandomSampler
from detcli.plugin import PartConfig
from detcli.registry import build
from detcli.structures import Batch, Detections

Deviations: TypeAlias = tuple[float, float, float, float]
"""What a stage's deltas are divided by, see `DeltaBoxCoder`."""

ScoreAverage: TypeAlias = Literal["logits", "probabilities"]

EVERYTHING = RandomSampler(num=2**31, positive_fraction=1.0)
"""Draws nothing: all RoIs are trained."""


@dataclass(slots=True)
class CascadeStage:
    """A stage: what takes the features of RoIs, its head, and how RoIs are chosen that it is trained on.

    Its losses are times `loss_weight`.
    """

    roi_extractor: nn.Module
    bbox_head: BBoxHead
    assigner: AnchorAssigner
    sampler: RandomSampler
    loss_weight: float


def cascade_stages(
    *,
    trunk: Trunk,
    num_classes: int,
    roi_extractor: PartConfig,
    bbox_head: PartConfig,
    ious: tuple[float, ...],
    stds: tuple[Deviations, ...],
    loss_weights: tuple[float, ...],
    num_masks: int,
    match_low_quality: bool,
    sampler: PartConfig,
    resample: bool,
) -> list[CascadeStage]:
    """Return the stages, one for each of `ious`: an RoI is an object's from that overlap on.

    Without `resample`, the stages after the first are trained on all boxes of the one before. Boxes are those of no
    class in particular.

    Raises `UsageError` when the stages' arguments are not as many, or `num_masks` are more, when RoIs go through a
    shared head, and when `bbox_head` finds no boxes.
    """
    if trunk.shared_head is not None:
        raise UsageError("the stages of a cascade have no shared head: `--set model.shared_head=false`.")
    if not len(ious) == len(stds) == len(loss_weights) >= max(1, num_masks):
        raise UsageError(
            f"a cascade with {len(ious)} stages (stage_ious) has {len(stds)} stage_stds, {len(loss_weights)} "
            f"stage_weights and {num_masks} mask_stages: give as many of each, and no more mask_stages."
        )
    extractors = stage_extractors(trunk, roi_extractor, len(ious))
    return [
        CascadeStage(
            extractors[number],
            with_boxes(
                trunk.bbox_head(
                    bbox_head,
                    num_classes=num_classes,
                    roi_size=extractors[number].output_size,
                    class_agnostic=True,
                    stds=deviations,
                )
            ),
            max_iou(positive=iou, negative=iou, min_positive=iou, match_low_quality=match_low_quality),
            build("samplers", sampler) if resample or number == 0 else EVERYTHING,
            weight,
        )
        for number, (iou, deviations, weight) in enumerate(zip(ious, stds, loss_weights, strict=True))
    ]


def stage_extractors(trunk: Trunk, part: PartConfig, count: int) -> list[Any]:
    """Return what takes the features of RoIs for each of `count` stages: one for all where it has nothing to learn."""
    extractors = [trunk.roi_extractor(part) for _ in range(count)]
    return extractors if any(extractor.state_dict() for extractor in extractors) else extractors[:1] * count


@dataclass(slots=True)
class Refined:
    """The boxes [P,4] that a stage made of its RoIs, for each image, and which of them, [P], the next one may use."""

    boxes: list[Tensor]
    usable: list[Tensor]


class CascadeRoIHead(nn.Module):
    """Finds the class and box of each proposal in stages, and its mask.

    The mask head of a stage, for as many of the first stages as there are `mask_heads`, is trained on the stage's RoIs,
    whose features the stage's one of `mask_roi_extractors` takes; masks are the mean of all. Scores are the mean over
    the stages, of `logits` (MMDetection) or of `probabilities` (Detectron2); boxes are those of the last. The gradient
    from each stage's boxes to the features is times `roi_gradient`.

    With `resample`, objects that were added to a stage's RoIs are not refined for the next one, which adds its own
    (MMDetection); without, boxes are left out in training that have no area (Detectron2).
    """

    def __init__(
        self,
        stages: Sequence[CascadeStage],
        *,
        resample: bool,
        score_average: ScoreAverage,
        roi_gradient: float,
        score_threshold: float,
        nms_threshold: float,
        max_per_image: int,
        mask_roi_extractors: Sequence[nn.Module] = (),
        mask_heads: Sequence[MaskHead] = (),
    ) -> None:
        super().__init__()
        self.bbox_roi_extractor: Any = nn.ModuleList(stage.roi_extractor for stage in stages)
        self.mask_roi_extractor: Any = nn.ModuleList(mask_roi_extractors)
        self.bbox_head: Any = nn.ModuleList(stage.bbox_head for stage in stages)
        self.mask_head: Any = nn.ModuleList(mask_heads)
        self.assigners = [stage.assigner for stage in stages]
        self.samplers = [stage.sampler for stage in stages]
        self.loss_weights = [stage.loss_weight for stage in stages]
        self.resample = resample
        self.score_average = score_average
        self.roi_gradient = roi_gradient
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_per_image = max_per_image

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it finds of each proposal, as `Detector.tasks`."""
        return ("box", "mask") if self.mask_head else ("box",)

    def losses(self, features: Sequence[Tensor], proposals: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the losses of each stage, as s0.loss_cls; proposals are [P,4] for each image."""
        losses: dict[str, Tensor] = {}
        boxes = Refined(proposals, [torch.ones_like(image[:, 0], dtype=torch.bool) for image in proposals])
        for number, head in enumerate(self.bbox_head):
            samples = self.sample(number, boxes, batch)
            rois = self.pool(self.bbox_roi_extractor[number], features, [sample.boxes for sample in samples])
            if self.roi_gradient != 1 and rois.requires_grad:
                rois.register_hook(lambda gradient: gradient * self.roi_gradient)  # type: ignore[no-untyped-call]
            logits, deltas = head(rois)
            found = head.losses(logits, deltas, samples)
            boxes = self.refine(number, samples, deltas, batch)
            if number < len(self.mask_head):
                found |= self.mask_losses(number, features, self.mask_samples(number, samples, boxes, batch), batch)
            losses |= {f"s{number}.{name}": value * self.loss_weights[number] for name, value in found.items()}
        return losses

    def sample(self, number: int, boxes: Refined, batch: Batch) -> list[RoISample]:
        """Choose the RoIs of each image that the stage is trained on."""
        assert batch.targets is not None
        background = self.bbox_head[number].num_classes
        return [
            sample_rois(image, target, self.assigners[number], self.samplers[number], background, seed, usable)
            for image, usable, target, seed in zip(
                boxes.boxes, boxes.usable, batch.targets, batch.each_seed(), strict=True
            )
        ]

    @torch.no_grad()
    def refine(self, number: int, samples: list[RoISample], deltas: Tensor, batch: Batch) -> Refined:
        """Return what deltas [R,1,4] make of the samples' boxes."""
        coder = self.bbox_head[number].box_coder
        refined = Refined([], [])
        parts = torch.split(deltas[:, 0].float(), [len(sample.boxes) for sample in samples])
        for sample, part, size in zip(samples, parts, batch.sizes, strict=True):
            boxes = coder.decode(sample.boxes, part, size)
            if self.resample:
                left_out = sample.positive & (sample.boxes == sample.objects).all(1)
            else:
                left_out = (boxes[:, 2:] <= boxes[:, :2]).any(1)
            refined.boxes.append(boxes)
            refined.usable.append(sample.valid & ~left_out)
        return refined

    def mask_samples(self, number: int, samples: list[RoISample], boxes: Refined, batch: Batch) -> list[RoISample]:
        """Return the RoIs that the stage's masks are trained on: those that its boxes are."""
        return samples

    def mask_losses(
        self, number: int, features: Sequence[Tensor], samples: list[RoISample], batch: Batch
    ) -> dict[str, Tensor]:
        """Return loss_mask of the stage."""
        assert batch.targets is not None
        positives = [sample.possible_positives() for sample in samples]
        rois = self.pool(self.mask_roi_extractor[number], features, [sample.boxes for sample in positives])
        labels = self.mask_head[number].trained_labels(positives)
        (logits,) = self.mask_logits(rois, labels, range(number, number + 1))
        return mask_losses(logits, positives, batch.targets)

    def mask_logits(self, rois: Tensor, labels: Tensor, stages: range) -> list[Tensor]:
        """Return what the mask heads of `stages` say, [R,2S,2S], of rois [R,C,S,S], each for its label of [R]."""
        return [self.mask_head[number](rois, labels) for number in stages]

    def features(self, levels: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the maps that RoIs are pooled from to detect, of the levels of the pyramid: these themselves."""
        return levels

    def detect(self, levels: Sequence[Tensor], proposals: list[Tensor], batch: Batch) -> list[Detections]:
        """Return the detections of each image, with mask crops where there are heads for them."""
        features = self.features(levels)
        found = self.detect_boxes(features, proposals, batch)
        masks = self.object_maps(features, found).masks
        if masks is not None:
            parts = torch.split(masks, [len(detections) for detections in found])
            for detections, part in zip(found, parts, strict=True):
                detections.mask_crops = part
        return found

    def detect_boxes(self, features: Sequence[Tensor], proposals: list[Tensor], batch: Batch) -> list[Detections]:
        """Return the detections of each image, without masks."""
        counts = [len(boxes) for boxes in proposals]
        sizes = batch.sizes.repeat_interleave(torch.tensor(counts, device=batch.sizes.device), dim=0)
        boxes, scores = torch.cat(proposals), []
        for extractor, head in zip(self.bbox_roi_extractor, self.bbox_head, strict=True):
            logits, deltas = head(self.pool(extractor, features, torch.split(boxes, counts)))
            scores.append(logits.float() if self.score_average == "logits" else logits.float().softmax(-1))
            boxes = head.box_coder.decode(boxes, deltas[:, 0].float(), sizes)
        mean = torch.stack(scores).mean(0)
        classes = (mean.softmax(-1) if self.score_average == "logits" else mean)[:, :-1]
        found = []
        for image_boxes, image_scores in zip(torch.split(boxes, counts), torch.split(classes, counts), strict=True):
            kept_boxes, kept_scores, labels, _ = multiclass_nms(
                image_boxes, image_scores, self.score_threshold, self.nms_threshold, self.max_per_image
            )
            found.append(Detections(kept_boxes, kept_scores, labels))
        return found

    def object_maps(self, features: Sequence[Tensor], found: list[Detections]) -> ObjectMaps:
        """Return the masks of the boxes and labels of each image, the mean of all stages' probabilities."""
        if not self.mask_head:
            return ObjectMaps()
        labels = torch.cat([detections.labels for detections in found])
        logits = self.stage_masks(features, [detections.boxes for detections in found], labels)
        return ObjectMaps(masks=torch.stack([stage.float().sigmoid() for stage in logits]).mean(0))

    def stage_masks(self, features: Sequence[Tensor], boxes: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        """Return what each mask head says, [R,2S,2S], of the boxes [P,4] of each image, for their labels [R]."""
        logits: list[Tensor] = []
        before, rois = None, labels
        for number, extractor in enumerate(self.mask_roi_extractor):
            if extractor is not before:
                before, rois = extractor, self.pool(extractor, features, boxes)
            logits += self.mask_logits(rois, labels, range(number, number + 1))
        return logits

    def pool(self, extractor: nn.Module, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return the features [R,C,S,S] that `extractor` takes of the boxes [P,4] of each image."""
        rois: Tensor = extractor(features, to_rois(boxes))
        return rois
