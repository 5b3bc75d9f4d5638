"""Classes of every pixel from a feature pyramid (Kirillov et al. 2019, Panoptic FPN, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from detcli.nn.blocks import ConvNorm, Norm
from detcli.nn.processes import reduce_mean
from detcli.structures import UNLABELLED


class SemanticHead(nn.Module):
    """Logits of classes at the lowest level's stride: each level is brought there step by step, and they are added.

    A step is a convolution with a norm and bilinear upsampling by 2 (figure 3); the lowest level has the convolution
    alone. The loss is times `loss_weight`.
    """

    def __init__(
        self,
        in_channels: int,
        strides: tuple[int, ...],
        num_classes: int,
        *,
        channels: int,
        norm: Norm,
        loss_weight: float,
    ) -> None:
        super().__init__()
        doublings = [int(math.log2(stride // strides[0])) for stride in strides]
        self.conv_upsample_layers = nn.ModuleList(
            ConvUpsample(in_channels, channels, count, norm) for count in doublings
        )
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)
        nn.init.kaiming_normal_(self.conv_logits.weight, mode="fan_out", nonlinearity="relu")
        assert self.conv_logits.bias is not None
        nn.init.zeros_(self.conv_logits.bias)
        self.stride = strides[0]
        self.loss_weight = loss_weight

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits [N,classes,H,W] of maps [N,C,H/2^k,W/2^k], lowest level first; those above are not used."""
        total = None
        for layer, level in zip(self.conv_upsample_layers, features, strict=False):
            hidden = layer(level)
            total = hidden if total is None else total + hidden
        logits: Tensor = self.conv_logits(total)
        return logits

    def losses(self, features: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return loss_sem_seg: the mean cross-entropy of the labels [N,H,W] that are not `UNLABELLED`."""
        logits = upsample(self(features).float(), self.stride)
        total = functional.cross_entropy(logits, labels.long(), ignore_index=UNLABELLED, reduction="sum")
        return {"loss_sem_seg": total / reduce_mean((labels != UNLABELLED).sum(), least=1) * self.loss_weight}


class ConvUpsample(nn.Module):
    """A convolution, then upsampling by 2, `doublings` times; once without upsampling where that is 0."""

    def __init__(self, in_channels: int, channels: int, doublings: int, norm: Norm) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * max(1, doublings)
        self.conv = nn.ModuleList(ConvNorm(width, channels, 3, norm=norm) for width in widths[:-1])
        self.doublings = doublings

    def forward(self, x: Tensor) -> Tensor:
        """Return [N,channels,H*2^doublings,W*2^doublings] of x [N,C,H,W]."""
        for conv in self.conv:
            x = conv(x)
            if self.doublings:
                x = upsample(x, 2)
        return x


def upsample(logits: Tensor, factor: int) -> Tensor:
    """Return maps [N,C,H,W] `factor` times as large, bilinearly."""
    return functional.interpolate(logits, scale_factor=float(factor), mode="bilinear", align_corners=False)


def resize_logits(logits: Tensor, factor: int, inside: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the logits of an image [C,H,W] in pixels of a picture of `size` (height, width).

    They become `factor` times as large, as the network's input was; of that, the part `inside` (height, width) is the
    picture.
    """
    whole = upsample(logits[None].float(), factor)[..., : inside[0], : inside[1]]
    return functional.interpolate(whole, size, mode="bilinear", align_corners=False)[0]
