"""ATSS of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config whose `bbox_head` is an ATSSHead."""
    head, train, test = parts.dense_head(model)
    anchors = parts.anchors(head, strides)
    generator = head.group("anchor_generator")
    if anchors.style != "exact":
        raise generator.unsupported("type")
    if anchors.ratios != (1.0,):
        raise generator.unsupported("ratios")
    if len(anchors.scales) != 1:
        raise generator.unsupported("scales" if anchors.octave_base_scale is None else "scales_per_octave")
    if parts.coder_style(head, (0.1, 0.1, 0.2, 0.2)) != "exact":
        raise head.unsupported("bbox_coder")
    if parts.anchor_border(train) is not None:
        raise train.unsupported("allowed_border")
    head.expect("pred_kernel_size", 3)
    head.expect("reg_decoded_bbox", True)
    parts.no_sampler(train)
    return {
        "name": "atss",
        **parts.tower(head, "gn"),
        "anchor_scale": anchors.scales[0],
        "assigner": parts.assigner(train),
        "loss_cls": parts.loss(head, "loss_cls"),
        "loss_bbox": parts.loss(head, "loss_bbox"),
        "loss_centerness": parts.loss(head, "loss_centerness", parts.CROSS_ENTROPY),
        **parts.selection(test),
    }
