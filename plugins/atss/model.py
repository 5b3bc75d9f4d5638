"""ATSS: Adaptive Training Sample Selection (Zhang et al. 2020, arXiv 1912.02424).

One square anchor at each location, the assignment of algorithm 1, and FCOS's centerness. Deviations from the
paper, as in MMDetection: the loss of boxes is weighted by the centerness of their anchors, and losses are
divided by the mean number of positives over all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import AnchorAssigner
from detcli.nn.box_coders import DeltaBoxCoder, DistanceBoxCoder
from detcli.nn.dense_heads import (
    ATSSLayers,
    Selection,
    assign_anchors,
    centerness,
    loss_of_levels,
    map_sizes,
    select_candidates,
    select_detections,
)
from detcli.nn.detector import SingleStageDetector
from detcli.nn.losses import LossFunction
from detcli.nn.processes import reduce_mean
from detcli.plugin import Assigner, Backbone, Loss, Neck
from detcli.registry import build
from detcli.structures import Batch, Detections


class ATSSHead(ATSSLayers):
    """Classes, boxes and centerness of one anchor at each location."""

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        num_classes: int,
        anchors: AnchorGenerator,
        box_coder: DeltaBoxCoder,
        assigner: AnchorAssigner,
        loss_cls: LossFunction,
        loss_bbox: LossFunction,
        loss_centerness: LossFunction,
        selection: Selection,
        *,
        stacked_convs: int,
        norm: Literal["none", "bn", "syncbn", "gn"],
        prior_probability: float,
    ) -> None:
        super().__init__(
            in_channels,
            feat_channels,
            num_classes,
            len(anchors.strides),
            stacked_convs=stacked_convs,
            norm=norm,
            prior_probability=prior_probability,
        )
        self.anchors = anchors
        self.box_coder = box_coder
        self.assigner = assigner
        self.loss_cls = loss_cls
        self.loss_bbox = loss_bbox
        self.loss_centerness = loss_centerness
        self.selection = selection

    def losses(self, features: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return loss_cls, loss_bbox and loss_centerness."""
        logits, deltas, central = self(features)
        sizes = map_sizes(features)
        anchors, targets = assign_anchors(self.assigner, self.anchors, sizes, batch, self.num_classes)
        num_positive = reduce_mean(targets.num_positive())
        # Other anchors keep their own box: a loss of no overlap's gradient, which their weight of 0 removes.
        positive = targets.positive[..., None]
        boxes = self.box_coder.decode(anchors, torch.where(positive, deltas.float(), 0.0))
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        central_goals = centerness(DistanceBoxCoder().encode(centers, targets.boxes)) * targets.positive
        return {
            "loss_cls": loss_of_levels(
                self.loss_cls,
                [height * width for height, width in sizes],
                logits,
                targets.labels,
                targets.trained.float(),
                num_positive,
            ),
            "loss_bbox": self.loss_bbox(
                boxes.flatten(0, 1),
                targets.boxes.flatten(0, 1),
                central_goals.flatten(),
                reduce_mean(central_goals.sum(), least=1),
            ),
            "loss_centerness": self.loss_centerness(
                central.flatten(), central_goals.flatten(), targets.positive.flatten().float(), num_positive
            ),
        }

    @torch.no_grad()
    def detect(self, features: Sequence[Tensor], batch: Batch) -> list[Detections]:
        """Return the detections of each image; class scores are multiplied by centerness before NMS."""
        logits, deltas, central = self(features)
        levels = self.anchors(map_sizes(features), logits.device)
        scores, index, labels = select_candidates(logits, [len(level) for level in levels], self.selection)
        scores = scores * central.gather(1, index).float().sigmoid()
        chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4)).float()
        boxes = self.box_coder.decode(torch.cat(levels)[index], chosen)
        return select_detections(boxes, scores, labels, batch.sizes, self.selection)


def atss(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck = {"name": "fpn", "start_level": 1, "extra": "on_output"},
    stacked_convs: int = 4,
    feat_channels: int | None = None,
    norm: Literal["none", "bn", "syncbn", "gn"] = "gn",
    anchor_scale: float = 8.0,
    assigner: Assigner = "atss",
    loss_cls: Loss = "focal",
    loss_bbox: Loss = {"name": "giou", "weight": 2.0},
    loss_centerness: Loss = {"name": "cross_entropy", "sigmoid": True},
    prior_probability: float = 0.01,
    score_threshold: float = 0.05,
    nms_pre: int = 1000,
    nms_threshold: float = 0.6,
    max_per_image: int = 100,
) -> SingleStageDetector:
    """Return ATSS; its head is as wide as the neck unless `feat_channels` says otherwise.

    `anchor_scale` is the side of an anchor in strides; `norm` the normalisation in the head; for the rest see
    `Selection`.
    """
    body = build("backbones", backbone)
    pyramid = build("necks", neck, in_channels=body.out_channels, in_strides=body.strides)
    head = ATSSHead(
        pyramid.out_channels,
        feat_channels or pyramid.out_channels,
        num_classes,
        AnchorGenerator(pyramid.strides, ratios=(1.0,), scales=(anchor_scale,)),
        DeltaBoxCoder(stds=(0.1, 0.1, 0.2, 0.2)),
        build("assigners", assigner),
        build("losses", loss_cls),
        build("losses", loss_bbox),
        build("losses", loss_centerness),
        Selection(score_threshold, nms_pre, nms_threshold, max_per_image),
        stacked_convs=stacked_convs,
        norm=norm,
        prior_probability=prior_probability,
    )
    return SingleStageDetector(body, pyramid, head)
