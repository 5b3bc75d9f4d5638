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

    def __call__(self, assignment: Assignment, seed: Tensor | None = None) -> Sample:
        """Return K = min(num, candidates) rows, drawn from the image's own `seed`, int64, or from torch's generator.

        Positives are in the order in which they were drawn, and so are negatives: some first ones are a draw, too.
        With a seed, the draw is the same on every device and in any number of processes.
        """
        gt_index = assignment.gt_index
        count = len(gt_index)
        limit = min(int(self.num * self.positive_fraction), count)
        total = min(self.num, count)
        order = draw(seed, count, gt_index.device)
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


def hardest(losses: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Return which of the `candidates` [N,A] of each image are the `counts` [N] with the greatest losses [N,A].

    Online hard example mining, as SSD does it with negatives (Liu et al. 2016, section 2.2).
    """
    ranked = losses.detach().float().masked_fill(~candidates, -torch.inf).argsort(dim=1, descending=True)
    chosen = torch.arange(losses.shape[1], device=losses.device) < counts[:, None]
    return torch.zeros_like(candidates).scatter(1, ranked, chosen) & candidates


def draw(seed: Tensor | None, count: int, device: torch.device) -> Tensor:
    """Return random numbers [count] in 0..1: `uniform` of the `seed`, or without one of torch's generator."""
    return torch.rand(count, device=device) if seed is None else uniform(seed, count)


def uniform(seed: Tensor, count: int) -> Tensor:
    """Return numbers [count] in 0..1 that depend on `seed`, a scalar int64, and their position alone.

    The counter is mixed by two rounds of multiplication and shifts (Salmon et al. 2011, "Parallel random numbers: as
    easy as 1, 2, 3", on counter-based generators; the constants are lowbias32's of Wellons 2018).
    """
    low = 0xFFFFFFFF
    position = torch.arange(count, device=seed.device)
    mixed = seed
    for term in (seed >> 32, position):
        mixed = (mixed + term * 0x9E3779B9) & low
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            mixed = ((mixed ^ (mixed >> shift)) * factor) & low
        mixed = mixed ^ (mixed >> 16)
    # 24 bits are what float32 holds exactly.
    return (mixed >> 8).float() / 2**24


def random(*, num: int, positive_fraction: float, add_gt: bool = False, negative_ratio: float = -1) -> RandomSampler:
    """Return a sampler of a random share of positives and negatives (Faster R-CNN, section 3.1.3)."""
    return RandomSampler(num, positive_fraction, add_gt, negative_ratio)


def _first(chosen: Tensor, order: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices [count] of the `chosen` [A] first in `order` [A], and which of these are chosen."""
    index = torch.where(chosen, order, 2.0).topk(count, largest=False).indices
    return index, chosen[index]
