"""torchvision's detection models (torchvision.models.detection, the *_resnet50_fpn of version 1), ResNets and ResNeXts.

torchvision counts the background as class 0; its dense heads have that output too, which nothing trains. Here labels
start at the first object class and the background is last, so outputs are cut or turned round. The configs hold what
torchvision does otherwise than MMDetection: anchors on whole pixels, RoIAlign with half a cell's shift, deltas limited
against growth only, FCOS' points in the corners of cells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detcli.convert.rules import (
    BACKGROUND_LAST,
    BOXES_WITHOUT_BACKGROUND,
    WITHOUT_BACKGROUND,
    Rule,
    Unwrapped,
    is_weights,
    left_out,
    listed,
    only_tensors,
    plugin_rules,
    rename,
)
from detcli.data.classes import COCO
from detcli.errors import DetcliError, unknown
from detcli.nn.weights import COUNTER
from detcli.published import MASK_ROI_HEAD
from detcli.structures import ClassMap

INPUT: dict[str, Any] = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "channels": "rgb"}
"""The pixel mean and deviation of all models here, of pixels 0..255; images are padded to multiples of 32."""

CLASSES = 91
"""The outputs of the published models: the background, then COCO's category ids 1 to 90, of which 10 are not used."""

CLASS_MAP = ClassMap(
    tuple(dict(zip(COCO.ids, COCO.names, strict=True)).get(number, f"unused {number}") for number in range(1, CLASSES)),
    tuple(range(1, CLASSES)),
)
"""What labels of the published models mean."""

REASONS = {
    "optimizer": "the state of the optimiser, for training to go on there",
    "lr_scheduler": "the state of the schedule, for training to go on there",
    "scaler": "the state of the loss's scale, for training to go on there",
}

COUNT = Rule(r"(.*)\.num_batches_tracked", None, why="frozen batch norms do not count")

