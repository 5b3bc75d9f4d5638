"""RetinaNet: Focal Loss for Dense Object Detection (Lin et al. 2017, arXiv 1708.02002).

Deviations from the paper, as in MMDetection: L1 in place of smooth L1 on the box deltas; the anchors that
overlap an object most are positive even below an IoU of 0.5; no ReLU between P6 and P7. Detectron2, Detectron
and MMDetection 0 differ from both in the order and places of anchors, the object of a low-quality match,
anchors on padding, the loss of boxes, the divisor of the losses, and the limits of deltas and boxes: each is
an argument, and the recipes named after them set them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import AnchorAssigner
from detcli.nn.box_coders import DeltaBoxCoder
from detcli.nn.dense_heads import (
    DenseTargets,
    Selection,
    assign_anchors,
    conv_tower,
    flatten_maps,
    init_dense_head,
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

INITIAL_NORMALIZER = 100.0


class RetinaHead(nn.Module):
    """Two towers that all levels share, one for classes and one for boxes (section 4, figure 3).

    With a `normalizer_momentum`, losses are divided by a moving average of the number of positive anchors in
    place of this batch's number; it starts at 100 and is not part of a checkpoint.
    """

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
        selection: Selection,
        *,
        stacked_convs: int,
        norm: Literal["none", "bn", "syncbn", "gn"],
        prior_probability: float,
        train_padding: bool,
        normalizer_momentum: float | None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.anchors = anchors
        self.box_coder = box_coder
        self.assigner = assigner
        self.loss_cls = loss_cls
        self.loss_bbox = loss_bbox
        self.selection = selection
        self.train_padding = train_padding
        self.normalizer_momentum = normalizer_momentum
        self.normalizer: Tensor
        self.register_buffer("normalizer", torch.tensor(INITIAL_NORMALIZER), persistent=False)
        self.cls_convs = conv_tower(in_channels, feat_channels, stacked_convs, norm)
        self.reg_convs = conv_tower(in_channels, feat_channels, stacked_convs, norm)
        channels = feat_channels if stacked_convs else in_channels
        self.retina_cls = nn.Conv2d(channels, anchors.num_base_anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, anchors.num_base_anchors * 4, 3, padding=1)
        init_dense_head(self, self.retina_cls, prior_probability)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the class logits [N,A,C] and box deltas [N,A,4] of the anchors of all levels."""
        logits = [self.retina_cls(self.cls_convs(level)) for level in features]
        deltas = [self.retina_reg(self.reg_convs(level)) for level in features]
        return flatten_maps(logits, self.num_classes), flatten_maps(deltas, 4)

    def losses(self, features: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return loss_cls (equation 5) and loss_bbox, both divided by the number of positive anchors."""
        logits, deltas = self(features)
        sizes = map_sizes(features)
        anchors, targets = assign_anchors(
            self.assigner, self.anchors, sizes, batch, self.num_classes, train_padding=self.train_padding
        )
        divisor = self._divisor(targets)
        goals = self.box_coder.encode(anchors, targets.boxes)
        counts = [height * width * self.anchors.num_base_anchors for height, width in sizes]
        return {
            "loss_cls": loss_of_levels(self.loss_cls, counts, logits, targets.labels, targets.trained.float(), divisor),
            "loss_bbox": loss_of_levels(self.loss_bbox, counts, deltas, goals, targets.positive.float(), divisor),
        }

    @torch.no_grad()
    def detect(self, features: Sequence[Tensor], batch: Batch) -> list[Detections]:
        """Return the detections of each image (section 4.1, inference)."""
        logits, deltas = self(features)
        levels = self.anchors(map_sizes(features), logits.device)
        scores, index, labels = select_candidates(logits, [len(level) for level in levels], self.selection)
        chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4)).float()
        boxes = self.box_coder.decode(torch.cat(levels)[index], chosen)
        return select_detections(boxes, scores, labels, batch.sizes - self.box_coder.pixel, self.selection)

    def _divisor(self, targets: DenseTargets) -> Tensor:
        if self.normalizer_momentum is None:
            return reduce_mean(targets.num_positive())
        momentum, num_positive = self.normalizer_momentum, reduce_mean(targets.positive.sum(), least=1)
        self.normalizer = momentum * self.normalizer + (1 - momentum) * num_positive
        return self.normalizer


def retinanet(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck = {"name": "fpn", "start_level": 1, "extra": "on_input"},
    stacked_convs: int = 4,
    feat_channels: int | None = None,
    norm: Literal["none", "bn", "syncbn", "gn"] = "none",
    octave_base_scale: float = 4.0,
    scales_per_octave: int = 3,
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    anchor_order: Literal["ratio", "scale"] = "ratio",
    anchor_style: Literal["exact", "torchvision", "v1", "detectron"] = "exact",
    assigner: Assigner = "max_iou",
    loss_cls: Loss = "focal",
    loss_bbox: Loss = "l1",
    train_padding: bool = False,
    normalizer_momentum: float | None = None,
    coder_style: Literal["exact", "v1"] = "exact",
    clamp_below: bool = True,
    prior_probability: float = 0.01,
    score_threshold: float = 0.05,
    nms_pre: int = 1000,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
    clip: Literal["before_nms", "after_nms"] = "before_nms",
) -> SingleStageDetector:
    """Return RetinaNet; its head is as wide as the neck unless `feat_channels` says otherwise.

    `norm` follows each convolution of the head. `train_padding` trains anchors on the padding of smaller images of a
    batch as background. For the rest see `AnchorGenerator`, `DeltaBoxCoder`, `RetinaHead` and `Selection`.
    """
    body = build("backbones", backbone)
    pyramid = build("necks", neck, in_channels=body.out_channels, in_strides=body.strides)
    head = RetinaHead(
        pyramid.out_channels,
        feat_channels or pyramid.out_channels,
        num_classes,
        AnchorGenerator(
            pyramid.strides,
            ratios=ratios,
            octave_base_scale=octave_base_scale,
            scales_per_octave=scales_per_octave,
            order=anchor_order,
            style=anchor_style,
        ),
        DeltaBoxCoder(clamp_below=clamp_below, style=coder_style),
        build("assigners", assigner),
        build("losses", loss_cls),
        build("losses", loss_bbox),
        Selection(score_threshold, nms_pre, nms_threshold, max_per_image, clip),
        stacked_convs=stacked_convs,
        norm=norm,
        prior_probability=prior_probability,
        train_padding=train_padding,
        normalizer_momentum=normalizer_momentum,
    )
    return SingleStageDetector(body, pyramid, head)
