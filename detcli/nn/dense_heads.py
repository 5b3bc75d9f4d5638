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
from detcli.nn.blocks import ConvNorm, Norm, logit, normal_init
from detcli.nn.boxes import clip_boxes
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
    of others their own; `trained` anchors count in the classification loss.
    """

    labels: Tensor
    boxes: Tensor
    positive: Tensor
    trained: Tensor

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
    assigned = torch.stack(index)
    return anchors, DenseTargets(
        torch.stack(labels), torch.stack(boxes), positive=assigned >= 0, trained=assigned != IGNORED
    )


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
