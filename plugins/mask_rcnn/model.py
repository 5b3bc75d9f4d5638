"""Mask R-CNN on a feature pyramid.

He, Gkioxari, Dollár, Girshick: Mask R-CNN, arXiv 1703.06870; the pyramid: Lin et al., arXiv 1612.03144.

Deviations from the papers, as in MMDetection: L1 in place of smooth L1, as many sampling points of
RoIAlign as the RoI is large, 512 RoIs of each image.
"""

from __future__ import annotations

from typing import Literal

from detcli.nn.detector import TwoStageDetector
from detcli.nn.roi_head import MaskHead, RoIHead, bbox_head
from detcli.nn.rpn_head import ProposalLimits, rpn_head
from detcli.plugin import Assigner, Backbone, Loss, Neck, RoIExtractor, Sampler
from detcli.registry import build


def mask_rcnn(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck = "fpn",
    anchor_scales: tuple[float, ...] = (8.0,),
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    anchor_border: int | None = None,
    anchor_style: Literal["exact", "torchvision", "v1", "detectron"] = "exact",
    feat_channels: int | None = None,
    rpn_assigner: Assigner = {"name": "max_iou", "positive": 0.7, "negative": 0.3, "min_positive": 0.3},
    rpn_sampler: Sampler = {"name": "random", "num": 256, "positive_fraction": 0.5},
    rpn_loss_cls: Loss = {"name": "cross_entropy", "sigmoid": True},
    rpn_loss_bbox: Loss = "l1",
    rpn_loss_divisor: Literal["sampled", "capacity"] = "sampled",
    train_nms_pre: int = 2000,
    train_proposals: int = 1000,
    test_nms_pre: int = 1000,
    test_proposals: int = 1000,
    proposal_nms_threshold: float = 0.7,
    roi_extractor: RoIExtractor = "roi_align",
    fc_channels: int = 1024,
    assigner: Assigner = {"name": "max_iou", "positive": 0.5, "negative": 0.5, "min_positive": 0.5},
    sampler: Sampler = {"name": "random", "num": 512, "positive_fraction": 0.25, "add_gt": True},
    loss_cls: Loss = "cross_entropy",
    loss_bbox: Loss = "l1",
    decode_before_loss: bool = False,
    mask_roi_extractor: RoIExtractor = {"name": "roi_align", "output_size": 14},
    mask_convs: int = 4,
    coder_style: Literal["exact", "v1", "detectron"] = "exact",
    clamp_below: bool = True,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> TwoStageDetector:
    """Return the detector; the convolutions of both stages are `feat_channels` wide (None: as the neck).

    `anchor_border` is how many pixels an anchor may reach beyond its image and still be trained (None: any
    number); `anchor_style` is how anchors lie on pixels (see `AnchorGenerator`), `coder_style` what the side of a
    box is (see `DeltaBoxCoder`); `clamp_below` limits how much smaller than its anchor or proposal a box can be, not
    only how much larger; `decode_before_loss` gives `loss_bbox` boxes in pixels, for losses of overlaps.
    """
    body = build("backbones", backbone)
    pyramid = build("necks", neck, in_channels=body.out_channels, in_strides=body.strides)
    first_stage = rpn_head(
        in_channels=pyramid.out_channels,
        strides=pyramid.strides,
        channels=feat_channels,
        anchor_scales=anchor_scales,
        anchor_ratios=anchor_ratios,
        anchor_border=anchor_border,
        anchor_style=anchor_style,
        assigner=rpn_assigner,
        sampler=rpn_sampler,
        loss_cls=rpn_loss_cls,
        loss_bbox=rpn_loss_bbox,
        divisor=rpn_loss_divisor,
        coder_style=coder_style,
        clamp_below=clamp_below,
        train_limits=ProposalLimits(train_nms_pre, train_proposals),
        test_limits=ProposalLimits(test_nms_pre, test_proposals),
        nms_threshold=proposal_nms_threshold,
    )
    boxes = bbox_head(
        in_channels=pyramid.out_channels,
        strides=pyramid.strides,
        num_classes=num_classes,
        roi_extractor=roi_extractor,
        channels=fc_channels,
        loss_cls=loss_cls,
        loss_bbox=loss_bbox,
        decode_before_loss=decode_before_loss,
        coder_style=coder_style,
        clamp_below=clamp_below,
    )
    masks = MaskHead(
        build("roi_extractors", mask_roi_extractor, strides=pyramid.strides),
        pyramid.out_channels,
        num_classes,
        channels=feat_channels or pyramid.out_channels,
        num_convs=mask_convs,
    )
    second_stage = RoIHead(
        boxes,
        build("assigners", assigner),
        build("samplers", sampler),
        mask_head=masks,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
    )
    return TwoStageDetector(body, pyramid, first_stage, second_stage, ("box", "mask"))
