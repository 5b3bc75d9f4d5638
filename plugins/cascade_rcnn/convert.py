"""Cascade R-CNN of MMDetection's configs, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides
from detcli.convert.mmdet_stages import cascade


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config with a CascadeRoIHead."""
    translated = cascade(model, strides, "FCNMaskHead")
    return {"name": "cascade_mask_rcnn" if "mask_heads" in translated else "cascade_rcnn", **translated}
