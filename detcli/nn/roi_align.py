"""RoIAlign as two matrix products, for training on a CPU.

The mean of bilinear samples on a grid is separable: an output cell is a weighted sum of rows of a weighted sum of
columns. torchvision's backward pass adds up one sample at a time on one core; matrix products use all of them. Their
work grows with the area of the map, so large maps stay with torchvision.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import ops

LARGEST_MAP = 4096
"""The most cells of a map for which matrix products are the faster way."""


def roi_align(
    features: Tensor,
    rois: Tensor,
    size: int | tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return [R,C,S,S] of features [N,C,H,W] at rois [R,5] (image index, xyxy in pixels; Mask R-CNN, section 3).

    S is `size`, or a pair of height and width. `scale` is cells a pixel; `sampling_ratio` and `aligned` are those of
    `torchvision.ops.roi_align`.
    """
    small = features.shape[-2] * features.shape[-1] <= LARGEST_MAP
    if small and features.requires_grad and features.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return separable_roi_align(features, rois, size, scale, sampling_ratio, aligned)
    pooled: Tensor = ops.roi_align(features, rois, size, scale, sampling_ratio, aligned)
    return pooled


def separable_roi_align(
    features: Tensor,
    rois: Tensor,
    size: int | tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return what `roi_align` does, by matrix products over whole rows and columns."""
    channels, height, width = features.shape[1:]
    tall, wide = (size, size) if isinstance(size, int) else size
    boxes = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    lengths = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        lengths = lengths.clamp(min=1)
    columns = _weights(boxes[:, 0], lengths[:, 0], wide, width, sampling_ratio)
    rows = _weights(boxes[:, 1], lengths[:, 1], tall, height, sampling_ratio)
    pooled = features.new_zeros(len(rois), channels, tall, wide)
    for image, feature in enumerate(features):
        index = (rois[:, 0] == image).nonzero()[:, 0]
        count = len(index)
        narrow = feature.reshape(channels * height, width) @ columns[index].reshape(count * wide, width).T
        narrow = narrow.reshape(channels, height, count, wide).permute(2, 1, 0, 3)
        cells = rows[index] @ narrow.reshape(count, height, channels * wide)
        pooled = pooled.index_copy(0, index, cells.reshape(count, tall, channels, wide).transpose(1, 2))
    return pooled


def _weights(start: Tensor, length: Tensor, size: int, extent: int, sampling_ratio: int) -> Tensor:
    """Return how much each of `extent` cells counts in each of `size` output cells, along one axis: [R,size,extent]."""
    fixed = torch.full_like(length, sampling_ratio)
    samples = fixed if sampling_ratio > 0 else (length / size).ceil().clamp(min=0)
    number = torch.arange(int(samples.max().clamp(min=1)) if len(samples) else 1)
    inside = (number + 0.5) / samples.clamp(min=1)[:, None]
    cell = torch.arange(size)[:, None] + inside[:, None, :]
    position = start[:, None, None] + cell * (length / size)[:, None, None]
    counts = (number < samples[:, None])[:, None, :] & (position >= -1) & (position <= extent)
    distance = (position.clamp(0, extent - 1)[..., None] - torch.arange(extent)).abs()
    weights = (1 - distance).clamp(min=0) * counts[..., None]
    return weights.sum(2) / samples.clamp(min=1)[:, None, None]
