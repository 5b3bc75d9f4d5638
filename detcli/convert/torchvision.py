"""Detection models of torchvision (torchvision.models.detection, the *_resnet50_fpn of version 1) under our names.

torchvision counts the background as class 0; its dense heads have that output too, which nothing trains. Here labels
start at the first object class and the background is last, so outputs are cut or turned round. The configs hold what
torchvision does otherwise than MMDetection: anchors on whole pixels, RoIAlign with half a cell's shift, deltas limited
against growth only, FCOS' points in the corners of cells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from detcli.errors import DetcliError, unknown

INPUT: dict[str, Any] = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "channels": "rgb"}
"""The pixel mean and deviation of all models here, of pixels 0..255; images are padded to multiples of 32."""

CLASSES = 91
"""The outputs of the published models: the background, then COCO's category ids 1 to 90, of which 10 are not used."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a whole key that matches `pattern` is called here, and how its tensor changes; no name: it is dropped."""

    pattern: str
    name: str | None
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True, slots=True)
class Source:
    """One of torchvision's models: the config of our model, without the number of classes, and its rules of names.

    `extra` are tensors that torchvision does not have.
    """

    model: dict[str, Any]
    rules: tuple[Rule, ...]
    extra: dict[str, Tensor] = field(default_factory=dict)


def background_last(tensor: Tensor) -> Tensor:
    """Return rows [classes,...] with the first one at the end."""
    return tensor.roll(-1, 0)


def drop_background(rows: int, anchors: int = 1) -> Callable[[Tensor], Tensor]:
    """Return a function that takes the `rows` rows of class 0 out of each of `anchors` equal parts of a tensor."""

    def drop(tensor: Tensor) -> Tensor:
        parts = tensor.reshape(anchors, -1, *tensor.shape[1:])
        return parts[:, rows:].flatten(0, 1)

    return drop


