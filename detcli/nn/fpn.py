"""The feature pyramid (Lin et al. 2017, arXiv 1612.03144, section 3), with every kind of extra level."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from detcli.errors import UsageError
from detcli.nn.blocks import ConvNorm, xavier_init


def fpn(
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
) -> FPN:
    """Return a pyramid of `num_outs` levels on the inputs from index `start_level` on.

    Levels above the inputs are the highest one subsampled by 2 (pool; FPN, section 4.1), or strided
    convolutions, each on the one below (RetinaNet, section 4), of which the first sees the highest input,
    its lateral, or its output. `relu_before_extra` puts a ReLU before each but the first of them. `upsample` is how a
    level is brought to the size of the one below.

    Raises `UsageError` when `num_outs` is less than the number of inputs.
    """
    return FPN(
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


class FPN(nn.Module):
    """Laterals lateral_convs.N and outputs fpn_convs.N, lowest level first; the last fpn_convs are the extra.

    Of the features that it is given, it takes the highest, as many as it has laterals.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        in_strides: tuple[int, ...],
        out_channels: int,
        num_outs: int,
        *,
        start_level: int,
        extra: Literal["pool", "on_input", "on_lateral", "on_output"],
        relu_before_extra: bool,
        upsample: Literal["nearest", "bilinear"],
        norm: Literal["none", "bn", "syncbn", "gn", "gn_ws"],
    ) -> None:
        super().__init__()
        in_channels, in_strides = in_channels[start_level:], in_strides[start_level:]
        if num_outs < len(in_channels):
            raise UsageError(
                f"num_outs of the neck is {num_outs}, but its inputs are {len(in_channels)}: "
                f"give it {len(in_channels)} or more."
            )
        self.extra = extra
        self.relu_before_extra = relu_before_extra
        self.upsample = upsample
        self.num_extra = num_outs - len(in_channels)
        self.out_channels = out_channels
        self.strides = in_strides + tuple(in_strides[-1] * 2**step for step in range(1, self.num_extra + 1))
        self.lateral_convs = nn.ModuleList(
            ConvNorm(channels, out_channels, 1, norm=norm, relu=False) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            ConvNorm(out_channels, out_channels, 3, norm=norm, relu=False) for _ in in_channels
        )
        if extra != "pool":
            for number in range(self.num_extra):
                channels = in_channels[-1] if extra == "on_input" and number == 0 else out_channels
                self.fpn_convs.append(ConvNorm(channels, out_channels, 3, stride=2, norm=norm, relu=False))
        xavier_init(self)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return maps [N,out_channels,H/stride,W/stride] of a backbone's features, lowest stride first."""
        features = features[-len(self.lateral_convs) :]
        laterals = [conv(feature) for conv, feature in zip(self.lateral_convs, features, strict=True)]
        for level in range(len(laterals) - 1, 0, -1):
            below = laterals[level - 1]
            laterals[level - 1] = below + functional.interpolate(laterals[level], below.shape[-2:], mode=self.upsample)
        outs = self.outputs(laterals)
        if self.extra == "pool":
            for _ in range(self.num_extra):
                outs.append(functional.max_pool2d(outs[-1], 1, stride=2))
            return tuple(outs)
        source = {"on_input": features[-1], "on_lateral": laterals[-1], "on_output": outs[-1]}[self.extra]
        for number, conv in enumerate(self.fpn_convs[len(laterals) :]):
            source = conv(functional.relu(source) if self.relu_before_extra and number else source)
            outs.append(source)
        return tuple(outs)

    def outputs(self, laterals: list[Tensor]) -> list[Tensor]:
        """Return the levels, the extra ones aside, of merged laterals [N,out_channels,H/stride,W/stride]."""
        return [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals, strict=False)]
