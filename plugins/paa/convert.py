"""PAA of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config whose `bbox_head` is a PAAHead."""
    head, train, test = parts.dense_head(model)
    head.expect("covariance_type", "diag")
    return {
        "name": "paa",
        **parts.atss_layers(head, train, strides),
        "topk": head.integer("topk", 9, least=1),
        "assigner": parts.assigner(train),
        "loss_cls": parts.loss(head, "loss_cls"),
        "loss_bbox": parts.loss(head, "loss_bbox"),
        "loss_iou": parts.loss(head, "loss_centerness", parts.CROSS_ENTROPY),
        "score_voting": head.flag("score_voting", True),
        **parts.selection(test),
    }
