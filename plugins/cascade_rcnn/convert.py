"""Cascade R-CNN of MMDetection's configs, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides
from detcli.convert.mmdet_stages import cascade, first_stage


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config with a CascadeRoIHead."""
    stages = cascade(model, strides, "FCNMaskHead")
    return {
        "name": "cascade_mask_rcnn" if "mask_head" in stages else "cascade_rcnn",
        "rpn_head": first_stage(model, strides),
        "roi_head": {"name": "cascade", **stages},
    }
