"""Masks of whole images, from small square masks inside boxes or from coarse maps, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchvision import ops

PASTE_PIXELS = 2**26
"""The most float32 pixels that `paste_masks` has in work at one time on a GPU (256 MiB)."""


def crop_masks(masks: Tensor, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    """Return the bitmap `masks` inside `boxes`, resampled to squares: float32 [P,size,size] of 0 and 1.

    masks [G,H,W] of 0 and 1; boxes [P,4] xyxy in pixels of the masks; index [P] int64 in 0..G-1, the mask of
    each box. A pixel is 1 where RoIAlign gives 0.5 or more (Mask R-CNN, section 3.1). All 0 where there are
    no masks.
    """
    if len(masks) == 0:
        return boxes.new_zeros(len(boxes), size, size, dtype=torch.float32)
    if len(masks) > len(boxes):  # crowded image: only the masks in use become float
        masks, index = masks[index], torch.arange(len(boxes), device=boxes.device)
    rois = torch.cat([index[:, None].float(), boxes.detach().float()], dim=1)
    crops: Tensor = ops.roi_align(masks[:, None].float(), rois, size, sampling_ratio=0, aligned=True)
    return (crops[:, 0] >= 0.5).float()


def paste_masks(crops: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Return the masks of the whole image: uint8 [D,H,W], 1 where the resampled crop is `threshold` or more.

    crops [D,S,S] of probabilities; boxes [D,4] xyxy in pixels; size (H, W). Resampling is bilinear at pixel
    centres with zeros around the crop.
    """
    height, width = size
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8, device=boxes.device)
    crops, boxes = crops.float(), boxes.float()
    if boxes.is_cuda:
        chunk = max(1, PASTE_PIXELS // max(1, height * width))
        for first in range(0, len(boxes), chunk):
            part = slice(first, first + chunk)
            masks[part] = _resample(crops[part], boxes[part], (0, 0, width, height)) >= threshold
        return masks
    for mask, (left, top, pixels) in zip(masks, paste_regions(crops, boxes, size, threshold), strict=True):
        mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return masks


def paste_regions(
    crops: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield each mask of `paste_masks` as (left, top, bool [h,w]): only the pixels near its box, on the CPU.

    The rest of the image is 0. Takes memory for one box at a time.
    """
    crops, boxes = crops.float().cpu(), boxes.float().cpu()
    for crop, box, region in zip(crops, boxes, _regions(boxes, crops.shape[-1], size), strict=True):
        yield region[0], region[1], _resample(crop[None], box[None], region)[0] >= threshold


def resize_masks(maps: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Return the masks of the whole image: uint8 [D,H,W], 1 where the resampled map is above `threshold`.

    maps [D,h,w] of probabilities on the whole image; size (H, W). Resampling is bilinear at pixel centres, with the
    values at the borders of a map beyond the centres of its outermost cells.
    """
    masks = torch.zeros(len(maps), *size, dtype=torch.uint8, device=maps.device)
    chunk = max(1, PASTE_PIXELS // max(1, size[0] * size[1])) if maps.is_cuda else 1
    for first in range(0, len(maps), chunk):
        part = slice(first, first + chunk)
        resized = functional.interpolate(maps[None, part].float(), size, mode="bilinear", align_corners=False)[0]
        masks[part] = resized > threshold
    return masks


def resize_regions(maps: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Iterator[tuple[int, int, Tensor]]:
    """Yield each mask of `resize_masks` as (left, top, bool [h,w]): only the pixels near cells above 0, on the CPU.

    The rest of the image is 0. Takes memory for one mask at a time.
    """
    height, width = size
    for cells in maps.float().cpu():
        filled = cells > 0
        left, right = _span(filled.any(0), width)
        top, bottom = _span(filled.any(1), height)
        whole = cells.new_tensor([[0, 0, width, height]])
        yield left, top, _resample(cells[None], whole, (left, top, right, bottom), "border")[0] > threshold


def _span(filled: Tensor, length: int) -> tuple[int, int]:
    """Return the pixels [first, last) of `length` that the `filled` cells [n] of a row can make non-zero."""
    index = filled.nonzero()[:, 0].tolist()
    if not index:
        return 0, 0
    pixels = length / len(filled)
    # A cell reaches to the centres of its neighbours.
    return max(0, math.floor((index[0] - 0.5) * pixels)), min(length, math.ceil((index[-1] + 1.5) * pixels))


def _regions(boxes: Tensor, side: int, size: tuple[int, int]) -> list[list[int]]:
    """Return the pixels [left, top, right, bottom) that crops of `side` can make non-zero."""
    reach = (boxes[:, 2:] - boxes[:, :2]) / (2 * side)
    limit = boxes.new_tensor([size[1], size[0]])
    first = torch.minimum((boxes[:, :2] - reach).floor().clamp(min=0), limit)
    last = torch.maximum(torch.minimum((boxes[:, 2:] + reach).ceil(), limit), first)
    regions: list[list[int]] = torch.cat([first, last], dim=1).long().tolist()
    return regions


def _resample(
    crops: Tensor, boxes: Tensor, region: Sequence[int], outside: Literal["zeros", "border"] = "zeros"
) -> Tensor:
    """Return the values of `crops` at the pixel centres of `region`: float32 [D,h,w].

    Around a crop are `zeros`, or the values at its border.
    """
    left, top, right, bottom = region
    columns = torch.arange(left, right, device=boxes.device) + 0.5
    rows = torch.arange(top, bottom, device=boxes.device) + 0.5
    x = (columns - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1
    y = (rows - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1
    shape = (len(boxes), len(rows), len(columns))
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    return functional.grid_sample(crops[:, None], grid, padding_mode=outside, align_corners=False)[:, 0]