BACKBONE = (
    Rule(r"backbone\.body\.(.*)\.num_batches_tracked", None),
    Rule(r"backbone\.body\.(.*)", r"backbone.\1"),
    Rule(r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.lateral_convs.\1.conv.\2"),
    Rule(r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.fpn_convs.\1.conv.\2"),
)
"""Names of ResNet and FPN; files from before torchvision 0.13 lack the `.0` of a convolution in a sequence."""

EXTRA_LEVELS = (
    Rule(r"backbone\.fpn\.extra_blocks\.p6\.(.*)", r"neck.fpn_convs.3.conv.\1"),
    Rule(r"backbone\.fpn\.extra_blocks\.p7\.(.*)", r"neck.fpn_convs.4.conv.\1"),
)

RETINANET = (
    *BACKBONE,
    *EXTRA_LEVELS,
    # In files from before torchvision 0.13, convolutions and ReLUs take turns: convolution i is at 2i.
    *(
        Rule(
            rf"head\.{theirs}_head\.conv\.(?:{layer}\.0|{2 * layer})\.(weight|bias)",
            rf"bbox_head.{ours}_convs.{layer}.conv.\1",
        )
        for theirs, ours in (("classification", "cls"), ("regression", "reg"))
        for layer in range(4)
    ),
    Rule(r"head\.classification_head\.cls_logits\.(.*)", r"bbox_head.retina_cls.\1", drop_background(1, anchors=9)),
    Rule(r"head\.regression_head\.bbox_reg\.(.*)", r"bbox_head.retina_reg.\1"),
)

FCOS = (
    *BACKBONE,
    *EXTRA_LEVELS,
    # Convolution, GroupNorm and ReLU take turns: tower i has its convolution at 3i and its norm at 3i + 1.
    *(
        Rule(rf"head\.{theirs}_head\.conv\.{3 * layer + step}\.(.*)", rf"bbox_head.{ours}_convs.{layer}.{part}.\1")
        for theirs, ours in (("classification", "cls"), ("regression", "reg"))
        for layer in range(4)
        for step, part in enumerate(("conv", "gn"))
    ),
    Rule(r"head\.classification_head\.cls_logits\.(.*)", r"bbox_head.conv_cls.\1", drop_background(1)),
    Rule(r"head\.regression_head\.bbox_reg\.(.*)", r"bbox_head.conv_reg.\1"),
    Rule(r"head\.regression_head\.bbox_ctrness\.(.*)", r"bbox_head.conv_centerness.\1"),
)

FASTER_RCNN = (
    *BACKBONE,
    Rule(r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"rpn_head.rpn_conv.\1"),
    Rule(r"rpn\.head\.cls_logits\.(.*)", r"rpn_head.rpn_cls.\1"),
    Rule(r"rpn\.head\.bbox_pred\.(.*)", r"rpn_head.rpn_reg.\1"),
    Rule(r"roi_heads\.box_head\.fc6\.(.*)", r"roi_head.bbox_head.shared_fcs.0.\1"),
    Rule(r"roi_heads\.box_head\.fc7\.(.*)", r"roi_head.bbox_head.shared_fcs.1.\1"),
    Rule(r"roi_heads\.box_predictor\.cls_score\.(.*)", r"roi_head.bbox_head.fc_cls.\1", background_last),
    Rule(r"roi_heads\.box_predictor\.bbox_pred\.(.*)", r"roi_head.bbox_head.fc_reg.\1", drop_background(4)),
)

MASK_RCNN = (
    *FASTER_RCNN,
    *(
        Rule(
            rf"roi_heads\.mask_head\.(?:{number}\.0|mask_fcn{number + 1})\.(.*)",
            rf"roi_head.mask_head.convs.{number}.conv.\1",
        )
        for number in range(4)
    ),
    Rule(r"roi_heads\.mask_predictor\.conv5_mask\.(.*)", r"roi_head.mask_head.upsample.\1"),
    Rule(r"roi_heads\.mask_predictor\.mask_fcn_logits\.(.*)", r"roi_head.mask_head.conv_logits.\1", drop_background(1)),
)


def _backbone(norm_eps: float) -> dict[str, Any]:
    return {"name": "r50", "norm_trained": False, "norm_eps": norm_eps}


def _roi_align(size: int) -> dict[str, Any]:
    return {"name": "roi_align", "output_size": size, "sampling_ratio": 2, "aligned": False}


TWO_STAGE: dict[str, Any] = {
    "backbone": _backbone(0.0),
    "anchor_style": "torchvision",
    "clamp_below": False,
    "rpn_loss_bbox": {"name": "smooth_l1", "beta": 1 / 9},
    "loss_bbox": {"name": "smooth_l1", "beta": 1 / 9},
    "train_proposals": 2000,
    "roi_extractor": _roi_align(7),
}

SOURCES = {
    "retinanet_resnet50_fpn": Source(
        {
            "name": "retinanet",
            "backbone": _backbone(0.0),
            "neck": {"name": "fpn", "start_level": 1, "extra": "on_output", "relu_before_extra": True},
            "anchor_style": "torchvision",
            "clamp_below": False,
            "max_per_image": 300,
        },
        RETINANET,
    ),
    "fcos_resnet50_fpn": Source(
        {
            "name": "fcos",
            "backbone": _backbone(1e-5),
            "conv_bias": True,
            "center_sampling": True,
            "norm_on_bbox": True,
            "centerness_on_reg": True,
            "rank_by": "root",
            "point_offset": 0.0,
            "whole_pixels": True,
            "loss_bbox": "giou",
            "score_threshold": 0.2,
            "nms_threshold": 0.6,
        },
        FCOS,
        {f"bbox_head.scales.{level}.scale": torch.ones(()) for level in range(5)},
    ),
    "fasterrcnn_resnet50_fpn": Source({"name": "faster_rcnn", **TWO_STAGE}, FASTER_RCNN),
    "maskrcnn_resnet50_fpn": Source(
        {"name": "mask_rcnn", **TWO_STAGE, "mask_roi_extractor": _roi_align(14)}, MASK_RCNN
    ),
}


def source(name: str) -> Source:
    """Return what is known of torchvision's model builder `name`.

    Raises `UsageError` for a builder that is not known.
    """
    if name not in SOURCES:
        raise unknown("model of torchvision", name, SOURCES)
    return SOURCES[name]


def convert(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of our model of a state dict of torchvision's model builder `name`.

    Raises `DetcliError` that lists keys for which there is no rule, and rules for which there is no key.
    """
    kind = source(name)
    converted = dict(kind.extra)
    used = set()
    strange = []
    for key, tensor in weights.items():
        for rule in kind.rules:
            match = re.fullmatch(rule.pattern, key)
            if match:
                used.add(rule)
                if rule.name is not None:
                    converted[match.expand(rule.name)] = rule.change(tensor)
                break
        else:
            strange.append(key)
    unused = [rule.name for rule in kind.rules if rule not in used and rule.name is not None]
    if strange or unused:
        problems = [f"{key} has no place in it" for key in strange] + [f"nothing is there for {key}" for key in unused]
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise DetcliError(f"these are not the weights of torchvision's {name}: {'; '.join(problems[:4])}{more}.")
    # Frozen batch norms do not count batches.
    for key in [key for key in converted if key.endswith(".running_var")]:
        converted[key.removesuffix("running_var") + "num_batches_tracked"] = torch.tensor(0)
    return converted
