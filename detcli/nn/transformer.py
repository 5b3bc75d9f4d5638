"""Transformers on maps (Vaswani et al. 2017, arXiv 1706.03762; Carion et al. 2020, arXiv 2005.12872, appendix A.3).

Tokens are [N,T,C]. What tells a token's place is added to queries and keys at every attention, and not to values.
Norms follow the residual connections. State-dict names are MMDetection's: attentions.0.attn, ffns.0.layers.0.0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TEMPERATURE = 10000
"""The longest wavelength of positions, in turns of 2 pi."""


class Attention(nn.Module):
    """Attention of several heads, added to its queries."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Tensor,
        query_positions: Tensor,
        keys: Tensor | None = None,
        key_positions: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Return [N,Q,C] of queries [N,Q,C] that look at keys [N,K,C], or at each other; positions broadcast to them.

        Where padding [N,K] is True, no query looks; at least one key of each image must be left.
        """
        placed = queries + query_positions
        if keys is None:
            values, placed_keys = queries, placed
        else:
            values, placed_keys = keys, keys if key_positions is None else keys + key_positions
        seen, _ = self.attn(placed, placed_keys, values, key_padding_mask=padding, need_weights=False)
        result: Tensor = queries + self.dropout(seen)
        return result


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, added to their input where `residual`."""

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0, *, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(hidden, channels),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [...,C] of x [...,C]."""
        result: Tensor = self.layers(x)
        return x + result if self.residual else result


class EncoderLayer(nn.Module):
    """Tokens look at each other, then each is looked at by itself."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, heads, dropout)])
        self.ffns = nn.ModuleList([FeedForward(channels, hidden, dropout)])
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))

    def forward(self, tokens: Tensor, positions: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return [N,T,C] of tokens [N,T,C] at positions [N,T,C]; for `padding` [N,T] see `Attention`."""
        tokens = self.norms[0](self.attentions[0](tokens, positions, padding=padding))
        result: Tensor = self.norms[1](self.ffns[0](tokens))
        return result


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the tokens of a memory, then each is looked at by itself."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attention(channels, heads, dropout) for _ in range(2))
        self.ffns = nn.ModuleList([FeedForward(channels, hidden, dropout)])
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        queries: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Return [N,Q,C] of queries [N,Q,C] and memory [N,T,C]; for `padding` [N,T] of the memory see `Attention`."""
        queries = self.norms[0](self.attentions[0](queries, query_positions))
        queries = self.norms[1](self.attentions[1](queries, query_positions, memory, memory_positions, padding))
        result: Tensor = self.norms[2](self.ffns[0](queries))
        return result


def cells_inside(sizes: Tensor, padded: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Return how many rows and columns [N,2] of a map of `shape` have their first pixel inside their image.

    sizes [N,2] (height, width) are those of the images in a batch whose images are of the size `padded`.
    """
    counts = [
        (torch.arange(cells, device=sizes.device) * pixels // cells < size[:, None]).sum(1)
        for cells, pixels, size in zip(shape, padded, sizes.T, strict=True)
    ]
    return torch.stack(counts, dim=1)


def padding_mask(inside: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return bool [N,H*W], True where a cell of a map of `shape` is beyond the `inside` [N,2] rows and columns."""
    rows, columns = (torch.arange(cells, device=inside.device) >= inside[:, [side]] for side, cells in enumerate(shape))
    return (rows[:, :, None] | columns[:, None]).flatten(1)


def sine_positions(inside: Tensor, shape: tuple[int, int], channels: int, *, offset: float = 0.0) -> Tensor:
    """Return [N,H*W,channels] for the cells of a map of `shape`: sines and cosines of their place in their image.

    A cell's place is its number, from 1, plus `offset`, divided by how many cells are `inside` [N,2] (rows, columns)
    the image. The first half of the channels is of rows, the second of columns.
    """
    half = channels // 2
    pair = torch.arange(half, device=inside.device) // 2
    frequencies = 2 * math.pi / TEMPERATURE ** (2 * pair / half)
    halves = []
    for count, cells in zip(inside.T[..., None], shape, strict=True):
        places = (torch.arange(1, cells + 1, device=inside.device) + offset) / (count + 1e-6)
        angles = places[..., None] * frequencies
        halves.append(torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2))
    rows, columns = halves[0][:, :, None].expand(-1, -1, shape[1], -1), halves[1][:, None].expand(-1, shape[0], -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(1, 2)
