"""Small modules that backbones, necks and heads are made of, and how their weights start."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn, ones
from torch import distributed as dist
from torch.autograd import Function
from torch.nn.modules._functions import SyncBatchNorm as sync_batch_norm

from detcli.errors import UsageError
from detcli.nn.processes import process_count

Norm: TypeAlias = Literal["bn", "syncbn", "gn", "gn_ws"]
"""How maps are normalised. gn_ws is gn after convolutions with standardised weights (see `make_conv`)."""


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """Return a normalisation layer for maps of `channels` channels; gn has 32 groups (Wu and He 2018, section 4).

    syncbn shares its statistics between processes, and is bn where there is one process.

    Raises `UsageError` when the channels can't be divided into the groups.
    """
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "syncbn":
        return SyncBatchNorm(channels)
    if channels % 32:
        raise UsageError(f"norm {kind} has 32 groups, which maps of {channels} channels can't be divided into: set bn.")
    return nn.GroupNorm(32, channels)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes; torch's own module refuses to do it on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [N,C,H,W] normalised; N,H,W may differ between processes."""
        if not self.training or process_count() == 1:
            return super().forward(x)
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked += 1
        if x.is_cuda:
            fused: Tensor = sync_batch_norm.apply(
                x,
                self.weight,
                self.bias,
                self.running_mean,
                self.running_var,
                self.eps,
                self.momentum,
                dist.group.WORLD,
                process_count(),
            )
            return fused
        count = torch.tensor([float(x.numel() // x.shape[1])])
        dist.all_reduce(count)
        mean: Tensor = _Total.apply(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised


def norm_name(kind: Norm) -> Literal["bn", "gn"]:
    """Return what a normalisation layer is called in a state dict."""
    return "gn" if kind in ("gn", "gn_ws") else "bn"


def make_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    norm: Norm | Literal["none"] = "none",
) -> nn.Conv2d:
    """Return a convolution that keeps the map's size at stride 1, of the kind that goes with the norm after it."""
    kind = StandardizedConv2d if norm == "gn_ws" else nn.Conv2d
    padding = kernel_size // 2 * dilation
    return kind(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and deviation 1 in each output (Qiao et al. 2019, equation 5)."""

    eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Return [N,out_channels,H/stride,W/stride] of x [N,in_channels,H,W]."""
        weight = self.weight.float()
        deviation, mean = torch.std_mean(weight, dim=(1, 2, 3), keepdim=True)
        standardized = ((weight - mean) / (deviation + self.eps)).to(self.weight.dtype)
        result: Tensor = self._conv_forward(x, standardized, self.bias)
        return result


class ConvNorm(nn.Module):
    """A convolution that keeps the map's size at stride 1, then a norm and a ReLU where they are asked for.

    The children are `conv` and `bn` or `gn`. `bias` "auto" means: where no norm follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: Norm | Literal["none"] = "none",
        relu: bool = True,
        bias: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.conv = make_conv(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            groups=groups,
            bias=norm == "none" if bias == "auto" else bias,
            norm=norm,
        )
        self.norm_name = None if norm == "none" else norm_name(norm)
        if norm != "none":
            self.add_module(norm_name(norm), make_norm(norm, out_channels))
        self.conv_norms = () if norm == "none" else (("conv", norm_name(norm)),)
        self.relu = nn.ReLU(inplace=True) if relu else None
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N,out_channels,H/stride,W/stride] of x [N,in_channels,H,W]."""
        x = self.conv(x)
        if self.norm_name:
            x = self.get_submodule(self.norm_name)(x)
        return self.relu(x) if self.relu else x


class Scale(nn.Module):
    """A learned factor, `scale`."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(ones(()) * value)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the factor."""
        return x * self.scale


def normal_init(module: nn.Module, std: float, bias: float = 0.0) -> None:
    """Draw the weights of the convolutions and linear layers in `module` from N(0, std²), and set biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def xavier_init(module: nn.Module) -> None:
    """Draw the weights of the convolutions and linear layers in `module` from Glorot's uniform; biases: 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def logit(probability: float) -> float:
    """Return the number whose sigmoid is `probability`: minus infinity for 0, infinity for 1."""
    if 0 < probability < 1:
        return math.log(probability / (1 - probability))
    return -math.inf if probability <= 0 else math.inf


class _Total(Function):
    """The sum of a tensor over all processes; the gradient of each is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
