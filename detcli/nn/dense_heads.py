"""What heads share that predict boxes at every location of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from detcli.nn.anchors import AnchorGenerator, inside_images
from detcli.nn.assigners import IGNORED, AnchorAssigner
from detcli.nn.blocks import ConvNorm, Norm, Scale, logit, normal_init
from detcli.nn.boxes import clip_boxes
from detcli.nn.losses import LossFunction
from detcli.nn.postprocess import batched_nms, select_top
from detcli.structures import Batch, Detections


@dataclass(frozen=True, slots=True)
class Selection:
    """How detections are chosen from what a head predicts.

    The best `nms_pre` pairs of location and class with a score above `score_threshold` of each level enter
    NMS at an IoU of `nms_threshold`; the best `max_per_image` leave it. Boxes are cut at the borders of the
    image before NMS (MMDetection), or after it, when those without area are dropped (Detectron2).
    """

    score_threshold: float = 0.05
    nms_pre: int = 1000
    nms_threshold: float = 0.5
    max_per_image: int = 100
    clip: Literal["before_nms", "after_nms"] = "before_nms"


@dataclass(slots=True)
class DenseTargets:
    """What the anchors of a batch are to predict, all [N,A].

    labels int64, the number of classes for background; boxes [N,A,4], of `positive` anchors their object's,
    of others their own; gt_index int64, the object in its image, or as `Assignment` has it.
    """

    labels: Tensor
    boxes: Tensor
    gt_index: Tensor

    @property
    def positive(self) -> Tensor:
        """Which anchors have an object, bool."""
        return self.gt_index >= 0

    @property
    def trained(self) -> Tensor:
        """Which anchors count in the classification loss, bool."""
        return self.gt_index != IGNORED

    def num_positive(self) -> Tensor:
        """Return the number of positive anchors of the batch, counting at least 1 for each image."""
        return self.positive.sum(1).clamp(min=1).sum()


def conv_tower(
    in_channels: int,
    channels: int,
    depth: int,
    norm: Norm | Literal["none"],
    bias: bool | Literal["auto"] = "auto",
) -> nn.Sequential:
    """Return `depth` 3x3 convolutions with norm and ReLU; for `bias` see `ConvNorm`."""
    widths = [in_channels] + [channels] * depth
    return nn.Sequential(*(ConvNorm(before, after, 3, norm=norm, bias=bias) for before, after in pairwise(widths)))


def init_dense_head(head: nn.Module, classifier: nn.Conv2d, prior_probability: float) -> None:
    """Draw weights from N(0, 0.01²) and start `classifier` at a probability (RetinaNet, section 4.1)."""
    normal_init(head, std=0.01)
    assert classifier.bias is not None
    nn.init.constant_(classifier.bias, logit(prior_probability))


class ATSSLayers(nn.Module):
    """The layers of ATSS and what follows it: classes, boxes and one more number for the anchor of each location.

    Two towers that all levels share, and for each level a learned factor `scales.N` on its box deltas (FCOS,
    section 3.2). The number is how central the anchor is or, in other methods, how well its box will fit.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        num_classes: int,
        num_levels: int,
        *,
        stacked_convs: int,
        norm: Norm | Literal["none"],
        prior_probability: float,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_convs = conv_tower(in_channels, feat_channels, stacked_convs, norm)
        self.reg_convs = conv_tower(in_channels, feat_channels, stacked_convs, norm)
        channels = feat_channels if stacked_convs else in_channels
        self.atss_cls = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        init_dense_head(self, self.atss_cls, prior_probability)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits [N,A,C], box deltas [N,A,4] and the logits [N,A] of the number, of all levels."""
        logits, deltas, numbers = [], [], []
        for level, scale in zip(features, self.scales, strict=True):
            logits.append(self.atss_cls(self.cls_convs(level)))
            hidden = self.reg_convs(level)
            deltas.append(scale(self.atss_reg(hidden)))
            numbers.append(self.atss_centerness(hidden))
        return (
            flatten_maps(logits, self.num_classes),
            flatten_maps(deltas, 4),
            flatten_maps(numbers, 1)[..., 0],
        )


def flatten_maps(maps: Sequence[Tensor], channels: int) -> Tensor:
    """Return [N, all anchors, channels] of maps [N, A*channels, H, W], one a level, in anchor order."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, channels) for level in maps], dim=1)


