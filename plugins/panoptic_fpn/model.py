"""Panoptic FPN: Mask R-CNN, and beside it a class of every pixel, on one feature pyramid.

Kirillov, Girshick, He, Dollár: Panoptic Feature Pyramid Networks, arXiv 1901.02446; how both are merged: Kirillov et
al.: Panoptic Segmentation, arXiv 1801.00868, section 7.

As in Detectron2, all things are one class of pixels, the first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from detcli.errors import DetcliError, UsageError
from detcli.nn.detector import TwoStageDetector, trunk
from detcli.nn.masks import paste_masks
from detcli.nn.semantic_head import SemanticHead, resize_logits
from detcli.plugin import Backbone, Neck, RoIHead, RPNHead
from detcli.registry import build
from detcli.structures import UNLABELLED, Batch, Detections, ImageInfo, Panoptic


def panoptic_fpn(
    *,
    num_classes: int,
    num_stuff_classes: int = 53,
    backbone: Backbone = "r50",
    neck: Neck = "fpn",
    rpn_head: RPNHead = "rpn",
    roi_head: RoIHead = {
        "name": "standard",
        "assigner": {"name": "max_iou", "positive": 0.5, "negative": 0.5, "min_positive": 0.5},
        "mask_roi_extractor": {"name": "roi_align", "output_size": 14},
        "mask_head": "fcn",
    },
    semantic_levels: int = 4,
    semantic_channels: int = 128,
    semantic_norm: Literal["bn", "syncbn", "gn"] = "gn",
    semantic_loss_weight: float = 0.5,
    segment_score: float = 0.5,
    segment_overlap: float = 0.5,
    least_stuff_area: int = 4096,
) -> PanopticFPN:
    """Return the detector of things and `num_stuff_classes` classes of stuff, which a run takes from its data.

    Detections of at least `segment_score` become segments, but those of which better ones cover more than
    `segment_overlap`; then stuff of at least `least_stuff_area` pixels of the picture.

    Raises `UsageError` when the second stage draws no masks.
    """
    body = trunk(backbone, neck)
    second_stage = build("roi_heads", roi_head, trunk=body, num_classes=num_classes)
    if "mask" not in second_stage.tasks:
        raise UsageError(
            "segments are made of masks, and model.roi_head has none: `--set model.roi_head.mask_head=fcn`."
        )
    semantic = SemanticHead(
        body.channels,
        body.strides[:semantic_levels],
        num_stuff_classes + 1,
        channels=semantic_channels,
        norm=semantic_norm,
        loss_weight=semantic_loss_weight,
    )
    return PanopticFPN(
        body.backbone,
        body.neck,
        body.rpn_head(rpn_head),
        second_stage,
        semantic,
        num_classes=num_classes,
        segment_score=segment_score,
        segment_overlap=segment_overlap,
        least_stuff_area=least_stuff_area,
    )


class PanopticFPN(TwoStageDetector):
    """Mask R-CNN with a `semantic_head` on the pyramid, whose class 0 is all things."""

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        rpn_head: nn.Module,
        roi_head: nn.Module,
        semantic_head: SemanticHead,
        *,
        num_classes: int,
        segment_score: float,
        segment_overlap: float,
        least_stuff_area: int,
    ) -> None:
        super().__init__(backbone, neck, rpn_head, roi_head)
        self.tasks = (*self.tasks, "panoptic")
        self.semantic_head = semantic_head
        self.num_classes = num_classes
        self.segment_score = segment_score
        self.segment_overlap = segment_overlap
        self.least_stuff_area = least_stuff_area

    def losses(self, features: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """Return the losses of Mask R-CNN and loss_sem_seg."""
        labels = torch.stack([self._stuff(target.semantic) for target in batch.targets or []])
        return super().losses(features, batch) | self.semantic_head.losses(features, labels)

    def detect(self, features: tuple[Tensor, ...], batch: Batch) -> list[Detections]:
        """Return the detections of Mask R-CNN with the logits of stuff."""
        found = super().detect(features, batch)
        for detections, logits in zip(found, self.semantic_head(features), strict=True):
            detections.semantic = logits
        return found

    @torch.no_grad()
    def merge(self, detections: Detections, info: ImageInfo) -> Panoptic:
        """Return the segments of a picture: detections, best first, where no other is, then stuff where nothing is.

        `detections` are in pixels of the original picture.
        """
        assert detections.semantic is not None
        assert detections.mask_crops is not None
        size = info.original_size
        logits = resize_logits(detections.semantic, self.semantic_head.stride, info.size, size)
        stuff = logits.argmax(0)
        segments = torch.zeros(size, dtype=torch.int32, device=stuff.device)
        labels: list[int] = []
        scores: list[float] = []
        confident = detections[detections.scores >= self.segment_score]
        masks = paste_masks(confident.mask_crops, confident.boxes, size).bool()
        for mask, label, score in zip(masks, confident.labels.tolist(), confident.scores.tolist(), strict=True):
            free = mask & (segments == 0)
            area, left = int(mask.sum()), int(free.sum())
            if area - left <= self.segment_overlap * area and area > 0:
                labels.append(label)
                scores.append(score)
                segments[free] = len(labels)
        areas = torch.bincount(stuff[segments == 0], minlength=len(logits)).tolist()
        for number, area in enumerate(areas[1:], 1):
            if area >= max(1, self.least_stuff_area):
                labels.append(self.num_classes + number - 1)
                scores.append(1.0)
                segments[(stuff == number) & (segments == 0)] = len(labels)
        device = stuff.device
        return Panoptic(segments, torch.tensor(labels, device=device).long(), torch.tensor(scores, device=device))

    def _stuff(self, semantic: Tensor | None) -> Tensor:
        """Return labels of things and stuff [H,W] as those of the semantic head: 0 for all things, then stuff."""
        if semantic is None:
            raise DetcliError("this model learns stuff, and the data have none. Train mask_rcnn.")
        stuff = (semantic.long() - (self.num_classes - 1)).clamp(min=0)
        return torch.where(semantic == UNLABELLED, UNLABELLED, stuff)
