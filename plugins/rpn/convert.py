"""RPN of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config with an RPNHead alone."""
    train = model.group("train_cfg").group("rpn")
    head = parts.proposal_head(model, train, strides)
    proposals = parts.proposals(model.group("test_cfg").group("rpn"))
    return {
        "name": "rpn",
        **head.anchor_args,
        "assigner": head.assigner,
        "sampler": head.sampler,
        "loss_cls": head.loss_cls,
        "loss_bbox": head.loss_bbox,
        "coder_style": head.coder_style,
        "nms_pre": proposals.nms_pre,
        "nms_threshold": proposals.nms_threshold,
        "max_per_image": proposals.max_per_image,
    }
