"""From scored boxes to final detections: selection of the best and (soft) non-maximum suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision import ops

from detcli.nn.boxes import aligned_iou


@dataclass(frozen=True, slots=True)
class SoftNMS:
    """Soft-NMS: overlapping boxes keep a lower score instead of being removed (Bodla et al. 2017, section 3).

    `linear` multiplies the score by 1 - IoU where IoU >= the threshold, `gaussian` by exp(-IoU^2 / `sigma`)
    at any overlap. Boxes whose score falls below `min_score` are removed.
    """

    method: Literal["linear", "gaussian"] = "linear"
    sigma: float = 0.5
    min_score: float = 1e-3


def select_top(scores: Tensor, threshold: float, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `limit` best (anchor, class) pairs above `threshold`, without waiting for the device.

    scores [N,A,K] are probabilities or logits, and `threshold` is of the same kind. The result is (scores,
    anchor index, label), each [N, min(limit, A*K)], best first; scores are -inf where nothing more is above
    the threshold (so a sigmoid makes them 0).
    """
    anchors, classes = scores.shape[-2:]
    # The best pairs lie on the anchors whose best class is best: only those rows need sorting.
    rows = scores.amax(-1).topk(min(limit, anchors), dim=-1).indices
    pairs = scores.gather(-2, rows[..., None].expand(*rows.shape, classes)).flatten(-2)
    best, index = pairs.topk(min(limit, pairs.shape[-1]), dim=-1)
    best = best.masked_fill(best <= threshold, -torch.inf)
    return best, rows.gather(-1, index // classes), index % classes


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that stay, best first; boxes suppress others of their label only.

    boxes [D,4] xyxy; scores [D]; labels [D] int64. A box goes when its IoU with a better one is greater than
    the threshold.
    """
    keep: Tensor = ops.batched_nms(boxes.float(), scores.float(), labels, iou_threshold)
    return keep


def batched_soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, soft: SoftNMS, limit: int
) -> tuple[Tensor, Tensor]:
    """Return the indices of at most `limit` boxes and their lowered scores, best first.

    boxes [D,4] xyxy; scores [D]; labels [D] int64. Scores only fall, so the first `limit` that are chosen are
    the best. Runs on the CPU: each choice depends on the one before.
    """
    device = boxes.device
    boxes, labels, remaining = boxes.float().cpu(), labels.cpu(), scores.float().cpu().clone()
    chosen: list[Tensor] = []
    chosen_scores: list[Tensor] = []
    for _ in range(min(limit, len(boxes))):
        score, best = remaining.max(0)
        if score < soft.min_score:
            break
        chosen.append(best)
        chosen_scores.append(score)
        iou = ops.box_iou(boxes[best][None], boxes)[0]
        if soft.method == "linear":
            decay = torch.where(iou >= iou_threshold, 1 - iou, 1.0)
        else:
            decay = torch.exp(-iou.square() / soft.sigma)
        remaining *= torch.where(labels == labels[best], decay, 1.0)
        remaining[best] = -torch.inf
    if not chosen:
        return labels.new_zeros(0).to(device), scores.new_zeros(0, dtype=torch.float32)
    return torch.stack(chosen).to(device), torch.stack(chosen_scores).to(device)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    max_per_image: int,
    soft: SoftNMS | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the indices and scores of at most `max_per_image` detections of one image, best first.

    boxes [D,4] xyxy; scores [D]; labels [D] int64. With `soft`, scores are lowered in place of hard
    suppression.
    """
    if soft is not None:
        return batched_soft_nms(boxes, scores, labels, iou_threshold, soft, max_per_image)
    keep = batched_nms(boxes, scores, labels, iou_threshold)[:max_per_image]
    return keep, scores[keep]


def fast_nms(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    iou_threshold: float,
    top_k: int,
    max_per_image: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `multiclass_nms` does, by fast NMS (Bolya et al. 2019, YOLACT, section 3.3).

    boxes [M,4]; scores [M,K] without background. The best `top_k` boxes of each class are compared all at once: one
    goes when its IoU with a better one is greater than the threshold, even where the better one goes, too.
    """
    best, rows = scores.T.topk(min(top_k, len(scores)), dim=1)
    candidates = boxes[rows]
    overlaps = aligned_iou(candidates[:, :, None], candidates[:, None]).triu(diagonal=1)
    stay = (best > score_threshold) & (overlaps.amax(1) <= iou_threshold)
    labels = torch.arange(len(best), device=best.device)[:, None].expand_as(best)[stay]
    found, order = best[stay].sort(descending=True)
    order = order[:max_per_image]
    index = rows[stay][order]
    return boxes[index], found[:max_per_image], labels[order], index


def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_per_image: int,
    score_factors: Tensor | None = None,
    soft: SoftNMS | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (boxes [D,4], scores [D], labels [D], index [D] of the input row) of one image, best first.

    boxes [M,4], or [M,K,4] with a box for each class; scores [M,K] without background. Pairs with a score
    greater than `score_threshold` enter; then their scores are multiplied by `score_factors` [M]
    (centerness).
    """
    rows, labels = (scores > score_threshold).nonzero(as_tuple=True)
    candidates = boxes[rows, labels] if boxes.dim() == 3 else boxes[rows]
    values = scores[rows, labels]
    if score_factors is not None:
        values = values * score_factors[rows]
    keep, values = suppress(candidates, values, labels, iou_threshold, max_per_image, soft)
    return candidates[keep], values, labels[keep], rows[keep]
