"""Convolutions and RoI pooling whose sampling points are learned.

Dai et al. 2017: Deformable Convolutional Networks, arXiv 1703.06211 (v1); Zhu et al. 2019: Deformable ConvNets v2,
arXiv 1811.11168, where each point has a weight, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision import ops

from detcli.errors import UsageError
from detcli.nn.blocks import StandardizedConv2d
from detcli.nn.roi_align import pyramid_roi_align
from detcli.nn.roi_extractor import SingleLevelExtractor


def deformable(conv: nn.Conv2d, *, modulated: bool, groups: int = 1) -> DeformConv2d:
    """Return a convolution of the shape of `conv` with `groups` sets of sampling points, `modulated` or not.

    Raises `UsageError` when the weights of `conv` are standardised: no deformable convolution does that.
    """
    if isinstance(conv, StandardizedConv2d):
        raise UsageError(
            "convolutions whose weights are standardised (norm gn_ws) can't be deformable: "
            "take another backbone, or `--set model.backbone.dcn=none`."
        )
    return DeformConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        stride=conv.stride[0],
        padding=int(conv.padding[0]),
        dilation=conv.dilation[0],
        groups=conv.groups,
        bias=conv.bias is not None,
        deform_groups=groups,
        modulated=modulated,
    )


class DeformConv2d(nn.Conv2d):
    """A convolution whose sampling points move by offsets that `conv_offset` finds (v1, section 2.1).

    The channels are in `deform_groups` groups with offsets of their own. With `modulated`, what is found at a point
    counts by a weight between 0 and 1 (v2, section 2.2). Offsets are 0 at first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        deform_groups: int = 1,
        modulated: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.modulated = modulated
        of_point = 3 if modulated else 2
        self.conv_offset = nn.Conv2d(
            in_channels, deform_groups * of_point * kernel_size**2, kernel_size, stride, padding, dilation
        )
        self.zero_offsets()

    def zero_offsets(self) -> None:
        """Have the points where a plain convolution has them; they count by a half if they are modulated."""
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N,out_channels,H/stride,W/stride] of x [N,in_channels,H,W]; computed in float32."""
        offset, mask = self.conv_offset(x).float(), None
        if self.modulated:
            offset, mask = offset.split([offset.shape[1] // 3 * 2, offset.shape[1] // 3], dim=1)
            mask = mask.sigmoid()
        bias = None if self.bias is None else self.bias.float()
        result: Tensor = ops.deform_conv2d(
            x.float(), offset, self.weight.float(), bias, self.stride, self.padding, self.dilation, mask
        )
        return result.to(x.dtype)


def deform_roi_pool(
    *,
    in_channels: int,
    strides: tuple[int, ...],
    output_size: int = 7,
    sampling_ratio: int = 0,
    modulated: bool = False,
    gamma: float = 0.1,
    fc_channels: int = 1024,
    finest_scale: int = 56,
    num_levels: int = 4,
) -> DeformExtractor:
    """Return an extractor by RoIAlign whose output cells move by learned offsets (v1, section 2.2).

    Offsets are in `gamma` times the RoI's size, found by fully connected layers of `fc_channels`, other ones for each
    level. With `modulated`, cells count by a weight between 0 and 1 (v2, section 2.2). The rest is as in
    `detcli.nn.roi_extractor.single_level`.
    """
    return DeformExtractor(
        in_channels, strides[:num_levels], output_size, sampling_ratio, modulated, gamma, fc_channels, finest_scale
    )


class DeformExtractor(SingleLevelExtractor):
    """Deformable RoIAlign on one level for each RoI."""

    def __init__(
        self,
        in_channels: int,
        strides: tuple[int, ...],
        output_size: int,
        sampling_ratio: int,
        modulated: bool,
        gamma: float,
        fc_channels: int,
        finest_scale: int,
    ) -> None:
        super().__init__(strides, output_size, sampling_ratio, True, finest_scale)
        self.gamma = gamma
        inputs = in_channels * output_size**2
        self.roi_layers = nn.ModuleList(OffsetLayers(inputs, output_size, fc_channels, modulated) for _ in strides)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Return float32 [R,C,S,S] of rois [R,5] (image index, xyxy in pixels), in their order.

        features are [N,C,H/stride,W/stride], lowest level first; those above the last stride are not used.
        """
        fixed = super().forward(features, rois)
        levels = self.levels(rois[:, 1:])
        rows = [(levels == level).nonzero()[:, 0] for level in range(len(self.strides))]
        found = [layers(fixed[index]) for layers, index in zip(self.roi_layers, rows, strict=True)]
        order = torch.cat(rows).argsort()
        offsets = torch.cat([offset for offset, _ in found])[order]
        moved = moved_roi_align(
            features[: len(self.strides)], levels, rois, offsets * self.gamma, self.strides, self.sampling_ratio
        )
        return moved * torch.cat([weight for _, weight in found])[order]


class OffsetLayers(nn.Module):
    """Finds the offsets of output cells, and with `modulated` their weights, from the RoI's features."""

    def __init__(self, inputs: int, output_size: int, channels: int, modulated: bool) -> None:
        super().__init__()
        cells = output_size**2
        self.offset_fc = nn.Sequential(
            nn.Linear(inputs, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, cells * 2),
        )
        self.mask_fc = None
        last = [self.offset_fc[-1]]
        if modulated:
            self.mask_fc = nn.Sequential(
                nn.Linear(inputs, channels), nn.ReLU(inplace=True), nn.Linear(channels, cells), nn.Sigmoid()
            )
            last.append(self.mask_fc[2])
        for layer in last:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Return the offsets [R,2,S,S] (x, then y) and the weights [R,1,S,S] of cells of rois [R,C,S,S], float32."""
        size = rois.shape[-2:]
        flat = rois.flatten(1)
        offsets = self.offset_fc(flat).float().view(-1, 2, *size)
        if self.mask_fc is None:
            return offsets, offsets.new_ones(len(rois), 1, 1, 1)
        return offsets, self.mask_fc(flat).float().view(-1, 1, *size)


def moved_roi_align(
    features: Sequence[Tensor],
    levels: Tensor,
    rois: Tensor,
    offsets: Tensor,
    strides: Sequence[int | float],
    sampling_ratio: int,
) -> Tensor:
    """Return float32 [R,C,S,S] of rois [R,5] whose cells are moved by offsets [R,2,S,S] (x, y; in sizes of the RoI).

    Each RoI is pooled from the map of its level of levels [R]; features are [N,C,H/stride,W/stride]. The gradient goes
    to the offsets, too.
    """
    rows, columns = offsets.shape[-2:]
    start, size = rois[:, 1:3, None, None], (rois[:, 3:] - rois[:, 1:3])[..., None, None]
    across = torch.arange(columns, device=rois.device).expand(rows, columns)
    down = torch.arange(rows, device=rois.device)[:, None].expand(rows, columns)
    cell = size / torch.tensor([columns, rows], device=rois.device)[:, None, None]
    corner = start + torch.stack([across, down]) * cell + offsets * size  # [R,2,S,S]
    # Each cell by itself is a RoI of one cell.
    boxes = torch.cat([corner, corner + cell], dim=1).permute(0, 2, 3, 1).reshape(-1, 4)
    images = rois[:, :1].repeat_interleave(rows * columns, dim=0)
    pooled = pyramid_roi_align(
        features,
        levels.repeat_interleave(rows * columns),
        torch.cat([images, boxes], dim=1),
        1,
        [1 / stride for stride in strides],
        sampling_ratio,
        aligned=True,
    )
    return pooled.view(len(rois), rows, columns, features[0].shape[1]).permute(0, 3, 1, 2)
