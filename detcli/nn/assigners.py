"""Assigners: which object, if any, each anchor of an image is to predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from detcli.nn.boxes import aligned_iou, pairwise_iou
from detcli.structures import Target

NEGATIVE, IGNORED = -1, -2
MAX_PAIRS = 2**21
"""How many (object, anchor) pairs are compared at once; it bounds the memory of images with many objects."""


@dataclass(slots=True)
class Assignment:
    """What the anchors of one image are to predict.

    gt_index [A] int64: the object's index, `NEGATIVE` for background, `IGNORED` for anchors that take no
    part; iou [A] float32: the overlap that decided it, 0 where there is none.
    """

    gt_index: Tensor
    iou: Tensor


AnchorAssigner: TypeAlias = Callable[[Tensor, Target, list[int], Tensor | None], Assignment]
"""(anchors [A,4], target, anchors of each level, those that take part: [A] bool or None) -> Assignment."""


def max_iou(
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    min_positive: float = 0.0,
    match_low_quality: bool = True,
    low_quality_gt: Literal["own", "best"] = "own",
    claim_all: bool = True,
    ignore_iof: float = -1.0,
) -> AnchorAssigner:
    """Return an assigner by largest IoU (Ren et al. 2015, section 3.1.2).

    An anchor is positive for its best object at an IoU of `positive` or more, negative below `negative`,
    ignored between. With `match_low_quality`, the anchors that overlap an object most (by `min_positive` or
    more, and more than 0) become positive too: for that object (`own`, as in MMDetection, the last one where
    several claim an anchor) or for the anchor's own `best` (as in Detectron2). Of anchors that overlap it equally it
    claims all, or only the first without `claim_all`. Anchors of which a part
    greater than `ignore_iof` is covered by a crowd region are ignored; -1 looks at no crowd regions.
    """

    @torch.no_grad()
    def assign(anchors: Tensor, target: Target, level_counts: list[int], valid: Tensor | None = None) -> Assignment:
        taking_part = anchors.new_ones(len(anchors), dtype=torch.bool) if valid is None else valid
        if ignore_iof > 0 and len(target.ignored):
            for crowd in _chunks(target.ignored, len(anchors)):
                taking_part = taking_part & (pairwise_iou(anchors, crowd, "iof") <= ignore_iof).all(1)

        best = anchors.new_zeros(len(anchors))
        best_gt = torch.full_like(best, NEGATIVE, dtype=torch.int64)
        low_quality_for = best_gt.clone()
        first = 0
        for boxes in _chunks(target.boxes, len(anchors)):
            iou = pairwise_iou(boxes, anchors) * taking_part
            chunk_best, chunk_gt = iou.max(0)
            best_gt = torch.where(chunk_best > best, chunk_gt + first, best_gt)
            best = torch.maximum(best, chunk_best)
            if match_low_quality:
                peak = iou.amax(1, keepdim=True)
                index = torch.arange(first, first + len(boxes), device=anchors.device)[:, None]
                claims = (iou == peak) & (peak > 0) & (peak >= min_positive)
                if not claim_all:
                    claims &= claims.cumsum(1) == 1
                low_quality_for = torch.maximum(low_quality_for, torch.where(claims, index, NEGATIVE).amax(0))
            first += len(boxes)

        gt_index = torch.where(best < negative, NEGATIVE, IGNORED)
        gt_index = torch.where(best >= positive, best_gt, gt_index)
        claimed = low_quality_for >= 0
        gt_index = torch.where(claimed, low_quality_for if low_quality_gt == "own" else best_gt, gt_index)
        return Assignment(gt_index.masked_fill(~taking_part, IGNORED), best)

    return assign


def atss(*, topk: int = 9) -> AnchorAssigner:
    """Return the adaptive training sample selection of Zhang et al. 2020 (ATSS, algorithm 1).

    The candidates of an object are the `topk` anchors of each level that are nearest to its centre; those
    whose IoU reaches the mean plus the standard deviation of all candidates' IoU, and whose centre lies in
    the object, are positive. An anchor that several objects choose goes to the one with the largest IoU.
    """

    @torch.no_grad()
    def assign(anchors: Tensor, target: Target, level_counts: list[int], valid: Tensor | None = None) -> Assignment:
        best = anchors.new_zeros(len(anchors))
        best_gt = torch.full_like(best, NEGATIVE, dtype=torch.int64)
        first = 0
        for boxes in _chunks(target.boxes, max(level_counts)):
            candidates = _nearest(anchors, boxes, level_counts, topk, valid)
            exists = torch.ones_like(candidates, dtype=torch.bool) if valid is None else valid[candidates]
            candidate_boxes = anchors[candidates]
            iou = aligned_iou(candidate_boxes, boxes[:, None]) * exists

            count = exists.sum(1, keepdim=True)
            mean = iou.sum(1, keepdim=True) / count
            variance = ((iou - mean) * exists).square().sum(1, keepdim=True) / (count - 1)
            centers = (candidate_boxes[..., :2] + candidate_boxes[..., 2:]) / 2
            to_sides = torch.cat([centers - boxes[:, None, :2], boxes[:, None, 2:] - centers], dim=-1)
            chosen = exists & (iou >= mean + variance.sqrt()) & (to_sides.amin(-1) > 0.01)

            # The largest IoU of each anchor, then the first object that reaches it.
            iou, candidates = torch.where(chosen, iou, 0.0).flatten(), candidates.flatten()
            chunk_best = torch.zeros_like(best).scatter_reduce(0, candidates, iou, "amax")
            owner = torch.arange(first, first + len(boxes), device=anchors.device).repeat_interleave(exists.shape[1])
            owner = torch.where((iou > 0) & (iou == chunk_best[candidates]), owner, torch.iinfo(torch.int64).max)
            chunk_gt = torch.full_like(best_gt, torch.iinfo(torch.int64).max)
            chunk_gt = chunk_gt.scatter_reduce(0, candidates, owner, "amin")
            best_gt = torch.where(chunk_best > best, chunk_gt, best_gt)
            best = torch.maximum(best, chunk_best)
            first += len(boxes)
        if valid is not None:
            best_gt = best_gt.masked_fill(~valid, IGNORED)
        return Assignment(best_gt, best)

    return assign


def _nearest(anchors: Tensor, boxes: Tensor, level_counts: list[int], topk: int, valid: Tensor | None) -> Tensor:
    """Return the indices [G,K] of the `topk` anchors of each level nearest to the centres of boxes [G,4].

    Anchors that are not `valid` come last, and only where a level has too few others.
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    nearest = []
    start = 0
    for count in level_counts:
        level = slice(start, start + count)
        distance = (box_centers - centers[level]).square().sum(-1).sqrt()
        if valid is not None:
            distance = distance.masked_fill(~valid[level], torch.inf)
        nearest.append(distance.topk(min(topk, count), dim=1, largest=False).indices + start)
        start += count
    return torch.cat(nearest, dim=1)


def _chunks(boxes: Tensor, partners: int) -> Iterator[Tensor]:
    """Yield boxes [G,4] in parts that make at most `MAX_PAIRS` pairs with `partners` anchors."""
    if len(boxes) and partners:
        yield from torch.split(boxes, max(1, MAX_PAIRS // partners))
