"""PANet's neck: Path Aggregation Network for Instance Segmentation (Liu et al. 2018, arXiv 1803.01534, section 3.1).

Deviations from the paper, as in MMDetection: levels above the backbone's are subsampled, and no norms.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from detcli.nn.blocks import ConvNorm, Norm, xavier_init
from detcli.nn.fpn import FPN


def pafpn(
    *,
    in_channels: tuple[int, ...],
    in_strides: tuple[int, ...],
    out_channels: int = 256,
    num_outs: int = 5,
    start_level: int = 0,
    extra: Literal["pool", "on_input", "on_lateral", "on_output"] = "pool",
    relu_before_extra: bool = False,
    upsample: Literal["nearest", "bilinear"] = "nearest",
    norm: Literal["none", "bn", "syncbn", "gn", "gn_ws"] = "none",
) -> PAFPN:
    """Return a pyramid of `num_outs` levels; its arguments are those of `detcli.nn.fpn.fpn`.

    Raises `UsageError` when `num_outs` is less than the number of inputs.
    """
    return PAFPN(
        in_channels,
        in_strides,
        out_channels,
        num_outs,
        start_level=start_level,
        extra=extra,
        relu_before_extra=relu_before_extra,
        upsample=upsample,
        norm=norm,
    )


class PAFPN(FPN):
    """FPN, whose outputs are then added up once more, each level to the next higher one (figure 1b)."""

    def __init__(
        self,
        in_channels: tuple[int, ...],
        in_strides: tuple[int, ...],
        out_channels: int,
        num_outs: int,
        *,
        start_level: int,
        norm: Norm | Literal["none"],
        **extra_levels: Any,
    ) -> None:
        super().__init__(
            in_channels, in_strides, out_channels, num_outs, start_level=start_level, norm=norm, **extra_levels
        )
        above = range(len(self.lateral_convs) - 1)
        self.downsample_convs = nn.ModuleList(
            ConvNorm(out_channels, out_channels, 3, stride=2, norm=norm, relu=False) for _ in above
        )
        self.pafpn_convs = nn.ModuleList(ConvNorm(out_channels, out_channels, 3, norm=norm, relu=False) for _ in above)
        xavier_init(self)

    def outputs(self, laterals: list[Tensor]) -> list[Tensor]:
        """Return the levels, the extra ones aside, of merged laterals [N,out_channels,H/stride,W/stride]."""
        outs = super().outputs(laterals)
        for level, downsample in enumerate(self.downsample_convs, 1):
            outs[level] = outs[level] + downsample(outs[level - 1])
        return outs[:1] + [conv(out) for conv, out in zip(self.pafpn_convs, outs[1:], strict=True)]
