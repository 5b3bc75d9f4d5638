"""Samplers: which anchors or proposals of an image a head is trained on.

No shape depends on a value, so that nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detcli.nn.assigners import NEGATIVE, Assignment


@dataclass(slots=True)
class Sample:
    """The sampled candidates of one image, positives first, then negatives, then rows that only fill up.

    index [K] int64 among the candidates; positive [K] and valid [K] bool; gt_index [K] int64: the object
    of a positive, `NEGATIVE` elsewhere. `positive_limit` rows at most are positive.
    """

    index: Tensor
    positive: Tensor
    valid: Tensor
    gt_index: Tensor
    positive_limit: int


@dataclass(frozen=True, slots=True)
class RandomSampler:
    """Draws up to `num` candidates, up to `num` x `positive_fraction` of them positive, all equally likely.

    Negatives fill what positives leave, up to `negative_ratio` for each positive (at least one counts); -1:
    without limit. `add_gt` asks the head to add the ground truth to the candidates.
    """

    num: int
    positive_fraction: float
    add_gt: bool = False
    negative_ratio: float = -1

    def __call__(self, assignment: Assignment) -> Sample:
        """Return K = min(num, candidates) rows; draws from torch's generator of the device."""
        gt_index = assignment.gt_index
        count = len(gt_index)
        limit = min(int(self.num * self.positive_fraction), count)
        total = min(self.num, count)
        order = torch.rand(count, device=gt_index.device)
        positives, is_positive = _first(gt_index >= 0, order, limit)
        negatives, is_negative = _first(gt_index == NEGATIVE, order, total)

        num_positive = is_positive.sum()
        room = self.num - num_positive
        if self.negative_ratio >= 0:
            room = torch.minimum(room, (num_positive.clamp(min=1) * self.negative_ratio).long())
        is_negative &= torch.arange(total, device=gt_index.device) < room

        index = torch.cat([positives, negatives])
        valid = torch.cat([is_positive, is_negative])
        kept = valid.byte().argsort(descending=True, stable=True)[:total]
        positive = valid[kept] & (kept < limit)
        index = index[kept]
        return Sample(index, positive, valid[kept], torch.where(positive, gt_index[index], NEGATIVE), limit)


def random(*, num: int, positive_fraction: float, add_gt: bool = False, negative_ratio: float = -1) -> RandomSampler:
    """Return a sampler of a random share of positives and negatives (Faster R-CNN, section 3.1.3)."""
    return RandomSampler(num, positive_fraction, add_gt, negative_ratio)


def _first(chosen: Tensor, order: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices [count] of the `chosen` [A] first in `order` [A], and which of these are chosen."""
    index = torch.where(chosen, order, 2.0).topk(count, largest=False).indices
    return index, chosen[index]