def map_sizes(features: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return the (height, width) of each level."""
    return [(level.shape[-2], level.shape[-1]) for level in features]


def assign_anchors(
    assigner: AnchorAssigner,
    generator: AnchorGenerator,
    sizes: list[tuple[int, int]],
    batch: Batch,
    num_classes: int,
    *,
    train_padding: bool = False,
) -> tuple[Tensor, DenseTargets]:
    """Return the anchors [A,4] of maps of the given (height, width), and what each image has them predict.

    Anchors at locations beyond an image's own padding are not trained unless `train_padding`.
    """
    assert batch.targets is not None
    levels = generator(sizes, batch.images.device)
    anchors = torch.cat(levels)
    counts = [len(level) for level in levels]
    inside: Sequence[Tensor | None] = [None] * len(batch)
    if not train_padding:
        locations = inside_images(sizes, generator.strides, batch.sizes)
        inside = list(locations.repeat_interleave(generator.num_base_anchors, dim=1))
    labels, boxes, index = [], [], []
    for target, valid in zip(batch.targets, inside, strict=True):
        gt_index = assigner(anchors, target, counts, valid).gt_index
        # One object more, of background, is what negative and ignored anchors look up.
        background = target.labels.new_full((1,), num_classes)
        row = torch.where(gt_index >= 0, gt_index, len(target.labels))
        labels.append(torch.cat([target.labels, background])[row])
        own = torch.cat([target.boxes, target.boxes.new_zeros(1, 4)])[row]
        boxes.append(torch.where(gt_index[:, None] >= 0, own, anchors))
        index.append(gt_index)
    return anchors, DenseTargets(torch.stack(labels), torch.stack(boxes), torch.stack(index))


def loss_of_levels(
    loss: LossFunction,
    level_counts: Sequence[int],
    pred: Tensor,
    target: Tensor,
    weight: Tensor,
    avg_factor: Tensor | float,
) -> Tensor:
    """Return the loss of what all levels predict, a scalar: pred [N,A,K], target [N,A] or [N,A,K], weight [N,A].

    `level_counts` are the anchors of each level. Only a loss that is `by_level` sees one level after another.
    """
    losses = []
    start = 0
    for count in level_counts if loss.by_level else [pred.shape[1]]:
        level = slice(start, start + count)
        elements = pred[:, level].flatten(0, 1), target[:, level].flatten(0, 1), weight[:, level].flatten()
        losses.append(loss(*elements, avg_factor))
        start += count
    return torch.stack(losses).sum()


def select_candidates(
    logits: Tensor, level_counts: Sequence[int], selection: Selection, central: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what enters NMS: (scores, anchor index, label), each [N,K]; scores are 0 where there is no more.

    logits [N,A,C] of all levels, `level_counts` of them each. With centerness logits `central` [N,A], a score is the
    square root of a class's probability times centerness.
    """
    ranks, threshold = logits, logit(selection.score_threshold)
    if central is not None:
        ranks = (logits.float().sigmoid() * central.float().sigmoid()[..., None]).sqrt()
        threshold = selection.score_threshold
    scores, indices, labels = [], [], []
    start = 0
    for level in ranks.split_with_sizes(list(level_counts), dim=1):
        best, index, label = select_top(level, threshold, selection.nms_pre)
        scores.append(best.float().sigmoid() if central is None else best.clamp(min=0))
        indices.append(index + start)
        labels.append(label)
        start += level.shape[1]
    return torch.cat(scores, dim=1), torch.cat(indices, dim=1), torch.cat(labels, dim=1)


def select_detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, sizes: Tensor, selection: Selection
) -> list[Detections]:
    """Return the detections of each image from its candidates: boxes [N,K,4], scores [N,K], labels [N,K].

    sizes [N,2] are the (height, width) of the images. Candidates of score 0 are dropped.
    """
    if selection.clip == "before_nms":
        boxes = clip_boxes(boxes, sizes[:, None])
    detections = []
    for image in range(len(boxes)):
        rows = (scores[image] > 0).nonzero()[:, 0]
        found = Detections(boxes[image, rows], scores[image, rows], labels[image, rows])
        keep = batched_nms(found.boxes, found.scores, found.labels, selection.nms_threshold)
        found = found[keep[: selection.max_per_image]]
        if selection.clip == "after_nms":
            found.boxes = clip_boxes(found.boxes, sizes[image])
            found = found[(found.boxes[:, 2:] > found.boxes[:, :2]).all(1)]
        detections.append(found)
    return detections


def centerness(distances: Tensor) -> Tensor:
    """Return how central points are, 0..1 (Tian et al. 2019, FCOS, equation 3).

    distances [...,4] are those to the left, top, right and bottom of a box that the point is in.
    """
    left_top, right_bottom = distances[..., :2], distances[..., 2:]
    ratios = torch.minimum(left_top, right_bottom) / torch.maximum(left_top, right_bottom)
    return ratios.prod(-1).sqrt()
