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
from detcli.plugin import Assigner, Backbone, Loss, Neck, RoIExtractor, RPNHead, Sampler


def keypoint_rcnn(
    *,
    num_classes: int,
    num_keypoints: int = 17,
    backbone: Backbone = "r50",
    neck: Neck = "fpn",
    rpn_head: RPNHead = {"name": "rpn", "train_proposals": 1500},
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
    coder_style: Literal["exact", "v1"] = "exact",
    clamp_below: bool = True,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> TwoStageDetector:
    """Return the detector of objects with `num_keypoints` keypoints each, which a run takes from its data.

    Boxes come from `box_convs` convolutions, which `norm` is for, and `box_fcs` fully connected layers.

    For `coder_style` and `clamp_below` see `DeltaBoxCoder`.
    """
    body = trunk(backbone, neck)
    first_stage = body.rpn_head(rpn_head)
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
