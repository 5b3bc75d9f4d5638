"""GHM: Gradient Harmonized Single-stage Detector (Li et al. 2019, arXiv 1811.05181).

The losses GHM-C of classes and GHM-R of boxes; the names in quotes are the paper's headings. Deviations from the
paper, as in MMDetection: gradients are counted on each level of the pyramid by itself, one after another, while all
levels share one moving average; weights are divided by the number of bins that are not empty.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from detcli.nn.losses import one_hot


class GradientDensity(nn.Module):
    """How many samples have a gradient of similar length ("Gradient Density"), counted in bins between `edges`.

    With a `momentum`, counts are a moving average over calls ("EMA"), which checkpoints keep as `acc_sum`; each process
    has its own.
    """

    by_level = True

    def __init__(self, edges: Tensor, momentum: float, factor: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.factor = factor
        self.edges: Tensor
        self.acc_sum: Tensor
        self.register_buffer("edges", edges)
        if momentum > 0:
            self.register_buffer("acc_sum", torch.zeros(len(edges) - 1))

    @torch.no_grad()
    def harmonised(self, lengths: Tensor, taking_part: Tensor) -> Tensor:
        """Return the share of each sample in the loss: those of crowded bins have less ("GHM-C Loss").

        lengths [...] of gradients and which samples are `taking_part` [...]; the shares of the others are 0.
        """
        # Bin 0 is of those that take no part, the last of what is beyond all edges: not finite.
        which = torch.bucketize(lengths, self.edges, right=True).masked_fill_(~taking_part, 0).flatten()
        counts = torch.zeros(len(self.edges) + 1, dtype=torch.int64, device=which.device)
        counts = counts.scatter_add_(0, which, counts.new_ones(()).expand_as(which))[1:-1]
        filled = counts > 0
        density: Tensor = counts.float()
        if self.momentum > 0:
            moved = self.momentum * self.acc_sum + (1 - self.momentum) * density
            self.acc_sum.copy_(torch.where(filled, moved, self.acc_sum))
            density = self.acc_sum
        shares = torch.where(filled, 1 / density, 0.0) / filled.sum().clamp(min=1)
        return functional.pad(shares, (1, 1)).index_select(0, which).view_as(lengths)


class GHMClassification(GradientDensity):
    """GHM-C: the sigmoid cross-entropy of harmonised samples; each class of each anchor is one."""

    def __init__(self, bins: int, momentum: float, factor: float) -> None:
        edges = torch.arange(bins + 1) / bins
        edges[-1] += 1e-6
        super().__init__(edges, momentum, factor)

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """Return the loss, a scalar, of logits [N,C] for labels [N] in 0..C, C for background, or targets [N,C] 0..1.

        Rows or elements of weight 0 take no part; other weights and `avg_factor` change nothing.
        """
        pred = pred.float()
        goals = (one_hot(target, pred.shape[1]) if target.ndim < pred.ndim else target).float()
        shares = self.harmonised((pred.sigmoid() - goals).abs(), _taking_part(weight, pred))
        return functional.binary_cross_entropy_with_logits(pred, goals, shares, reduction="sum") * self.factor


class GHMRegression(GradientDensity):
    """GHM-R: the smooth L1 loss sqrt(d² + mu²) - mu of harmonised differences d ("GHM-R Loss")."""

    def __init__(self, mu: float, bins: int, momentum: float, factor: float) -> None:
        edges = torch.arange(bins + 1) / bins
        edges[-1] = 1e3
        super().__init__(edges, momentum, factor)
        self.mu = mu

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """Return the loss, a scalar, of deltas [N,4] for those of the objects.

        Rows or elements of weight 0 take no part; other weights and `avg_factor` change nothing.
        """
        difference = pred.float() - target
        length = (difference.square() + self.mu**2).sqrt()
        shares = self.harmonised((difference / length).abs(), _taking_part(weight, pred))
        return ((length - self.mu) * shares).sum() * self.factor


def _taking_part(weight: Tensor | None, pred: Tensor) -> Tensor:
    """Return which elements of `pred` count, bool of its shape, by weights of rows or elements."""
    if weight is None:
        return torch.ones_like(pred, dtype=torch.bool)
    return (weight > 0).reshape(weight.shape + (1,) * (pred.ndim - weight.ndim)).expand_as(pred)


def ghm_c(*, bins: int = 30, momentum: float = 0.75, weight: float = 1.0) -> GHMClassification:
    """Return GHM-C; gradients' lengths 0..1 are counted in `bins`, with a moving average of `momentum`."""
    return GHMClassification(bins, momentum, weight)


def ghm_r(*, mu: float = 0.02, bins: int = 10, momentum: float = 0.7, weight: float = 10.0) -> GHMRegression:
    """Return GHM-R; differences much smaller than `mu` have a square loss; for the rest see `ghm_c`."""
    return GHMRegression(mu, bins, momentum, weight)
