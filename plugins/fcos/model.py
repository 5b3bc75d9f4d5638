"""FCOS: Fully Convolutional One-Stage Object Detection (Tian et al. 2019, arXiv 1904.01355).

Every location predicts a class, the distances to the four sides of its box and its centerness. The authors'
later improvements are arguments, off by default: `center_sampling`, `norm_on_bbox`, `centerness_on_reg` and a
GIoU loss; the recipe fcos_tricks has them on. Deviation from the paper, as in its own code and in
MMDetection: the loss of boxes is weighted by their centerness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detcli.errors import UsageError
from detcli.nn.anchors import PointGenerator
from detcli.nn.assigners import MAX_PAIRS, NEGATIVE
from detcli.nn.blocks import Scale
from detcli.nn.box_coders import DistanceBoxCoder
from detcli.nn.boxes import box_area
from detcli.nn.dense_heads import (
    Selection,
    centerness,
    conv_tower,
    flatten_maps,
    init_dense_head,
    map_sizes,
    select_candidates,
    select_detections,
)
from detcli.nn.detector import SingleStageDetector
from detcli.nn.losses import Loss as LossFunction
from detcli.nn.processes import reduce_mean
from detcli.plugin import Backbone, Loss, Neck
from detcli.registry import build
from detcli.structures import Batch, Detections, Target


class PointAssigner:
    """Gives each point the smallest object that it lies in and that is of its level's size (section 3.2).

    Level i takes objects whose farthest side is `regress_limits`[i-1] to `regress_limits`[i] pixels away.
    With a `center_radius`, a point must also lie within that many strides of the object's centre, along both
    axes.
    """

    def __init__(self, strides: Sequence[int], regress_limits: Sequence[float], center_radius: float | None) -> None:
        if len(regress_limits) != len(strides) - 1:
            raise UsageError(
                f"regress_limits of model 'fcos' has {len(regress_limits)} numbers, but the neck "
                f"has {len(strides)} levels: give it one for each border between them, {len(strides) - 1}."
            )
        self.strides = strides
        self.limits = (-1.0, *regress_limits, math.inf)
        self.center_radius = center_radius

    @torch.no_grad()
    def __call__(self, levels: Sequence[Tensor], target: Target) -> Tensor:
        """Return the index of the object of each point, int64 [P], `NEGATIVE` where there is none.

        `levels` are the points [H*W,2] of each level. Memory is bounded for any number of objects.
        """
        assigned = []
        for points, stride, low, high in zip(levels, self.strides, self.limits, self.limits[1:], strict=False):
            smallest = points.new_full((len(points),), math.inf)
            gt_index = torch.full_like(smallest, NEGATIVE, dtype=torch.int64)
            step = max(1, MAX_PAIRS // len(points))
            for first in range(0, len(target.boxes), step):
                boxes = target.boxes[first : first + step]
                distances = DistanceBoxCoder().encode(points[:, None], boxes)
                farthest = distances.amax(-1)
                chosen = (distances.amin(-1) > 0) & (farthest >= low) & (farthest <= high)
                if self.center_radius is not None:
                    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
                    offset = (points[:, None] - centers).abs().amax(-1)
                    chosen &= offset < self.center_radius * stride
                area, index = torch.where(chosen, box_area(boxes), math.inf).min(1)
                gt_index = torch.where(area < smallest, index + first, gt_index)
                smallest = torch.minimum(smallest, area)
            assigned.append(gt_index)
        return torch.cat(assigned)


class FCOSHead(nn.Module):
    """Classes, distances and centerness of every location, from two towers that all levels share (figure 2).

    Each level has a learned factor `scales.N` on its distances (section 3.2). With `norm_on_bbox`, distances
    count in strides and pass a ReLU; without, they are in pixels and pass an exponential.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        num_classes: int,
        points: PointGenerator,
        assigner: PointAssigner,
        loss_cls: LossFunction,
        loss_bbox: LossFunction,
        loss_centerness: LossFunction,
        selection: Selection,
        *,
        stacked_convs: int,
        norm: Literal["none", "bn", "syncbn", "gn"],
        conv_bias: bool,
        norm_on_bbox: bool,
        centerness_on_reg: bool,
        rank_by: Literal["class", "root"],
        prior_probability: float,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.points = points
        self.box_coder = DistanceBoxCoder()
        self.assigner = assigner
        self.loss_cls = loss_cls
        self.loss_bbox = loss_bbox
        self.loss_centerness = loss_centerness
        self.selection = selection
        self.norm_on_bbox = norm_on_bbox
        self.centerness_on_reg = centerness_on_reg
        self.rank_by = rank_by
        bias: bool | Literal["auto"] = conv_bias or "auto"
        self.cls_convs = conv_tower(in_channels, feat_channels, stacked_convs, norm, bias)
        self.reg_convs = conv_tower(in_channels, feat_channels, stacked_convs, norm, bias)
        channels = feat_channels if stacked_convs else in_channels
        self.conv_cls = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in points.strides)
        init_dense_head(self, self.conv_cls, prior_probability)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits [N,P,C], distances [N,P,4] before ReLU or exp, and centerness logits [N,P]."""
        logits, raw, central = [], [], []
        for level, scale in zip(features, self.scales, strict=True):
            cls_hidden, reg_hidden = self.cls_convs(level), self.reg_convs(level)
            logits.append(self.conv_cls(cls_hidden))
            raw.append(scale(self.conv_reg(reg_hidden)))
            central.append(self.conv_centerness(reg_hidden if self.centerness_on_reg else cls_hidden))
        return flatten_maps(logits, self.num_classes), flatten_maps(raw, 4), flatten_maps(central, 1)[..., 0]

    def losses(self, features: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return loss_cls, loss_bbox and loss_centerness (equation 2)."""
        assert batch.targets is not None
        logits, raw, central = self(features)
        levels = self.points(map_sizes(features), logits.device)
        points = torch.cat(levels)
        labels, distances = [], []
        for target in batch.targets:
            index = self.assigner(levels, target)
            # A row more, of background: what the index -1 looks up.
            labels.append(torch.cat([target.labels, target.labels.new_full((1,), self.num_classes)])[index])
            boxes = torch.cat([target.boxes, target.boxes.new_zeros(1, 4)])[index]
            distances.append(self.box_coder.encode(points, boxes))
        label = torch.stack(labels)
        positive = label < self.num_classes
        num_positive = reduce_mean(positive.sum(), least=1)

        # Other points get fixed distances: their weight of 0 would not stop an infinite one.
        units = self._strides(levels) if self.norm_on_bbox else points.new_ones(len(points))
        goals = torch.where(positive[..., None], torch.stack(distances) / units[:, None], 1.0)
        predicted = self._activate(torch.where(positive[..., None], raw.float(), 0.0))
        central_goals = centerness(goals) * positive
        # Overlaps of boxes around the same point do not depend on where the point is.
        origin = points.new_zeros(2)
        return {
            "loss_cls": self.loss_cls(logits.flatten(0, 1), label.flatten(), None, num_positive),
            "loss_bbox": self.loss_bbox(
                self.box_coder.decode(origin, predicted).flatten(0, 1),
                self.box_coder.decode(origin, goals).flatten(0, 1),
                central_goals.flatten(),
                reduce_mean(central_goals.sum(), least=1e-6),
            ),
            "loss_centerness": self.loss_centerness(
                central.flatten(), central_goals.flatten(), positive.flatten().float(), num_positive
            ),
        }

    @torch.no_grad()
    def detect(self, features: Sequence[Tensor], batch: Batch) -> list[Detections]:
        """Return the detections of each image; centerness counts in their scores before NMS."""
        logits, raw, central = self(features)
        levels = self.points(map_sizes(features), logits.device)
        counts = [len(level) for level in levels]
        if self.rank_by == "root":
            scores, index, labels = select_candidates(logits, counts, self.selection, central)
        else:
            scores, index, labels = select_candidates(logits, counts, self.selection)
            scores = scores * central.gather(1, index).float().sigmoid()
        distances = self._activate(raw.gather(1, index[..., None].expand(-1, -1, 4)).float())
        if self.norm_on_bbox:
            distances = distances * self._strides(levels)[index][..., None]
        boxes = self.box_coder.decode(torch.cat(levels)[index], distances)
        return select_detections(boxes, scores, labels, batch.sizes, self.selection)

    def _activate(self, raw: Tensor) -> Tensor:
        return raw.relu() if self.norm_on_bbox else raw.exp()

    def _strides(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the stride of each point [P]."""
        return torch.cat(
            [
                points.new_full((len(points),), float(stride))
                for points, stride in zip(levels, self.points.strides, strict=True)
            ]
        )


def fcos(
    *,
    num_classes: int,
    backbone: Backbone = "r50_caffe",
    neck: Neck = {"name": "fpn", "start_level": 1, "extra": "on_output", "relu_before_extra": True},
    stacked_convs: int = 4,
    feat_channels: int | None = None,
    norm: Literal["none", "bn", "syncbn", "gn"] = "gn",
    conv_bias: bool = False,
    regress_limits: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0),
    center_sampling: bool = False,
    center_radius: float = 1.5,
    norm_on_bbox: bool = False,
    centerness_on_reg: bool = False,
    rank_by: Literal["class", "root"] = "class",
    point_offset: float = 0.5,
    whole_pixels: bool = False,
    loss_cls: Loss = "focal",
    loss_bbox: Loss = "iou",
    loss_centerness: Loss = {"name": "cross_entropy", "sigmoid": True},
    prior_probability: float = 0.01,
    score_threshold: float = 0.05,
    nms_pre: int = 1000,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> SingleStageDetector:
    """Return FCOS; its head is as wide as the neck unless `feat_channels` says otherwise.

    `norm` is the normalisation in the head, `conv_bias` gives its convolutions a bias beside it;
    `center_sampling` trains only points within `center_radius` strides of an object's centre. `rank_by` is what
    candidates are chosen by: their class score, which is then multiplied by centerness, or the square root of that
    product, which is then their score, too (torchvision). For the rest see `PointGenerator`, `PointAssigner`,
    `FCOSHead` and `Selection`.
    """
    body = build("backbones", backbone)
    pyramid = build("necks", neck, in_channels=body.out_channels, in_strides=body.strides)
    head = FCOSHead(
        pyramid.out_channels,
        feat_channels or pyramid.out_channels,
        num_classes,
        PointGenerator(pyramid.strides, offset=point_offset, whole_pixels=whole_pixels),
        PointAssigner(pyramid.strides, regress_limits, center_radius if center_sampling else None),
        build("losses", loss_cls),
        build("losses", loss_bbox),
        build("losses", loss_centerness),
        Selection(score_threshold, nms_pre, nms_threshold, max_per_image),
        stacked_convs=stacked_convs,
        norm=norm,
        conv_bias=conv_bias,
        norm_on_bbox=norm_on_bbox,
        centerness_on_reg=centerness_on_reg,
        rank_by=rank_by,
        prior_probability=prior_probability,
    )
    return SingleStageDetector(body, pyramid, head)
