"""Hybrid Task Cascade of MMDetection's configs, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides
from detcli.convert.mmdet_stages import cascade, first_stage


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config with a HybridTaskCascadeRoIHead."""
    roi_head = model.group("roi_head")
    stages = cascade(model, strides, "HTCMaskHead")
    if "mask_head" not in stages:
        raise roi_head.wrong("mask_head", "a head for each stage")
    roi_head.expect("interleaved", True)
    roi_head.expect("mask_info_flow", True)
    roi_head.expect("semantic_fusion", ("box", "mask"), ["box", "mask"])
    if not roi_head.has("semantic_head"):
        roi_head.ignore("semantic_roi_extractor", "semantic_fusion")
        branch: dict[str, Any] = {"semantic": False}
    else:
        branch = _semantic_branch(roi_head, strides)
    second_stage = {"name": "htc", **stages, **branch}
    return {"name": "htc", "rpn_head": first_stage(model, strides), "roi_head": second_stage}


def _semantic_branch(roi_head: Group, strides: Strides) -> dict[str, Any]:
    """Return the arguments of the branch of pixels' classes."""
    head = roi_head.group("semantic_head")
    if head.kind != "FusedSemanticHead":
        raise head.unsupported("type")
    level = head.integer("fusion_level")
    if strides is not None:
        head.expect("num_ins", len(strides))
        if level >= len(strides):
            raise head.unsupported("fusion_level")
    head.ignore("num_ins", "init_cfg")
    head.expect("conv_out_channels", head.integer("in_channels", 256))
    head.expect("conv_cfg", None)
    head.expect("norm_cfg", None)
    if head.has("loss_seg"):
        loss = head.group("loss_seg")
        loss.expect("type", "CrossEntropyLoss")
        loss.expect("use_sigmoid", False)
        loss.expect("ignore_index", 255)
        weight = loss.number("loss_weight", 1.0)
    else:
        head.expect("ignore_label", 255)
        weight = head.number("loss_weight", 0.2)
    return {
        "num_semantic_classes": head.integer("num_classes", least=1),
        "semantic_level": level,
        "semantic_convs": head.integer("num_convs", 4),
        "semantic_loss_weight": weight,
        "semantic_roi_extractor": parts.roi_extractor(
            roi_head, "semantic_roi_extractor", None if strides is None else strides[level : level + 1]
        ),
    }
