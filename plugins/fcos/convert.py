"""FCOS of other code bases, in our terms: the names of its head, and MMDetection's configs."""

from __future__ import annotations

from typing import Any

import torch

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides
from detcli.convert.rules import WITHOUT_BACKGROUND, Added, Rule

TORCHVISION = (
    # Convolution, GroupNorm and ReLU take turns: tower i has its convolution at 3i and its norm at 3i + 1.
    *(
        Rule(rf"head\.{theirs}_head\.conv\.{3 * layer + step}\.(.*)", rf"bbox_head.{ours}_convs.{layer}.{part}.\1")
        for theirs, ours in (("classification", "cls"), ("regression", "reg"))
        for layer in range(4)
        for step, part in enumerate(("conv", "gn"))
    ),
    Rule(r"head\.classification_head\.cls_logits\.(.*)", r"bbox_head.conv_cls.\1", WITHOUT_BACKGROUND),
    Rule(r"head\.regression_head\.bbox_reg\.(.*)", r"bbox_head.conv_reg.\1"),
    Rule(r"head\.regression_head\.bbox_ctrness\.weight", "bbox_head.conv_centerness.weight"),
    Rule(
        r"head\.regression_head\.bbox_ctrness\.bias",
        "bbox_head.conv_centerness.bias",
        adds=tuple(
            Added(f"bbox_head.scales.{level}.scale", lambda _: torch.ones(()), "boxes are not scaled by level there")
            for level in range(5)
        ),
    ),
)

MMDET = (Rule(r"bbox_head\.fcos_(cls|reg|centerness)\.(weight|bias)", r"bbox_head.conv_\1.\2"),)
"""Names before MMDetection 2.1."""

RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
"""The sizes of objects that each level is trained for, where a config of MMDetection does not say."""


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of an MMDetection config whose `bbox_head` is an FCOSHead."""
    head, test = model.group("bbox_head"), model.group("test_cfg")
    model.ignore("train_cfg")  # FCOS has its own assignment
    parts.check_strides(head, strides)
    head.expect("dcn_on_last_conv", False)
    head.expect("bbox_coder", None, {"type": "DistancePointBBoxCoder"})
    return {
        "name": "fcos",
        **parts.tower(head, "gn"),
        "conv_bias": head.take("conv_bias", "auto") is True,
        "regress_limits": _regress_limits(head),
        "center_sampling": head.flag("center_sampling", False),
        "center_radius": head.number("center_sample_radius", 1.5),
        "norm_on_bbox": head.flag("norm_on_bbox", False),
        "centerness_on_reg": head.flag("centerness_on_reg", False),
        "loss_cls": parts.loss(head, "loss_cls", {"type": "FocalLoss"}),
        "loss_bbox": parts.loss(head, "loss_bbox", {"type": "IoULoss"}),
        "loss_centerness": parts.loss(head, "loss_centerness", parts.CROSS_ENTROPY),
        **parts.selection(test),
    }


def _regress_limits(head: Group) -> tuple[float, ...]:
    """Return the sizes between levels, each of which must begin where the one below ends."""
    ranges = head.take("regress_ranges", RANGES)
    try:
        lows, highs = zip(*((float(low), float(high)) for low, high in ranges), strict=True)
    except (TypeError, ValueError, OverflowError):
        raise head.wrong("regress_ranges", "a list of pairs of numbers") from None
    if lows[1:] != highs[:-1] or lows[0] > 0 or highs[-1] < 1e5:
        raise head.unsupported("regress_ranges")
    return tuple(highs[:-1])
