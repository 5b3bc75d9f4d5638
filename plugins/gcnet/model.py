"""GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond (Cao et al. 2019, arXiv 1904.11492).

The positions of a map are added up, each by its weight, transformed, and added to every position. In a block of a
ResNet, this is done to the maps of its last convolution, before the shortcut is added.
"""

from __future__ import annotations

from torch import Tensor, nn


def context_block(*, in_channels: int, ratio: float = 0.25) -> ContextBlock:
    """Return a global context block for maps of `in_channels`, whose transform is `ratio` times as wide inside."""
    return ContextBlock(in_channels, int(in_channels * ratio))


class ContextBlock(nn.Module):
    """Attention with the same weights of positions for all queries (figure 4d): of `channels`, `width` inside."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv_mask = nn.Conv2d(channels, 1, 1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.LayerNorm([width, 1, 1]),
            nn.ReLU(inplace=True),
            last := nn.Conv2d(width, channels, 1),
        )
        nn.init.kaiming_normal_(self.conv_mask.weight, nonlinearity="relu")
        # At first, the maps stay as they are.
        for parameter in (self.conv_mask.bias, last.weight, last.bias):
            nn.init.zeros_(parameter)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return [N,C,H,W] of x [N,C,H,W]."""
        weights = self.conv_mask(x).flatten(2).softmax(-1)  # [N,1,HW]
        context = x.flatten(2) @ weights.mT  # [N,C,1]
        result: Tensor = x + self.channel_add_conv(context[..., None])
        return result
