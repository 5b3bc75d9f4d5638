"""Grid R-CNN of MMDetection's configs, in our terms."""

from __future__ import annotations

import math
from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides
from detcli.convert.mmdet_stages import box_selection, class_head, first_stage

IMAGES_A_DEVICE = 2
"""How many images the RoIs of a device are of in the published configs."""


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config with a GridRoIHead."""
    roi_head = model.group("roi_head")
    train, test = model.group("train_cfg").group("rcnn"), model.group("test_cfg").group("rcnn")
    roi_head.expect("shared_head", None)
    roi_head.expect("mask_roi_extractor", None)
    roi_head.expect("mask_head", None)
    roi_head.ignore("init_cfg", "pretrained")
    model.expect("bbox_head", None)
    train.ignore("mask_size")
    extractor = parts.roi_extractor(roi_head, "bbox_roi_extractor", strides)
    second_stage = {
        "name": "grid",
        "roi_extractor": extractor,
        "bbox_head": _class_head(roi_head.group("bbox_head"), extractor),
        "assigner": parts.assigner(train),
        "sampler": parts.sampler(train),
        **_grid(roi_head, strides),
        "point_radius": train.integer("pos_radius"),
        "max_grid_rois": train.integer("max_num_grid", 192, least=IMAGES_A_DEVICE) // IMAGES_A_DEVICE,
        **box_selection(test),
        # What it cuts at the borders is a copy of the boxes.
        "clip": False,
    }
    return {"name": "grid_rcnn", "rpn_head": first_stage(model, strides), "roi_head": second_stage}


def _class_head(head: Group, extractor: dict[str, Any]) -> dict[str, Any]:
    if head.flag("with_reg", True):
        raise head.unsupported("with_reg")
    head.ignore("bbox_coder", "loss_bbox", "reg_class_agnostic", "reg_decoded_bbox", "reg_predictor_cfg")
    return {"name": "conv_fc_cls", **class_head(head, extractor)}


def _grid(roi_head: Group, strides: Strides) -> dict[str, Any]:
    """Return the arguments of the grids of points."""
    extractor = parts.roi_extractor(roi_head, "grid_roi_extractor", strides)
    head = roi_head.group("grid_head")
    if head.kind != "GridHead":
        raise head.unsupported("type")
    points = head.integer("grid_points", 9, least=4)
    if math.isqrt(points) ** 2 != points:
        raise head.wrong("grid_points", "a square number")
    head.expect("roi_feat_size", extractor["output_size"])
    head.expect("conv_kernel_size", 3)
    head.expect("deconv_kernel_size", 4)
    head.expect("class_agnostic", False)
    head.expect("conv_cfg", None)
    head.expect("norm_cfg", {"type": "GN", "num_groups": 36})
    head.ignore("in_channels", "init_cfg")
    return {
        "grid_roi_extractor": extractor,
        "grid_size": math.isqrt(points),
        "grid_convs": head.integer("num_convs", 8, least=1),
        "point_channels": head.integer("point_feat_channels", 64, least=1),
        "loss_grid": parts.loss(
            head, "loss_grid", {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 15}
        ),
    }
