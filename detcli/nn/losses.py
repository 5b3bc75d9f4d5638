"""Losses of classes and boxes: a builder each, which returns a `Loss`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from detcli.errors import UsageError
from detcli.nn.boxes import EPSILON, aligned_iou

FOCAL_ROWS = 4096
"""How many rows of logits the focal loss has in work at one time on a CPU, so that they stay in its cache."""

BOUNDED_EPSILON = 1e-3
"""What keeps the bounds of boxes without a side finite, in pixels."""

Elements: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Returns, of prediction and target, the loss of each element."""

Total: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, int]]
"""Returns, of prediction, target and weight, the sum of the elements' losses times their weights, and their number."""


class LossFunction(Protocol):
    """What a head takes as a loss: a `Loss`, or a module with statistics of its own.

    One that is `by_level` weighs elements by all that it is called with: a head whose levels it is to tell apart calls
    it on one after another (see `detcli.nn.dense_heads.loss_of_levels`).
    """

    @property
    def by_level(self) -> bool:
        """Whether the loss of several levels is the sum of what it returns for each."""

    def __call__(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """Return the loss of `pred` for `target`, a scalar; see `Loss`."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of single `elements`, added up and reduced to one number, times `factor`.

    `total` adds them up where there is a faster way than by the elements.
    """

    elements: Elements
    factor: float
    total: Total | None = None
    by_level: ClassVar[bool] = False

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
        add_up = self.total or weighted_sum(self.elements)
        total, count = add_up(pred.float(), target, weight)
        if avg_factor is None:
            return total / count * self.factor
        return total / (avg_factor + torch.finfo(torch.float32).eps) * self.factor

    @torch.no_grad()
    def rows(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss [N] of each row of `pred` [N] or [N,...], without gradient: what samples are chosen by."""
        loss = self.elements(pred.float(), target)
        return (loss.flatten(1).sum(1) if loss.ndim > 1 else loss) * self.factor


def of_elements(loss: LossFunction, name: str) -> Loss:
    """Return `loss`, of which a head needs more than the sum over all levels.

    Raises `UsageError` that calls it `name` when it is no `Loss`.
    """
    if not isinstance(loss, Loss):
        raise UsageError(
            f"{name} must be a loss of single elements, such as focal or l1, not one that weighs each by all others. "
            "See `detcli list losses`."
        )
    return loss


def weighted_sum(elements: Elements) -> Total:
    """Return the `total` of a loss by its `elements`."""

    def total(pred: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, int]:
        loss = elements(pred, target)
        count = loss.numel()
        if weight is not None:
            loss = loss * weight.reshape(weight.shape + (1,) * (loss.ndim - weight.ndim))
        return loss.sum(), count

    return total


def focal(*, alpha: float = 0.25, gamma: float = 2.0, weight: float = 1.0) -> Loss:
    """Return the sigmoid focal loss of logits [N,C] for labels [N] in 0..C, C for background.

    Lin et al. 2017, arXiv 1708.02002, equation 5.
    """
    return Loss(
        partial(_balanced, _background, 1, alpha=alpha, gamma=gamma), weight, partial(_focal, alpha=alpha, gamma=gamma)
    )


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


def bounded_iou(*, beta: float = 0.2, weight: float = 1.0) -> Loss:
    """Return the smooth L1 loss of 1 - the IoU that x, y, width and height of boxes [N,4] xyxy leave at best, each.

    Tychsen-Smith and Petersson 2018, Improving Object Localization with Fitness NMS and Bounded IoU Loss, section 4.
    """
    return Loss(partial(_bounded_iou, beta=beta), weight)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return bool [N,C] of labels [N]; labels outside 0..C-1 have an empty row."""
    return labels[:, None] == torch.arange(num_classes, device=labels.device)


def _focal(pred: Tensor, target: Tensor, weight: Tensor | None, alpha: float, gamma: float) -> tuple[Tensor, int]:
    total: Tensor = FocalSum.apply(pred, target, weight, alpha, gamma)
    return total, pred.numel()


class FocalSum(Function):
    """The sum of focal losses with its gradient written out, for most logits are those of background.

    All are taken for background, and the one in a row that may not be is put right. On a CPU no tensor as large as the
    logits is made but their gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weight: Tensor | None, alpha: float, gamma: float) -> Tensor:
        """Return the sum over logits [N,C] for labels [N] in 0..C, C for background, rows times weight [N]."""
        ctx.save_for_backward(logits, labels, weight)
        ctx.alpha, ctx.gamma = alpha, gamma
        sums = [logits.new_zeros(())]
        for rows in _blocks(logits):
            loss = _balanced(_background, 1, logits[rows], labels[rows], alpha, gamma).sum(1)
            sums.append(loss.sum() if weight is None else (loss * weight[rows]).sum())
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits."""
        logits, labels, weight = ctx.saved_tensors
        alpha, gamma = ctx.alpha, ctx.gamma
        result = torch.empty_like(logits)
        for rows in _blocks(logits):
            slope = _balanced(_background_slope, -1, logits[rows], labels[rows], alpha, gamma)
            factor = gradient if weight is None else (gradient * weight[rows])[:, None]
            torch.mul(slope, factor, out=result[rows])
        return result, None, None, None, None


def _blocks(logits: Tensor) -> list[slice]:
    """Return the rows that are in work at one time."""
    size = FOCAL_ROWS if logits.device.type == "cpu" else max(1, len(logits))
    return [slice(first, first + size) for first in range(0, len(logits), size)]


def _balanced(
    function: Callable[[Tensor, float], Tensor], sign: int, logits: Tensor, labels: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Return [N,C] of `_background` or its slope where there is background, and of its mirror image where an object is.

    `sign` is what mirroring the logits does to the function.
    """
    column = labels.clamp(0, logits.shape[1] - 1)[:, None]
    is_object = ((labels >= 0) & (labels < logits.shape[1]))[:, None]
    values = function(logits, gamma).mul_(1 - alpha)
    own = sign * alpha * function(-logits.gather(1, column), gamma)
    return values.scatter_(1, column, torch.where(is_object, own, values.gather(1, column)))


def _background(logits: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of logits of what is not there, before its balance."""
    return torch.sigmoid(logits).pow_(gamma).mul_(functional.softplus(logits))


def _background_slope(logits: Tensor, gamma: float) -> Tensor:
    """Return the derivative of `_background`."""
    p = torch.sigmoid(logits)
    return functional.softplus(logits).mul_(gamma).mul_(1 - p).add_(p).mul_(p.pow_(gamma))


def _cross_entropy(pred: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(pred, target, reduction="none")


def _binary_cross_entropy(pred: Tensor, target: Tensor) -> Tensor:
    if target.ndim < pred.ndim:
        target = one_hot(target, pred.shape[1])
    return functional.binary_cross_entropy_with_logits(pred, target.to(pred.dtype), reduction="none")


def _iou(pred: Tensor, target: Tensor, mode: Literal["log", "linear"]) -> Tensor:
    overlap = aligned_iou(pred, target).clamp(min=EPSILON)
    return -overlap.log() if mode == "log" else 1 - overlap


def _giou(pred: Tensor, target: Tensor) -> Tensor:
    return 1 - aligned_iou(pred, target, "giou")


def _bounded_iou(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    """Return the loss [N,4] of boxes whose other coordinates, one at a time, are taken for right."""
    sizes, wanted = (boxes[:, 2:] - boxes[:, :2] for boxes in (pred, target))
    apart = (pred[:, :2] + pred[:, 2:] - target[:, :2] - target[:, 2:]).abs()  # twice the distance of the centres
    places = ((wanted - apart) / (wanted + apart + BOUNDED_EPSILON)).clamp(min=0)
    ratios = torch.minimum(wanted / (sizes + BOUNDED_EPSILON), sizes / (wanted + BOUNDED_EPSILON))
    return functional.smooth_l1_loss(
        1 - torch.cat([places, ratios], dim=1), torch.zeros_like(pred), beta=beta, reduction="none"
    )
