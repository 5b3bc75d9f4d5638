"""Models of two stages, put together from their parts.

The first stage proposes boxes, the second one looks at each of them again (Ren et al. 2015, Faster R-CNN; He et al.
2017, Mask R-CNN).
"""

from __future__ import annotations

from typing import Literal

from detcli.errors import UsageError
from detcli.nn import keypoint_head as keypoints
from detcli.nn import roi_head as second_stage
from detcli.nn.box_coders import DeltaBoxCoder
from detcli.nn.detector import Trunk, TwoStageDetector, trunk
from detcli.plugin import (
    Assigner,
    Backbone,
    BBoxHead,
    KeypointHead,
    Loss,
    MaskHead,
    Neck,
    RoIExtractor,
    RoIHead,
    RPNHead,
    Sampler,
)
from detcli.registry import build


def two_stage(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck | None = "fpn",
    shared_head: bool = False,
    rpn_head: RPNHead | None = "rpn",
    roi_head: RoIHead = "standard",
) -> TwoStageDetector:
    """Return the detector; without an `rpn_head`, it needs proposals in its batches' targets, also to detect.

    Without a neck, both stages work on the backbone's only map; with `shared_head`, the backbone's last stage works on
    RoIs, before any of their heads.
    """
    body = trunk(backbone, neck, shared_head=shared_head)
    return TwoStageDetector(
        body.backbone,
        body.neck,
        None if rpn_head is None else body.rpn_head(rpn_head),
        build("roi_heads", roi_head, trunk=body, num_classes=num_classes),
    )


def standard_roi_head(
    *,
    trunk: Trunk,
    num_classes: int,
    roi_extractor: RoIExtractor = "roi_align",
    bbox_head: BBoxHead = "conv_fc",
    assigner: Assigner = {
        "name": "max_iou",
        "positive": 0.5,
        "negative": 0.5,
        "min_positive": 0.5,
        "match_low_quality": False,
    },
    sampler: Sampler = {"name": "random", "num": 512, "positive_fraction": 0.25, "add_gt": True},
    mask_roi_extractor: RoIExtractor | None = None,
    mask_head: MaskHead | None = None,
    keypoint_roi_extractor: RoIExtractor | None = None,
    keypoint_head: KeypointHead | None = None,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> second_stage.RoIHead:
    """Return the second stage on the maps of `trunk`, with heads of masks and keypoints or without.

    Without an extractor of their own, masks and keypoints come from the features that boxes come from.

    Raises `UsageError` when RoIs go through a shared head, and boxes through fully connected layers, too, or the head
    of boxes has none.
    """
    extractor = trunk.roi_extractor(roi_extractor)
    boxes = second_stage.with_boxes(
        trunk.bbox_head(bbox_head, num_classes=num_classes, roi_size=extractor.output_size, class_agnostic=False)
    )
    if trunk.shared_head is not None and len(boxes.shared_fcs):
        raise UsageError(
            "with a shared head, boxes come from the mean of what it says of an RoI: "
            "`--set model.roi_head.bbox_head.fcs=0`."
        )
    masks = points = None
    if mask_head is not None:
        masks = build("mask_heads", mask_head, in_channels=trunk.roi_channels, num_classes=num_classes)
    if keypoint_head is not None:
        points = build("keypoint_heads", keypoint_head, in_channels=trunk.roi_channels)
    return second_stage.RoIHead(
        extractor,
        boxes,
        build("assigners", assigner),
        build("samplers", sampler),
        shared_head=trunk.shared_head,
        mask_roi_extractor=None if mask_roi_extractor is None else trunk.roi_extractor(mask_roi_extractor),
        mask_head=masks,
        keypoint_roi_extractor=None if keypoint_roi_extractor is None else trunk.roi_extractor(keypoint_roi_extractor),
        keypoint_head=points,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
    )


def conv_fc(
    *,
    in_channels: int,
    num_classes: int,
    roi_size: int,
    stds: tuple[float, float, float, float],
    class_agnostic: bool,
    convs: int = 0,
    fcs: int = 2,
    channels: int = 1024,
    norm: Literal["none", "bn", "syncbn", "gn", "gn_ws"] = "none",
    loss_cls: Loss = "cross_entropy",
    loss_bbox: Loss = "l1",
    decode_before_loss: bool = False,
    coder_style: Literal["exact", "v1"] = "exact",
    clamp_below: bool = True,
) -> second_stage.BBoxHead:
    """Return the head of classes and boxes of RoIs of `in_channels` and `roi_size`.

    It has `convs` convolutions, which `norm` is for, and `fcs` fully connected layers of `channels`.
    `decode_before_loss` gives `loss_bbox` boxes in pixels, for losses of overlaps. For `stds`, `coder_style` and
    `clamp_below` see `DeltaBoxCoder`.
    """
    return second_stage.BBoxHead(
        in_channels,
        roi_size,
        num_classes,
        DeltaBoxCoder(stds=stds, clamp_below=clamp_below, style=coder_style),
        build("losses", loss_cls),
        build("losses", loss_bbox),
        channels=channels,
        num_convs=convs,
        num_fcs=fcs,
        norm=norm,
        class_agnostic=class_agnostic,
        decode_before_loss=decode_before_loss,
    )


def fcn_masks(
    *,
    in_channels: int,
    num_classes: int,
    convs: int = 4,
    channels: int | None = None,
    norm: Literal["none", "bn", "syncbn", "gn", "gn_ws"] = "none",
) -> second_stage.MaskHead:
    """Return the head of masks of RoIs; its convolutions have `channels` outputs (None: `in_channels`)."""
    return second_stage.MaskHead(in_channels, num_classes, channels=channels or in_channels, num_convs=convs, norm=norm)


def fcn_keypoints(
    *,
    in_channels: int,
    num_keypoints: int = 17,
    convs: int = 8,
    channels: int = 512,
    style: Literal["exact", "detectron"] = "exact",
) -> keypoints.KeypointHead:
    """Return the head of `num_keypoints` keypoints of RoIs, a number that a run takes from its data."""
    return keypoints.KeypointHead(in_channels, num_keypoints, channels=channels, num_convs=convs, style=style)
