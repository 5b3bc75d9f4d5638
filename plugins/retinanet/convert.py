"""RetinaNet of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of an MMDetection config whose `bbox_head` is a RetinaHead."""
    head, train, test = parts.dense_head(model)
    anchors = parts.anchors(head, strides)
    if anchors.octave_base_scale is None:
        raise head.group("anchor_generator").unsupported("scales")
    if parts.anchor_border(train) is not None:
        raise train.unsupported("allowed_border")
    head.expect("reg_decoded_bbox", False)
    parts.no_sampler(train)
    return {
        "name": "retinanet",
        **parts.tower(head, "none"),
        "octave_base_scale": anchors.octave_base_scale,
        "scales_per_octave": anchors.scales_per_octave,
        "ratios": anchors.ratios,
        "anchor_style": anchors.style,
        "assigner": parts.assigner(train),
        "loss_cls": parts.loss(head, "loss_cls"),
        "loss_bbox": parts.loss(head, "loss_bbox"),
        "coder_style": parts.coder_style(head, (1.0, 1.0, 1.0, 1.0)),
        **parts.selection(test),
    }
