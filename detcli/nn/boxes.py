"""Areas, overlaps and clipping of boxes: xyxy in pixels, continuous coordinates."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

OverlapMode = Literal["iou", "iof", "giou"]
EPSILON = 1e-6


def box_area(boxes: Tensor) -> Tensor:
    """Return the areas [...] of boxes [...,4], in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def aligned_iou(a: Tensor, b: Tensor, mode: OverlapMode = "iou") -> Tensor:
    """Return the overlaps [...] of the boxes of a [...,4] with those of b [...,4], which broadcast.

    `iou` is intersection over union, 0..1; `iof` intersection over the area of a, 0..1; `giou` the
    generalised IoU, -1..1 (Rezatofighi et al. 2019, algorithm 1).
    """
    left, top = torch.maximum(a[..., 0], b[..., 0]), torch.maximum(a[..., 1], b[..., 1])
    right, bottom = torch.minimum(a[..., 2], b[..., 2]), torch.minimum(a[..., 3], b[..., 3])
    intersection = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    if mode == "iof":
        return intersection / box_area(a).clamp(min=EPSILON)
    union = (box_area(a) + box_area(b) - intersection).clamp(min=EPSILON)
    iou = intersection / union
    if mode == "iou":
        return iou
    width = torch.maximum(a[..., 2], b[..., 2]) - torch.minimum(a[..., 0], b[..., 0])
    height = torch.maximum(a[..., 3], b[..., 3]) - torch.minimum(a[..., 1], b[..., 1])
    enclosing = (width * height).clamp(min=EPSILON)
    return iou - (enclosing - union) / enclosing


def pairwise_iou(a: Tensor, b: Tensor, mode: OverlapMode = "iou") -> Tensor:
    """Return the overlaps [A,B] of each box of a [A,4] with each box of b [B,4]; see `aligned_iou`."""
    return aligned_iou(a[:, None], b, mode)


def clip_boxes(boxes: Tensor, max_size: Tensor) -> Tensor:
    """Return boxes [...,4] cut at the borders of images of max_size [...,2] (height, width); broadcasts."""
    limit = max_size.flip(-1).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), torch.cat([limit, limit], dim=-1))
