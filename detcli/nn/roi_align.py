"""RoIAlign for CPUs, where torchvision's adds up one sample at a time, its gradient on one core.

The mean of bilinear samples on a grid is separable: an output cell is a sum over a few neighbouring rows and columns of
the map, each with a weight. `embedding_bag` adds up these cells, of all channels, on all cores; so does its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

MAX_TERMS = 2**22
"""The most weighted cells that `pyramid_roi_align` has in work at one time (48 MiB of indices and weights)."""


def pyramid_roi_align(
    features: Sequence[Tensor],
    levels: Tensor,
    rois: Tensor,
    size: int | tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return [R,C,S,S] float32, in channels-last memory, of rois [R,5], each on its own of several maps.

    features are [N,C,H,W], `scales` their cells a pixel, levels [R] int64 the map of each RoI (image index, xyxy in
    pixels; Mask R-CNN, section 3). S is `size`, or a pair of height and width; `sampling_ratio` and `aligned` are those
    of `torchvision.ops.roi_align`.
    """
    channels = features[0].shape[1]
    device = rois.device
    grid = torch.tensor([size, size] if isinstance(size, int) else [size[1], size[0]], device=device)
    wide, tall = grid.tolist()
    cells = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features]).float()
    shapes = torch.tensor([[*feature.shape[-2:], feature.shape[0]] for feature in features], device=device)
    counts = shapes.prod(1)
    heights, widths, _ = shapes[levels].unbind(1)
    first = (counts.cumsum(0) - counts)[levels] + rois[:, 0].long() * heights * widths
    boxes = rois[:, 1:].float() * torch.tensor(scales, device=device)[levels, None] - (0.5 if aligned else 0.0)
    lengths = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        lengths = lengths.clamp(min=1)
    samples = torch.full_like(lengths, sampling_ratio) if sampling_ratio > 0 else (lengths / grid).ceil().clamp(min=0)
    # How many neighbours a sum goes over. RoIs with about as many are done together: three binary digits are kept.
    reach = (lengths.abs() / grid * (1 - 1 / samples.clamp(min=1))).ceil().amax(1) + 2
    unit = 2 ** (reach.log2().floor() - 2).clamp(min=0)
    # RoIs of a negative size have no samples where their number depends on it, and are 0 everywhere.
    reach = ((reach / unit).ceil() * unit * (samples.amin(1) > 0)).long()

    without = (reach == 0).nonzero()[:, 0]
    indices = [without]
    # No RoIs at all still have a gradient, of zeros.
    sums = [cells[:0].view(0, tall * wide, channels), cells.new_zeros(len(without), tall * wide, channels)]
    for number in sorted(set(reach.tolist()) - {0}):
        same = (reach == number).nonzero()[:, 0]
        for index in torch.split(same, max(1, MAX_TERMS // (number**2 * tall * wide))):
            y, y_weights = _terms(boxes[index, 1], lengths[index, 1], tall, heights[index], samples[index, 1], number)
            x, x_weights = _terms(boxes[index, 0], lengths[index, 0], wide, widths[index], samples[index, 0], number)
            y = first[index, None, None] + y * widths[index, None, None]
            chosen = y[:, :, None, :, None] + x[:, None, :, None, :]
            weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
            bags = functional.embedding_bag(
                chosen.flatten(3).flatten(0, 2), cells, mode="sum", per_sample_weights=weights.flatten(3).flatten(0, 2)
            )
            indices.append(index)
            sums.append(bags.view(len(index), tall * wide, channels))
    pooled = torch.cat(sums)[torch.cat(indices).argsort()]
    return pooled.view(len(rois), tall, wide, channels).permute(0, 3, 1, 2)


def _terms(
    start: Tensor, length: Tensor, size: int, extent: Tensor, samples: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Return which cells each of `size` output cells adds up along one axis, and how much they count: [R,size,number].

    start, length, extent and samples are [R].
    """
    device = start.device
    sample = torch.arange(int(samples.max()), device=device)
    inside = (sample + 0.5) / samples[:, None]
    position = (
        start[:, None, None]
        + (torch.arange(size, device=device)[:, None] + inside[:, None, :]) * (length / size)[:, None, None]
    )
    last = extent[:, None, None] - 1
    counts = (sample < samples[:, None])[:, None, :] & (position >= -1) & (position <= last + 1)
    position = torch.minimum(position.clamp(min=0), last.float())
    cells = position.amin(2, keepdim=True).floor().long() + torch.arange(number, device=device)
    share = (1 - (position[..., None] - cells[:, :, None, :]).abs()).clamp(min=0) * counts[..., None]
    return torch.minimum(cells, last), share.sum(2) / samples[:, None, None]
