"""What makes a trained model detect faster: batch norms folded into the convolutions before them, weights cast once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
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
            if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm) and not norm.training:
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


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    """Give `conv` the weights and the bias with which it does what both did."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    dtype = conv.weight.dtype
    conv.weight.copy_((conv.weight * scale[:, None, None, None]).to(dtype))
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
