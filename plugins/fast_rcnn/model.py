"""Fast R-CNN on a feature pyramid, with proposals from a file.

Girshick: Fast R-CNN, arXiv 1504.08083; the pyramid: Lin et al., arXiv 1612.03144.

Deviations from the papers, as in MMDetection and Detectron2: L1 in place of smooth L1, RoIAlign in place
of RoI pooling, proposals of an RPN in place of selective search, 512 RoIs of each image.
"""

from __future__ import annotations

from typing import Literal

from detcli.nn.detector import TwoStageDetector
from detcli.nn.roi_head import RoIHead, bbox_head
from detcli.plugin import Assigner, Backbone, Loss, Neck, RoIExtractor, Sampler
from detcli.registry import build


def fast_rcnn(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck = "fpn",
    roi_extractor: RoIExtractor = "roi_align",
    fc_channels: int = 1024,
    assigner: Assigner = {
        "name": "max_iou",
        "positive": 0.5,
        "negative": 0.5,
        "min_positive": 0.5,
        "match_low_quality": False,
    },
    sampler: Sampler = {"name": "random", "num": 512, "positive_fraction": 0.25, "add_gt": True},
    loss_cls: Loss = "cross_entropy",
    loss_bbox: Loss = "l1",
    decode_before_loss: bool = False,
    coder_style: Literal["exact", "v1", "detectron"] = "exact",
    clamp_below: bool = True,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> TwoStageDetector:
    """Return the detector, which needs proposals in its batches' targets, also to detect.

    `coder_style` is what the side of a box is (see `DeltaBoxCoder`); `clamp_below` limits how much smaller than its
    proposal a box can be, not only how much larger; `decode_before_loss` gives `loss_bbox` boxes in pixels, for losses
    of overlaps.
    """
    body = build("backbones", backbone)
    pyramid = build("necks", neck, in_channels=body.out_channels, in_strides=body.strides)
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
    head = RoIHead(
        boxes,
        build("assigners", assigner),
        build("samplers", sampler),
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
    )
    return TwoStageDetector(body, pyramid, None, head)
