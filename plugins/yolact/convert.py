"""YOLACT of MMDetection, in our terms."""

from __future__ import annotations

from fractions import Fraction
from math import lcm
from typing import Any

from detcli.plugins.yolact.model import DELTA_STDS, even_strides

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config whose `bbox_head` is a YOLACTHead."""
    head, train, test = parts.dense_head(model)
    masks, segmentation = model.group("mask_head"), model.group("segm_head")
    num_prototypes = head.integer("num_protos", 32)
    head.expect("use_ohem", True)
    head.expect("reg_decoded_bbox", False)
    head.expect("conv_cfg", None)
    head.expect("norm_cfg", None)
    head.ignore("num_classes", "init_cfg")
    if parts.anchor_border(train) is not None:
        raise train.unsupported("allowed_border")
    parts.coder_style(head, DELTA_STDS)
    test.expect("min_bbox_size", 0)
    if masks.kind != "YOLACTProtonet":
        raise masks.unsupported("type")
    masks.expect("num_protos", num_prototypes)
    width = head.integer("feat_channels", 256)
    if masks.take("proto_channels", [256, 256, 256, None, 256, 32]) != [*[width] * 3, None, width, num_prototypes]:
        raise masks.unsupported("proto_channels")
    masks.expect("proto_kernel_sizes", [3, 3, 3, -2, 3, 1])
    masks.expect("include_last_relu", True)
    masks.ignore("in_channels", "num_classes", "init_cfg")
    if segmentation.kind != "YOLACTSegmHead":
        raise segmentation.unsupported("type")
    pixels = parts.loss(segmentation, "loss_segm", parts.CROSS_ENTROPY)
    if pixels["name"] != "cross_entropy" or not pixels["sigmoid"]:
        raise segmentation.unsupported("loss_segm")
    segmentation.ignore("in_channels", "num_classes", "init_cfg")
    return {
        "name": "yolact",
        **even_anchors(head, strides),
        "stacked_convs": head.integer("num_head_convs", 1),
        "feat_channels": parts.width(head, "feat_channels"),
        "num_prototypes": num_prototypes,
        "assigner": parts.assigner(train),
        "negative_ratio": train.integer("neg_pos_ratio"),
        "loss_cls": _class_loss(head),
        "loss_bbox": parts.loss(head, "loss_bbox", {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.5}),
        "mask_weight": masks.number("loss_mask_weight", 1.0),
        "max_masks": masks.integer("max_masks_to_train", 100, least=1),
        "segm_weight": pixels["weight"],
        "score_threshold": test.number("score_thr"),
        "nms_pre": test.integer("nms_pre", least=1),
        "nms_threshold": test.number("iou_thr"),
        "nms_top_k": test.integer("top_k", least=1),
        "max_per_image": test.integer("max_per_img", least=1),
    }


def even_anchors(head: Group, strides: Strides) -> dict[str, Any]:
    """Return the size of images over which the anchors lie evenly, and their scale and ratios."""
    group = head.group("anchor_generator")
    if group.kind != "AnchorGenerator":
        raise group.unsupported("type")
    given = group.numbers("strides")
    # Each stride is the side of the image divided by a number of cells.
    image_size = lcm(*(Fraction(stride).limit_denominator(1000).numerator for stride in given))
    if strides is None or not _close(given, tuple(even_strides(image_size, strides))):
        raise group.unsupported("strides")
    centers = group.take("centers")
    if not isinstance(centers, list | tuple) or not all(
        _close(tuple(center), (stride / 2, stride / 2)) for center, stride in zip(centers, given, strict=False)
    ):
        raise group.unsupported("centers")
    group.expect("base_sizes", list(strides))
    group.expect("scales_per_octave", 1)
    group.expect("scales", None)
    return {
        "image_size": image_size,
        "anchor_scale": group.number("octave_base_scale"),
        "anchor_ratios": group.numbers("ratios"),
    }


def _close(numbers: tuple[float, ...], others: tuple[float, ...]) -> bool:
    same_count = len(numbers) == len(others)
    return same_count and all(abs(one - other) < 1e-6 for one, other in zip(numbers, others, strict=True))


def _class_loss(head: Group) -> dict[str, Any]:
    """Return the loss of classes, of which MMDetection takes the elements to find hard negatives."""
    group = head.group("loss_cls")
    group.expect("reduction", "none")
    translated: dict[str, Any] = parts.part(group, parts.LOSSES, "loss")
    if translated["name"] != "cross_entropy" or translated["sigmoid"]:
        raise head.unsupported("loss_cls")
    return {**translated, "weight": group.number("loss_weight", 1.0)}
