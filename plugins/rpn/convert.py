"""RPN of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config with an RPNHead alone."""
    train = model.group("train_cfg").group("rpn")
    proposals = parts.proposals(model.group("test_cfg").group("rpn"))
    head = {
        **parts.rpn_head(model, train, strides),
        "test_nms_pre": proposals.nms_pre,
        "test_proposals": proposals.max_per_image,
        "nms_threshold": proposals.nms_threshold,
    }
    return {"name": "rpn", "rpn_head": head}
