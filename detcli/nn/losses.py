"""Losses of classes and boxes: a builder each, which returns a `Loss`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from detcli.nn.boxes import EPSILON, aligned_iou


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of single elements, times `factor`, reduced to one number."""

    elements: Callable[[Tensor, Tensor], Tensor]
    factor: float

    def __call__(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """Return the loss of `pred` for `target`, a scalar, computed in float32.

        `weight` [N] or of the elements' shape multiplies the elements. Their sum is divided by `avg_factor`
        or, without one, by their number, those of weight 0 included.
        """
        loss = self.elements(pred.float(), target)
        if weight is not None:
            loss = loss * weight.reshape(weight.shape + (1,) * (loss.ndim - weight.ndim))
        if avg_factor is None:
            return loss.mean() * self.factor
        return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps) * self.factor


def focal(*, alpha: float = 0.25, gamma: float = 2.0, weight: float = 1.0) -> Loss:
    """Return the sigmoid focal loss of logits [N,C] for labels [N] in 0..C, C for background.

    Lin et al. 2017, arXiv 1708.02002, equation 5.
    """
    return Loss(partial(_focal, alpha=alpha, gamma=gamma), weight)


def cross_entropy(*, sigmoid: bool = False, weight: float = 1.0) -> Loss:
    """Return the cross-entropy of logits.

    Softmax: logits [N,C] for labels [N] in 0..C-1. With `sigmoid`, each logit by itself: of any shape for
    targets 0..1 of that shape, or [N,C] for labels [N] in 0..C, C for background.
    """
    return Loss(_binary_cross_entropy if sigmoid else _cross_entropy, weight)


def smooth_l1(*, beta: float = 1.0, weight: float = 1.0) -> Loss:
    """Return |d| - beta/2 of differences d, or d²/(2 beta) where |d| < beta (Fast R-CNN, equation 3)."""
    return Loss(partial(functional.smooth_l1_loss, beta=beta, reduction="none"), weight)


def l1(*, weight: float = 1.0) -> Loss:
    """Return the absolute difference."""
    return Loss(partial(functional.l1_loss, reduction="none"), weight)


def iou(*, mode: Literal["log", "linear"] = "log", weight: float = 1.0) -> Loss:
    """Return -log IoU (Yu et al. 2016, UnitBox, equation 3) or 1 - IoU of boxes [N,4] xyxy, one by one."""
    return Loss(partial(_iou, mode=mode), weight)


def giou(*, weight: float = 1.0) -> Loss:
    """Return 1 - GIoU of boxes [N,4] xyxy, one by one (Rezatofighi et al. 2019, algorithm 2)."""
    return Loss(_giou, weight)


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return bool [N,C] of labels [N]; labels outside 0..C-1 have an empty row."""
    return labels[:, None] == torch.arange(num_classes, device=labels.device)


def _focal(pred: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    positive = _one_hot(target, pred.shape[1])
    logits = torch.where(positive, pred, -pred)  # of what is true
    balance = torch.where(positive, alpha, 1 - alpha)
    return -balance * torch.sigmoid(-logits) ** gamma * functional.logsigmoid(logits)


def _cross_entropy(pred: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(pred, target, reduction="none")


def _binary_cross_entropy(pred: Tensor, target: Tensor) -> Tensor:
    if target.ndim < pred.ndim:
        target = _one_hot(target, pred.shape[1])
    return functional.binary_cross_entropy_with_logits(pred, target.to(pred.dtype), reduction="none")


def _iou(pred: Tensor, target: Tensor, mode: Literal["log", "linear"]) -> Tensor:
    overlap = aligned_iou(pred, target).clamp(min=EPSILON)
    return -overlap.log() if mode == "log" else 1 - overlap


def _giou(pred: Tensor, target: Tensor) -> Tensor:
    return 1 - aligned_iou(pred, target, "giou")
