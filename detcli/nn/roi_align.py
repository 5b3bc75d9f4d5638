"""RoIAlign for CPUs, where torchvision's adds up one sample at a time on one core.

The mean of bilinear samples on a grid is separable: an output cell is a weighted sum of rows of a weighted sum of
columns. In training this becomes two matrix products, whose work grows with the area of the map, so large maps stay
with torchvision. Where no gradient is needed, each output cell is a weighted sum of cells of all channels, which
`embedding_bag` adds up on all cores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision import ops

LARGEST_MAP = 4096
"""The most cells of a map for which matrix products are the faster way."""

MAX_TERMS = 2**22
"""The most weighted cells that `pyramid_roi_align` has in work at one time (48 MiB of indices and weights)."""


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


def pyramid_roi_align(
    features: Sequence[Tensor],
    levels: Tensor,
    rois: Tensor,
    size: int,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return [R,C,S,S] float32, in channels-last memory, of rois [R,5], each on its own of several maps.

    features are [N,C,H,W], `scales` their cells a pixel, levels [R] int64 the map of each RoI; the rest is as for
    `roi_align`. Gives no gradient.
    """
    channels = features[0].shape[1]
    cells = torch.cat([feature.detach().permute(0, 2, 3, 1).reshape(-1, channels) for feature in features]).float()
    shapes = torch.tensor([[*feature.shape[-2:], feature.shape[0]] for feature in features])
    counts = shapes.prod(1)
    heights, widths, _ = shapes[levels].unbind(1)
    first = (counts.cumsum(0) - counts)[levels] + rois[:, 0].long() * heights * widths
    boxes = rois[:, 1:].float() * torch.tensor(scales)[levels, None] - (0.5 if aligned else 0.0)
    lengths = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        lengths = lengths.clamp(min=1)
    samples = torch.full_like(lengths, sampling_ratio) if sampling_ratio > 0 else (lengths / size).ceil().clamp(min=0)
    most = samples.amax(1)

    pooled = cells.new_zeros(len(rois), size * size, channels)
    # RoIs of a negative size have no samples, and 0 everywhere.
    for number in sorted({int(value) for value in most.tolist() if value > 0}):
        rows = (most == number).nonzero()[:, 0]
        for index in torch.split(rows, max(1, MAX_TERMS // (2 * number * size) ** 2)):
            y, y_weights = _terms(boxes[index, 1], lengths[index, 1], size, heights[index], samples[index, 1], number)
            x, x_weights = _terms(boxes[index, 0], lengths[index, 0], size, widths[index], samples[index, 0], number)
            y = first[index, None, None] + y * widths[index, None, None]
            chosen = y[:, :, None, :, None] + x[:, None, :, None, :]
            weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
            sums = functional.embedding_bag(
                chosen.flatten(3).flatten(0, 2), cells, mode="sum", per_sample_weights=weights.flatten(3).flatten(0, 2)
            )
            pooled[index] = sums.view(len(index), size * size, channels)
    return pooled.view(len(rois), size, size, channels).permute(0, 3, 1, 2)


def _terms(
    start: Tensor, length: Tensor, size: int, extent: Tensor, samples: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Return which cells each of `size` output cells adds up along one axis, and how much they count: [R,size,T].

    start, length, extent and samples are [R], the latter at most `most`.
    """
    number = torch.arange(most)
    step = length / size
    inside = (number + 0.5) / samples.clamp(min=1)[:, None]
    position = start[:, None, None] + (torch.arange(size)[:, None] + inside[:, None, :]) * step[:, None, None]
    last = extent[:, None, None] - 1
    counts = (number < samples[:, None])[:, None, :] & (position >= -1) & (position <= last + 1)
    share = counts / samples.clamp(min=1)[:, None, None]
    position = torch.minimum(position.clamp(min=0), last.float())
    low = position.floor()
    fraction = position - low
    cells = torch.cat([low.long(), torch.minimum(low.long() + 1, last)], dim=2)
    return cells, torch.cat([(1 - fraction) * share, fraction * share], dim=2)


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
