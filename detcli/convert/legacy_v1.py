"""Checkpoints of MMDetection 0.x and 1.x.

Their softmax has the background as class 0, here it is the last one; their box and mask heads have outputs for the
background, which nothing trains and we don't have; sigmoid heads have none. The heads of two-stage models were not
yet inside a RoI head. Facts: MMDetection 2's tools/model_converters/upgrade_model_version.py, which by their shapes
also turns biases of other layers; here, a layer's name says what its rows are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from detcli.convert import mmdet
from detcli.convert.rules import (
    BACKGROUND_LAST,
    BOXES_WITHOUT_BACKGROUND,
    WITHOUT_BACKGROUND,
    Change,
    Rule,
    background_last,
)

is_backbone = mmdet.is_backbone
unwrap = mmdet.unwrap

TWO_STAGE = (
    Rule(r"(bbox_head\.(?:\d+\.)?fc_cls\..*)", r"roi_head.\1", BACKGROUND_LAST),
    Rule(r"(bbox_head\.(?:\d+\.)?fc_reg\..*)", r"roi_head.\1", BOXES_WITHOUT_BACKGROUND),
    Rule(r"(mask_head\.(?:\d+\.)?conv_logits\..*)", r"roi_head.\1", WITHOUT_BACKGROUND),
    Rule(r"(mask_iou_head\.fc_mask_iou\..*)", r"roi_head.\1", WITHOUT_BACKGROUND),
    Rule(r"((?:(?:bbox|mask|semantic|grid|mask_iou|shared)_head|\w+_roi_extractor)\..*)", r"roi_head.\1"),
)

RETINANET = (
    # Before 0.6, the towers were plain convolutions.
    Rule(r"bbox_head\.(cls|reg)_convs\.(\d)\.(weight|bias)", r"bbox_head.\1_convs.\2.conv.\3"),
)


def recognises(content: Any, path: Path) -> bool:
    """Return whether `content` is a checkpoint of MMDetection before 2.0."""
    return mmdet.has_weights(content) and mmdet.is_version_1(content)


def rules(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> tuple[Rule, ...]:
    """Return the rules of names of a checkpoint, whose kind and numbers of anchors follow from its tensors."""
    if is_backbone(tensors):
        return mmdet.rules(tensors)
    if any(re.match(r"bbox_head\.(\d+\.)?fc_cls\.", name) for name in tensors):
        own: tuple[Rule, ...] = TWO_STAGE
    elif any(name.startswith("bbox_head.retina_cls.") for name in tensors):
        own = RETINANET
    elif any(name.startswith("backbone.extra.") for name in tensors):
        own = _ssd(tensors)
    else:
        own = ()
    return (*own, *mmdet.RENAMED, Rule(r"(.*)", r"\1"))


def _ssd(tensors: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """Return the rules of SSD: a box of an anchor has four outputs, so these say how many anchors a level has."""
    scores = []
    for name, tensor in tensors.items():
        match = re.fullmatch(r"bbox_head\.reg_convs\.(\d)\.weight", name)
        if match:
            level, anchors = match[1], len(tensor) // 4
            change = Change("background last", partial(background_last, anchors=anchors))
            pattern = rf"bbox_head\.cls_convs\.{level}\.(weight|bias)"
            scores.append(Rule(pattern, rf"bbox_head.cls_convs.{level}.0.\1", change))
    return (*scores, *mmdet.SSD)