BACKBONE = (
    COUNT,
    Rule(r"backbone\.body\.(.*)", r"backbone.\1"),
    Rule(r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.lateral_convs.\1.conv.\2"),
    Rule(r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.fpn_convs.\1.conv.\2"),
)
"""Names of ResNet and FPN; files from before torchvision 0.13 lack the `.0` of a convolution in a sequence."""

EXTRA_LEVELS = (
    Rule(r"backbone\.fpn\.extra_blocks\.p6\.(.*)", r"neck.fpn_convs.3.conv.\1"),
    Rule(r"backbone\.fpn\.extra_blocks\.p7\.(.*)", r"neck.fpn_convs.4.conv.\1"),
)

BOX_HEADS = (
    Rule(r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"rpn_head.rpn_conv.\1"),
    Rule(r"rpn\.head\.cls_logits\.(.*)", r"rpn_head.rpn_cls.\1"),
    Rule(r"rpn\.head\.bbox_pred\.(.*)", r"rpn_head.rpn_reg.\1"),
    Rule(r"roi_heads\.box_head\.fc6\.(.*)", r"roi_head.bbox_head.shared_fcs.0.\1"),
    Rule(r"roi_heads\.box_head\.fc7\.(.*)", r"roi_head.bbox_head.shared_fcs.1.\1"),
    Rule(r"roi_heads\.box_predictor\.cls_score\.(.*)", r"roi_head.bbox_head.fc_cls.\1", BACKGROUND_LAST),
    Rule(r"roi_heads\.box_predictor\.bbox_pred\.(.*)", r"roi_head.bbox_head.fc_reg.\1", BOXES_WITHOUT_BACKGROUND),
)

MASK_HEAD = (
    *(
        Rule(
            rf"roi_heads\.mask_head\.(?:{number}\.0|mask_fcn{number + 1})\.(.*)",
            rf"roi_head.mask_head.convs.{number}.conv.\1",
        )
        for number in range(4)
    ),
    Rule(r"roi_heads\.mask_predictor\.conv5_mask\.(.*)", r"roi_head.mask_head.upsample.\1"),
    Rule(r"roi_heads\.mask_predictor\.mask_fcn_logits\.(.*)", r"roi_head.mask_head.conv_logits.\1", WITHOUT_BACKGROUND),
)

CLASSIFIER = Rule(r"fc\.(weight|bias)", None, why="the classifier of ImageNet's classes")


@dataclass(frozen=True, slots=True)
class Source:
    """One of torchvision's models: the config of ours, without the number of classes, and its rules of shared parts."""

    model: dict[str, Any]
    rules: tuple[Rule, ...]


def _backbone(norm_eps: float) -> dict[str, Any]:
    return {"name": "r50", "norm_trained": False, "norm_eps": norm_eps}


def _roi_align(size: int) -> dict[str, Any]:
    return {"name": "roi_align", "output_size": size, "sampling_ratio": 2, "aligned": False}


TWO_STAGE: dict[str, Any] = {
    "backbone": _backbone(0.0),
    "rpn_head": {
        "name": "rpn",
        "anchor_style": "torchvision",
        "loss_bbox": {"name": "smooth_l1", "beta": 1 / 9},
        "clamp_below": False,
        "train_proposals": 2000,
    },
}

ROI_HEAD: dict[str, Any] = {
    "roi_extractor": _roi_align(7),
    "bbox_head": {"name": "conv_fc", "loss_bbox": {"name": "smooth_l1", "beta": 1 / 9}, "clamp_below": False},
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
        (*BACKBONE, *EXTRA_LEVELS),
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
        (*BACKBONE, *EXTRA_LEVELS),
    ),
    "fasterrcnn_resnet50_fpn": Source(
        {"name": "faster_rcnn", **TWO_STAGE, "roi_head": {"name": "standard", **ROI_HEAD}}, (*BACKBONE, *BOX_HEADS)
    ),
    "maskrcnn_resnet50_fpn": Source(
        {
            "name": "mask_rcnn",
            **TWO_STAGE,
            "roi_head": {**MASK_ROI_HEAD, **ROI_HEAD, "mask_roi_extractor": _roi_align(14)},
        },
        (*BACKBONE, *BOX_HEADS, *MASK_HEAD),
    ),
}


def source(name: str) -> Source:
    """Return what is known of torchvision's model builder `name`.

    Raises `UsageError` for a builder that is not known.
    """
    if name not in SOURCES:
        raise unknown("model of torchvision", name, SOURCES)
    return SOURCES[name]


def config(name: str) -> dict[str, Any]:
    """Return the partial run config of torchvision's model builder `name`."""
    return {"model": source(name).model, "input": INPUT}


def recognises(content: Any, path: Path) -> bool:
    """Return whether `content` is one of torchvision's detectors, or a ResNet or ResNeXt by its names."""
    if not isinstance(content, Mapping):
        return False
    weights = content.get("model", content)
    if not is_weights(weights):
        return False
    detector = any(name.startswith("backbone.body.") for name in weights)
    return detector or {"conv1.weight", "layer1.0.conv1.weight"} <= weights.keys()


def unwrap(content: Any) -> Unwrapped:
    """Return the weights of a file, and of a checkpoint of torchvision's reference training.

    Raises `DetcliError` for weights that are no tensors, and for tensors in a place that is not known.
    """
    if "model" not in content:
        return Unwrapped(only_tensors(content, "a file of torchvision"))
    weights = only_tensors(content["model"], "a checkpoint of torchvision")
    return Unwrapped(weights, {}, left_out(content, ("model",), REASONS, "torchvision"))


def rules(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> tuple[Rule, ...]:
    """Return the rules of names of shared parts."""
    if is_backbone(tensors):
        return (CLASSIFIER, Rule(r"(.*)", r"\1"))
    return (*BACKBONE, *EXTRA_LEVELS, *BOX_HEADS, *MASK_HEAD)


def is_backbone(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of a ResNet alone."""
    return all(re.match(r"(conv1|bn1|layer\d|fc)\.", name) for name in tensors)


def convert(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of our model of a state dict of torchvision's model builder `name`.

    Raises `DetcliError` that lists keys for which there is no rule, and rules for which there is no key.
    """
    kind = source(name)
    origin = f"these are not the weights of torchvision's {name}"
    every = (*plugin_rules("torchvision", kind.model["name"]), *kind.rules)
    converted, _ = rename(weights, every, origin)
    unused = [
        rule.name for rule in every if rule.name and not any(re.fullmatch(rule.pattern, theirs) for theirs in weights)
    ]
    if unused:
        raise DetcliError(f"{origin}: {listed([f'nothing is there for {ours}' for ours in unused])}.")
    for ours in [ours for ours in converted if ours.endswith(".running_var")]:
        converted[ours.removesuffix(".running_var") + COUNTER] = torch.tensor(0)
    return converted
