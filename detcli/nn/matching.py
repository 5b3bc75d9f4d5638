"""One prediction for each object: matching of whole sets (Carion et al. 2020, arXiv 2005.12872, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from detcli.nn.boxes import aligned_iou
from detcli.structures import Batch


@dataclass(slots=True)
class ObjectSet:
    """The objects of a batch, those of each image padded to the greatest number G of them.

    boxes [N,G,4] (centre x, centre y, width, height), 0..1 of their image; labels [N,G] int64; counts, how many are
    real; sizes [N,2] (height, width) of the images.
    """

    boxes: Tensor
    labels: Tensor
    counts: list[int]
    sizes: Tensor


Matcher: TypeAlias = Callable[[Tensor, Tensor, ObjectSet], Tensor]
"""(logits [...,N,Q,C], boxes [...,N,Q,4], objects) -> the prediction [...,N,G] of each object, Q where it has none."""


def object_set(batch: Batch) -> ObjectSet:
    """Return the objects of a batch with targets."""
    assert batch.targets is not None
    boxes = pad_sequence([target.boxes for target in batch.targets], batch_first=True)
    labels = pad_sequence([target.labels for target in batch.targets], batch_first=True)
    counts = [len(target.labels) for target in batch.targets]
    relative = box_convert(boxes / _sides(batch.sizes), "xyxy", "cxcywh")
    return ObjectSet(relative, labels, counts, batch.sizes)


def to_pixels(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return boxes [...,N,B,4] (centre x, centre y, width, height), 0..1 of images of `sizes` [N,2], as xyxy pixels."""
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners * _sides(sizes)


def _sides(sizes: Tensor) -> Tensor:
    """Return [N,1,4] (width, height, width, height) of sizes [N,2] (height, width)."""
    return sizes.flip(1).repeat(1, 2)[:, None].float()


def hungarian(
    *,
    class_score: Literal["softmax", "focal"] = "softmax",
    box_form: Literal["cxcywh", "xyxy"] = "cxcywh",
    class_cost: float = 1.0,
    box_cost: float = 5.0,
    iou_cost: float = 2.0,
) -> Matcher:
    """Return the matcher of least total cost (equation 1); with more objects than predictions, some have none.

    A pair costs `class_cost` times that of its class, `box_cost` times the L1 distance of its boxes in `box_form` and
    `iou_cost` times -GIoU. A class costs -probability (``softmax``, the last logit is background's), or, of a sigmoid,
    the focal loss as what it is less that as background (``focal``; Zhu et al. 2021, arXiv 2010.04159).
    """
    class_costs = {"softmax": _softmax_cost, "focal": _focal_cost}[class_score]

    @torch.no_grad()
    def match(logits: Tensor, boxes: Tensor, objects: ObjectSet) -> Tensor:
        corners, goals = to_pixels(boxes, objects.sizes), to_pixels(objects.boxes, objects.sizes)
        labels = objects.labels[:, None].expand(*logits.shape[:-1], -1)
        own, theirs = (box_convert(each, "cxcywh", box_form) for each in (boxes, objects.boxes))
        costs = class_cost * class_costs(logits.float()).gather(-1, labels)
        costs += box_cost * torch.cdist(own, theirs.expand(*boxes.shape[:-2], -1, -1), p=1)
        costs -= iou_cost * aligned_iou(corners[..., :, None, :], goals[:, None], "giou")
        return _least(costs, objects.counts)

    return match


def _softmax_cost(logits: Tensor) -> Tensor:
    return -logits.softmax(-1)


def _focal_cost(logits: Tensor) -> Tensor:
    p = logits.sigmoid()
    as_object = 0.25 * (1 - p).square() * -(p + 1e-12).log()
    as_background = 0.75 * p.square() * -(1 - p + 1e-12).log()
    return as_object - as_background


def _least(costs: Tensor, counts: list[int]) -> Tensor:
    """Return the match of least cost of costs [...,N,Q,G], of which each image has `counts` objects.

    All matrices go to the host together, the only thing in a step that waits for the device. Costs that are not finite
    are large instead: the loss then says what is wrong.
    """
    matrices = costs.nan_to_num(1e6, 1e6, -1e6).flatten(0, -3).cpu().numpy()
    matched = np.full((len(matrices), costs.shape[-1]), costs.shape[-2])
    for number, matrix in enumerate(matrices):
        count = counts[number % len(counts)]
        rows, columns = linear_sum_assignment(matrix[:, :count])
        matched[number, columns] = rows
    return torch.from_numpy(matched).to(costs.device).reshape(*costs.shape[:-2], costs.shape[-1])
