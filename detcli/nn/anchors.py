"""Anchors and points: where on the image each output of a dense head looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

AnchorStyle: TypeAlias = Literal["exact", "torchvision", "v1", "detectron"]


class AnchorGenerator:
    """Boxes of given shapes around every location of every pyramid level (Ren et al. 2015, section 3.1.1).

    An anchor has the area (base size * scale)^2 and a height of `ratio` times its width; `base_sizes` are the
    `strides` unless given. With `octave_base_scale`, the scales are octave_base_scale * 2^(i /
    scales_per_octave) (Lin et al. 2017, RetinaNet, section 4). `order` says which varies slowest at one location:
    ``ratio`` as in MMDetection, ``scale`` as in Detectron2.

    `style` is how anchors lie on pixels:

    - ``exact``: as computed, the middle on the corner of the cell (MMDetection 2, Detectron2).
    - ``torchvision``: sides are cut to whole pixels, corners rounded; the strides are those of `grid_strides`.
    - ``v1``: corners are rounded, and x2, y2 are the last pixels of a box (MMDetection 2 for the models of 1).
    - ``detectron``: the middle in the middle of the cell; the sides of each ratio are rounded on a box of the base
      size, then scaled (Detectron, generate_anchors.py, where x2 and y2 are last pixels: here, as for all boxes, they
      are one more).

    `center_offset` is the place of an anchor's middle in its cell, in base sizes, for ``v1`` less a pixel;
    None: 0.5 for ``v1`` and ``detectron``, 0 for others. `centers` are these places in pixels, one a level.
    """

    def __init__(
        self,
        strides: Sequence[float],
        *,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        scales: Sequence[float] = (8,),
        octave_base_scale: float | None = None,
        scales_per_octave: int = 1,
        base_sizes: Sequence[float] | None = None,
        center_offset: float | None = None,
        centers: Sequence[float] | None = None,
        order: Literal["ratio", "scale"] = "ratio",
        style: AnchorStyle = "exact",
    ) -> None:
        self.strides = tuple(strides)
        self.style = style
        self.whole_pixels = style == "torchvision"
        if octave_base_scale is not None:
            scales = [octave_base_scale * 2 ** (step / scales_per_octave) for step in range(scales_per_octave)]
        self.num_base_anchors = len(ratios) * len(scales)
        sides = torch.tensor(base_sizes or strides, dtype=torch.float32)
        shares = torch.tensor(ratios, dtype=torch.float32)
        widths, heights = sides[:, None] / shares.sqrt(), sides[:, None] * shares.sqrt()
        if style == "detectron":
            widths = widths.round()
            heights = (widths * shares).round()
        factors = torch.tensor(scales, dtype=torch.float32)
        factors = factors.expand(len(sides), -1)
        if style == "torchvision":
            factors = (sides[:, None] * factors).floor() / sides[:, None]
        # [level, ratio, scale], then the two last in the order asked for
        shapes = torch.stack([widths, heights], dim=-1)[:, :, None] * factors[:, None, :, None]
        if order == "scale":
            shapes = shapes.transpose(1, 2)
        shapes = shapes.flatten(1, 2)
        pixel = 1 if style == "v1" else 0
        offset = center_offset
        if offset is None:
            offset = 0.5 if style in ("v1", "detectron") else 0.0
        middles = offset * (sides - pixel) if centers is None else torch.tensor(centers, dtype=torch.float32)
        half = 0.5 * (shapes - pixel)
        base = torch.cat([middles[:, None, None] - half, middles[:, None, None] + half], dim=-1)
        self.base_anchors = base.round() if style in ("v1", "torchvision") else base
        self._cache: dict[tuple[tuple[tuple[int, int], ...], torch.device], list[Tensor]] = {}

    def __call__(self, sizes: Sequence[tuple[int, int]], device: torch.device | str) -> list[Tensor]:
        """Return the anchors [H*W*A,4] of each level; the anchors of a location lie together.

        `sizes` are the (H, W) of the feature maps, one for each stride.
        """
        key = (tuple(sizes), torch.device(device))
        if key not in self._cache:
            if len(self._cache) >= 16:  # multi-scale training meets many sizes
                self._cache.clear()
            strides = grid_strides(sizes, self.strides, self.whole_pixels)
            with torch.inference_mode(False):  # training may follow a prediction
                self._cache[key] = [
                    (_grid(size, stride, 0.0, device).repeat(1, 2)[:, None] + base.to(device)).flatten(0, 1)
                    for size, stride, base in zip(sizes, strides, self.base_anchors, strict=True)
                ]
        return self._cache[key]


class PointGenerator:
    """One point for every location of every pyramid level, `offset` strides into its cell.

    `whole_pixels` is torchvision's way: the strides are those of `grid_strides`.
    """

    def __init__(self, strides: Sequence[int], *, offset: float = 0.5, whole_pixels: bool = False) -> None:
        self.strides = tuple(strides)
        self.offset = offset
        self.whole_pixels = whole_pixels

    def __call__(self, sizes: Sequence[tuple[int, int]], device: torch.device | str) -> list[Tensor]:
        """Return the points [H*W,2] (x, y) of each level; `sizes` are the (H, W) of the feature maps."""
        strides = grid_strides(sizes, self.strides, self.whole_pixels)
        return [_grid(size, stride, self.offset, device) for size, stride in zip(sizes, strides, strict=True)]


def grid_strides(
    sizes: Sequence[tuple[int, int]], strides: Sequence[float], whole_pixels: bool
) -> list[tuple[float, float]]:
    """Return the stride of each map along (y, x), in pixels; `sizes` are the maps' (H, W).

    It is that of `strides`; with `whole_pixels`, how often the map's side goes into the image's (torchvision), which is
    less where a map was rounded up. The image is as large as the first map says.
    """
    if not whole_pixels:
        return [(stride, stride) for stride in strides]
    height, width = (side * strides[0] for side in sizes[0])
    return [(height // rows, width // columns) for rows, columns in sizes]


def inside_images(
    grid_sizes: Sequence[tuple[int, int]], strides: Sequence[float], image_sizes: Tensor, divisor: int = 32
) -> Tensor:
    """Return which locations of a batch lie on their own image: bool [N, locations of all levels].

    An image counts as padded to a multiple of `divisor`; what is beyond only exists because another image of
    the batch is larger. image_sizes [N,2] (height, width); grid_sizes are the (H, W) of the feature maps.
    """
    padded = (image_sizes + divisor - 1) // divisor * divisor
    levels = []
    for (height, width), stride in zip(grid_sizes, strides, strict=True):
        rows = torch.arange(height, device=padded.device) * stride < padded[:, :1]
        columns = torch.arange(width, device=padded.device) * stride < padded[:, 1:]
        levels.append((rows[:, :, None] & columns[:, None, :]).flatten(1))
    return torch.cat(levels, dim=1)


def _grid(size: tuple[int, int], stride: tuple[float, float], offset: float, device: torch.device | str) -> Tensor:
    """Return the (x, y) [H*W,2] of a feature map's locations, row by row, in pixels."""
    height, width = size
    y = (torch.arange(height, device=device, dtype=torch.float32) + offset) * stride[0]
    x = (torch.arange(width, device=device, dtype=torch.float32) + offset) * stride[1]
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)
