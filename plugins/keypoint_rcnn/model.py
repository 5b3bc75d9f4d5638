"""Keypoint R-CNN: Mask R-CNN whose masks are one best pixel for each keypoint.

He, Gkioxari, Dollár, Girshick: Mask R-CNN, arXiv 1703.06870, section 5; the pyramid: Lin et al., arXiv 1612.03144.

Deviations from the paper, as in Detectron2: the loss is a mean over visible keypoints, and a keypoint's score is the
share of its pixel in the softmax of its map.
"""

from __future__ import annotations

from typing import Literal

from detcli.nn.detector import TwoStageDetector, trunk
from detcli.nn.keypoint_head import KeypointHead
from detcli.nn.roi_head import roi_head
from detcli.nn.rpn_head import ProposalLimits, rpn_head
from detcli.plugin import Assigner, Backbone, Loss, Neck, RoIExtractor, Sampler


def keypoint_rcnn(
    *,
    num_classes: int,
    num_keypoints: int = 17,
    backbone: Backbone = "r50",
    neck: Neck = "fpn",
    anchor_scales: tuple[float, ...] = (8.0,),
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    anchor_border: int | None = None,
    anchor_style: Literal["exact", "torchvision", "v1", "detectron"] = "exact",
    rpn_assigner: Assigner = {"name": "max_iou", "positive": 0.7, "negative": 0.3, "min_positive": 0.3},
    rpn_sampler: Sampler = {"name": "random", "num": 256, "positive_fraction": 0.5},
    rpn_loss_cls: Loss = {"name": "cross_entropy", "sigmoid": True},
    rpn_loss_bbox: Loss = "l1",
    rpn_loss_divisor: Literal["sampled", "capacity"] = "sampled",
    train_nms_pre: int = 2000,
    train_proposals: int = 1500,
    test_nms_pre: int = 1000,
    test_proposals: int = 1000,
    proposal_nms_threshold: float = 0.7,
    roi_extractor: RoIExtractor = "roi_align",
    box_convs: int = 0,
    box_fcs: int = 2,
    fc_channels: int = 1024,
    norm: Literal["none", "bn", "syncbn", "gn", "gn_ws"] = "none",
    assigner: Assigner = {"name": "max_iou", "positive": 0.5, "negative": 0.5, "min_positive": 0.5},
    sampler: Sampler = {"name": "random", "num": 512, "positive_fraction": 0.25, "add_gt": True},
    loss_cls: Loss = "cross_entropy",
    loss_bbox: Loss = {"name": "smooth_l1", "beta": 0.5},
    keypoint_roi_extractor: RoIExtractor = {"name": "roi_align", "output_size": 14},
    keypoint_convs: int = 8,
    keypoint_channels: int = 512,
    train_padding: bool = False,
    coder_style: Literal["exact", "v1"] = "exact",
    clamp_below: bool = True,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> TwoStageDetector:
    """Return the detector of objects with `num_keypoints` keypoints each, which a run takes from its data.

    Boxes come from `box_convs` convolutions, which `norm` is for, and `box_fcs` fully connected layers.

    `anchor_border` is how many pixels an anchor may reach beyond its image and still be trained (None: any number).
    For `anchor_style` see `AnchorGenerator`, for `coder_style` and `clamp_below` `DeltaBoxCoder`, for
    `rpn_loss_divisor` and `train_padding` `RPNHead`.
    """
    body = trunk(backbone, neck)
    first_stage = rpn_head(
        in_channels=body.channels,
        strides=body.strides,
        channels=None,
        anchor_scales=anchor_scales,
        anchor_ratios=anchor_ratios,
        anchor_border=anchor_border,
        anchor_order="ratio",
        anchor_style=anchor_style,
        assigner=rpn_assigner,
        sampler=rpn_sampler,
        loss_cls=rpn_loss_cls,
        loss_bbox=rpn_loss_bbox,
        divisor=rpn_loss_divisor,
        train_padding=train_padding,
        coder_style=coder_style,
        clamp_below=clamp_below,
        train_limits=ProposalLimits(train_nms_pre, train_proposals),
        test_limits=ProposalLimits(test_nms_pre, test_proposals),
        nms_threshold=proposal_nms_threshold,
    )
    keypoints = KeypointHead(body.roi_channels, num_keypoints, channels=keypoint_channels, num_convs=keypoint_convs)
    second_stage = roi_head(
        trunk=body,
        num_classes=num_classes,
        roi_extractor=roi_extractor,
        box_convs=box_convs,
        box_fcs=box_fcs,
        fc_channels=fc_channels,
        norm=norm,
        assigner=assigner,
        sampler=sampler,
        loss_cls=loss_cls,
        loss_bbox=loss_bbox,
        decode_before_loss=False,
        coder_style=coder_style,
        clamp_below=clamp_below,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
        keypoint_roi_extractor=keypoint_roi_extractor,
        keypoint_head=keypoints,
    )
    return TwoStageDetector(body.backbone, body.neck, first_stage, second_stage, ("box", "keypoint"))
