"""What makes a model faster: batch norms folded into the convolutions before them, weights cast once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

Module = TypeVar("Module", bound=nn.Module)

CAST = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""The layers that autocast runs in the lower precision."""


@torch.no_grad()
def fold_norms(model: Module) -> Module:
    """Fold the batch norms in eval mode into their convolutions, in place; return `model`, which can only detect then.

    A norm follows its convolution where `nn.Sequential` says so, or the attribute `conv_norms` of a module: pairs of
    the names of children, convolution first. Other norms stay, and so does a model in training mode.
    """
    for module in list(model.modules()):
        for conv_name, norm_name in _pairs(module):
            conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
            if _folds(conv, norm):
                _fold(conv, norm)
                setattr(module, norm_name, nn.Identity())
    return model


def cast_weights(model: Module, dtype: torch.dtype) -> Module:
    """Cast the weights that autocast would cast in every call to `dtype`, once and in place; return `model`."""
    for module in model.modules():
        if isinstance(module, CAST):
            module.to(dtype)
    return model


def prepare_on_cpu(model: Module) -> Module:
    """Have each module that has a `prepare_detection` rearrange itself for detection on a CPU; return `model`."""
    for module in list(model.modules()):
        prepare = getattr(module, "prepare_detection", None)
        if prepare is not None:
            prepare()
    return model


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(module, nn.Sequential):
        yield from pairwise(name for name, _ in module.named_children())
    yield from getattr(module, "conv_norms", ())


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Return `norm` of `conv` of x [N,C,H,W].

    A batch norm in eval mode is part of the convolution's weights, gradients included: maps are read and kept once in
    place of twice.
    """
    if _folds(conv, norm):
        assert isinstance(conv, nn.Conv2d)
        weight, bias = _folded(conv, norm)
        return functional.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    result: Tensor = norm(conv(x))
    return result


def _folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Tell whether both are one convolution: no other kind, which may do more, and statistics that do not change."""
    return type(conv) is nn.Conv2d and isinstance(norm, _BatchNorm) and not norm.training


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    """Give `conv` the weights and the bias with which it does what both did."""
    assert isinstance(conv, nn.Conv2d)
    weight, bias = _folded(conv, norm)
    conv.weight.copy_(weight)
    conv.bias = nn.Parameter(bias, requires_grad=False)


def _folded(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weights and the bias with which `conv` does what both do."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    dtype = conv.weight.dtype
    return (conv.weight * scale[:, None, None, None]).to(dtype), bias.to(dtype)
