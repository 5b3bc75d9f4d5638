"""RetinaNet of other code bases, in our terms: the names of its head, and MMDetection's configs."""

from __future__ import annotations

from functools import partial
from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides
from detcli.convert.rules import Change, Rule, drop_background

ANCHORS = 9
"""Shapes of anchors at a location in the published models of torchvision."""

DETECTRON2 = (
    # Convolutions and ReLUs take turns: convolution i is at 2i.
    *(
        Rule(rf"head\.{theirs}_subnet\.{2 * layer}\.(weight|bias)", rf"bbox_head.{ours}_convs.{layer}.conv.\1")
        for theirs, ours in (("cls", "cls"), ("bbox", "reg"))
        for layer in range(8)
    ),
    Rule(r"head\.cls_score\.(weight|bias)", r"bbox_head.retina_cls.\1"),
    Rule(r"head\.bbox_pred\.(weight|bias)", r"bbox_head.retina_reg.\1"),
)

DETECTRON = tuple(
    rule
    for short, part in (("w", "weight"), ("b", "bias"))
    for rule in (
        *(
            Rule(rf"retnet_{theirs}_conv_n(\d)_fpn\d_{short}", rf"bbox_head.{ours}_convs.\1.conv.{part}")
            for theirs, ours in (("cls", "cls"), ("bbox", "reg"))
        ),
        Rule(rf"retnet_cls_pred_fpn\d_{short}", f"bbox_head.retina_cls.{part}"),
        Rule(rf"retnet_bbox_pred_fpn\d_{short}", f"bbox_head.retina_reg.{part}"),
    )
)

TORCHVISION = (
    # In files from before torchvision 0.13, convolutions and ReLUs take turns: convolution i is at 2i.
    *(
        Rule(
            rf"head\.{theirs}_head\.conv\.(?:{layer}\.0|{2 * layer})\.(weight|bias)",
            rf"bbox_head.{ours}_convs.{layer}.conv.\1",
        )
        for theirs, ours in (("classification", "cls"), ("regression", "reg"))
        for layer in range(4)
    ),
    Rule(
        r"head\.classification_head\.cls_logits\.(.*)",
        r"bbox_head.retina_cls.\1",
        Change("without the background", partial(drop_background, anchors=ANCHORS)),
    ),
    Rule(r"head\.regression_head\.bbox_reg\.(.*)", r"bbox_head.retina_reg.\1"),
)


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
