"""GRoIE: A novel Region of Interest Extraction Layer for Instance Segmentation (Rossi et al. 2020, arXiv 2004.13665).

The features of a region are pooled from every level, go through a convolution, are added up, and then through attention
over the region (figure 1). The attention is the second term of four of Zhu et al. 2019, arXiv 1904.05873: it depends on
what a position holds and how far the others are.

Deviation from both papers, as in MMDetection: along y, what a position holds is read at the position mirrored at the
region's diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcli.nn.blocks import ConvNorm
from detcli.nn.roi_extractor import align


def groie(
    *,
    in_channels: int,
    strides: tuple[int, ...],
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    num_levels: int = 4,
    kernel_size: int = 5,
    num_heads: int = 6,
) -> GenericExtractor:
    """Return an extractor from the lowest `num_levels` levels, by RoIAlign as in `single_level`.

    Each level's features go through a convolution of `kernel_size`, their sum through attention with `num_heads`.
    """
    return GenericExtractor(
        in_channels, strides[:num_levels], output_size, sampling_ratio, aligned, kernel_size, num_heads
    )


class GenericExtractor(nn.Module):
    """RoIAlign on all levels for each RoI (section 3)."""

    def __init__(
        self,
        in_channels: int,
        strides: tuple[int, ...],
        output_size: int,
        sampling_ratio: int,
        aligned: bool,
        kernel_size: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.strides = strides
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.pre_module = ConvNorm(in_channels, in_channels, kernel_size)
        self.post_module = RelativeAttention(in_channels, num_heads, key_stride=2)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Return float32 [R,C,S,S] of rois [R,5] (image index, xyxy in pixels), in their order.

        features are [N,C,H/stride,W/stride], lowest level first; those above the last stride are not used.
        """
        level = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
        total: Tensor | int = 0
        for feature, stride in zip(features, self.strides, strict=False):
            pooled = align([feature], level, rois, self.output_size, [stride], self.sampling_ratio, self.aligned)
            total = total + self.pre_module(pooled)
        result: Tensor = self.post_module(total)
        return result


class RelativeAttention(nn.Module):
    """Attention by what the query holds and how far the keys are from it, along x and along y.

    Keys are every `key_stride`-th position of every `key_stride`-th row. What attention finds is times `gamma`, 0 at
    first, and added to the input.
    """

    def __init__(self, channels: int, num_heads: int, key_stride: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.key_stride = key_stride
        self.waves = channels // 4
        width = channels // num_heads * num_heads
        self.query_conv = nn.Conv2d(channels, width, 1, bias=False)
        self.value_conv = nn.Conv2d(channels, width, 1, bias=False)
        self.appr_geom_fc_x = nn.Linear(2 * self.waves, width, bias=False)
        self.appr_geom_fc_y = nn.Linear(2 * self.waves, width, bias=False)
        self.proj_conv = nn.Conv2d(width, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        for layer in self.children():
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]
        assert self.proj_conv.bias is not None
        nn.init.zeros_(self.proj_conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [R,C,S,S] of x [R,C,S,S]."""
        size = x.shape[-1]
        keys = x[..., :: self.key_stride, :: self.key_stride]
        query = self.query_conv(x).unflatten(1, (self.num_heads, -1))  # [R,heads,D,H,W]
        # [R,heads,H,W,keys along an axis]: queries are of all positions, keys are told apart along this axis.
        across = torch.einsum("rndhw,wknd->rnhwk", query, self._places(self.appr_geom_fc_x, size, x))
        # Along y, the query is that of the position mirrored at the diagonal, which the published weights were trained
        # with.
        down = torch.einsum("rndwh,hknd->rnhwk", query, self._places(self.appr_geom_fc_y, size, x))
        logits = (down[..., :, None] + across[..., None, :]).flatten(4)
        value = self.value_conv(keys).unflatten(1, (self.num_heads, -1)).flatten(3)  # [R,heads,D,keys]
        found = torch.einsum("rnhwk,rndk->rndhw", logits.softmax(-1), value)
        result: Tensor = self.gamma * self.proj_conv(found.flatten(1, 2)) + x
        return result

    def _places(self, layer: nn.Module, size: int, x: Tensor) -> Tensor:
        """Return what `layer` makes of the distances [size,keys] along an axis: [size,keys,heads,D]."""
        positions = torch.arange(size, device=x.device, dtype=x.dtype)
        distances = positions[:, None] - positions[None, :: self.key_stride]
        frequencies = 1000 ** (-torch.arange(self.waves, device=x.device, dtype=x.dtype) / self.waves)
        angles = distances[..., None] * frequencies
        embedded: Tensor = layer(torch.cat([angles.sin(), angles.cos()], dim=-1)) / math.sqrt(2)
        return embedded.unflatten(-1, (self.num_heads, -1))
