"""The optimiser with its parameter groups, and the learning rate over a run."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import torch
from torch import nn

from detcli.config import OptimConfig, ScheduleConfig

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def scaled_lr(optim: OptimConfig, batch: int) -> float:
    """Return the learning rate for `batch` images a step: linear in the reference batch (Goyal et al., 1706.02677)."""
    return optim.lr * batch / optim.batch if optim.batch else optim.lr


def parameter_groups(model: nn.Module, optim: OptimConfig, lr: float) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay; each group has its own `base_lr`.

    Norm layers take `norm_decay`, biases outside of them `bias_decay` and `bias_lr`, parameters of the backbone
    `backbone_lr`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            rate, decay = lr, optim.weight_decay
            if f"{module_name}.".startswith("backbone."):
                rate *= optim.backbone_lr
            if isinstance(module, NORMS):
                decay = decay if optim.norm_decay is None else optim.norm_decay
            elif name == "bias":
                rate *= optim.bias_lr
                decay = decay if optim.bias_decay is None else optim.bias_decay
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, optim: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """Return SGD with momentum or AdamW over the `parameter_groups` of `model`."""
    groups = parameter_groups(model, optim, lr)
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=optim.betas)
    return torch.optim.SGD(groups, lr=lr, momentum=optim.momentum)


class LearningRate:
    """The factor on the learning rate at each iteration (0-based): warm-up times the schedule.

    Warm-up as MMDetection and Detectron2 have it: ``linear`` goes from `warmup_ratio` to 1, ``constant`` stays at
    `warmup_ratio`; it runs on top of the schedule, which counts from the first iteration.
    """

    def __init__(self, sched: ScheduleConfig, steps_per_epoch: int) -> None:
        scale = steps_per_epoch if sched.unit == "epoch" else 1
        self.sched = sched
        self.total = sched.length * scale
        self.drops = [drop * scale for drop in sched.drops]

    def factor(self, step: int) -> float:
        """Return the factor at iteration `step`."""
        sched = self.sched
        factor = 1.0
        if sched.policy == "step":
            factor = sched.gamma ** bisect_right(self.drops, step)
        elif sched.policy == "cosine":
            cosine = 0.5 * (1 + math.cos(math.pi * min(step / self.total, 1.0)))
            factor = sched.min_lr_ratio + (1 - sched.min_lr_ratio) * cosine
        if sched.warmup != "none" and step < sched.warmup_iters:
            share = step / sched.warmup_iters if sched.warmup == "linear" else 0.0
            factor *= sched.warmup_ratio + (1 - sched.warmup_ratio) * share
        return factor

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the learning rate of every group for iteration `step`; return that of the first group."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return float(optimizer.param_groups[0]["lr"])
