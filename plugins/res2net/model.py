"""Res2Net: A New Multi-scale Backbone Architecture (Gao et al. 2019, arXiv 1904.01169).

A block in place of ResNet's bottleneck; the rest is ResNet-D (He et al. 2019, arXiv 1812.01187): a stem of three 3x3
convolutions and shortcuts that stride by averaging, as "v1d" in the names of the published weights says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detcli.nn.blocks import Norm, make_conv, make_norm
from detcli.nn.deform import deformable
from detcli.nn.fold import conv_norm
from detcli.nn.resnet import Place, ResidualBlock, ResNet, deep_stem, residual_stages


def res2net(
    *,
    depth: Literal[50, 101, 152] = 101,
    scales: int = 4,
    base_width: int = 26,
    norm: Literal["bn", "syncbn", "gn", "gn_ws"] = "bn",
    norm_eval: bool = True,
    norm_trained: bool = True,
    norm_eps: float = 1e-5,
    frozen_stages: int = 1,
    out_stages: tuple[int, ...] = (1, 2, 3, 4),
    strides: tuple[int, ...] = (1, 2, 2, 2),
    dilations: tuple[int, ...] = (1, 1, 1, 1),
    dcn: Literal["none", "v1", "v2"] = "none",
    dcn_stages: tuple[int, ...] = (2, 3, 4),
    dcn_groups: int = 1,
) -> ResNet:
    """Return a Res2Net whose blocks split their maps into `scales` groups, `base_width` wide in the first stage.

    With `dcn`, all 3x3 convolutions of the blocks of `dcn_stages` are deformable. The other arguments are those of
    `detcli.nn.resnet.resnet`.
    """

    def block(place: Place) -> Res2Block:
        width = place.channels * base_width // 64
        convs = [
            make_conv(width, width, 3, stride=place.stride, dilation=place.dilation, norm=norm)
            for _ in range(scales - 1)
        ]
        if dcn != "none" and place.stage in dcn_stages:
            convs = [deformable(conv, modulated=dcn == "v2", groups=dcn_groups) for conv in convs]
        return Res2Block(place, convs, width, norm)

    return ResNet(
        residual_stages(depth, block, num_stages=max(out_stages), strides=strides, dilations=dilations),
        norm,
        out_stages=out_stages,
        strides=strides,
        frozen_stages=frozen_stages,
        norm_eval=norm_eval,
        norm_trained=norm_trained,
        norm_eps=norm_eps,
        stem=deep_stem(norm),
    )


class Res2Block(ResidualBlock):
    """A bottleneck whose 3x3 convolution is one of `convs` for each group of `width` maps but the last (figure 2b).

    Each sees its group and, except in the first block of a stage, what the convolution before it found.
    """

    def __init__(self, place: Place, convs: Sequence[nn.Conv2d], width: int, norm: Norm) -> None:
        scales = len(convs) + 1
        outer = {
            1: make_conv(place.in_channels, width * scales, 1, norm=norm),
            3: make_conv(width * scales, place.channels * 4, 1, norm=norm),
        }
        super().__init__(outer, place.stride, norm, avg_down=True)
        self.width = width
        self.first = place.first
        self.convs = nn.ModuleList(convs)
        self.bns = nn.ModuleList(make_norm(norm, width) for _ in self.convs)
        self.pool = nn.AvgPool2d(3, place.stride, padding=1) if place.stride > 1 else nn.Identity()

    def residual(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut of x [N,C,H,W]."""
        (first, first_norm), (last, last_norm) = self.conv_norms
        maps = self.relu(conv_norm(getattr(self, first), getattr(self, first_norm), x))
        *groups, rest = maps.split(self.width, dim=1)
        found: list[Tensor] = []
        for group, conv, norm in zip(groups, self.convs, self.bns, strict=True):
            seen = group + found[-1] if found and not self.first else group
            found.append(self.relu(conv_norm(conv, norm, seen)))
        together = torch.cat([*found, self.pool(rest)], dim=1)
        return conv_norm(getattr(self, last), getattr(self, last_norm), together)
