"""Mask R-CNN, on a feature pyramid or on one map.

He, Gkioxari, Dollár, Girshick: Mask R-CNN, arXiv 1703.06870; the pyramid: Lin et al., arXiv 1612.03144.

Deviations from the papers, as in MMDetection: L1 in place of smooth L1, as many sampling points of
RoIAlign as the RoI is large, 512 RoIs of each image.
The recipes named after Detectron2, Detectron and MMDetection 0 have their ways, each of which is an argument.
"""

from __future__ import annotations

from typing import Literal

from detcli.nn.detector import TwoStageDetector, trunk
from detcli.nn.roi_head import MaskHead, roi_head
from detcli.plugin import Assigner, Backbone, Loss, Neck, RoIExtractor, RPNHead, Sampler


def mask_rcnn(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck | None = "fpn",
    shared_head: bool = False,
    rpn_head: RPNHead | None = "rpn",
    roi_extractor: RoIExtractor = "roi_align",
    box_convs: int = 0,
    box_fcs: int = 2,
    fc_channels: int = 1024,
    norm: Literal["none", "bn", "syncbn", "gn", "gn_ws"] = "none",
    assigner: Assigner = {"name": "max_iou", "positive": 0.5, "negative": 0.5, "min_positive": 0.5},
    sampler: Sampler = {"name": "random", "num": 512, "positive_fraction": 0.25, "add_gt": True},
    loss_cls: Loss = "cross_entropy",
    loss_bbox: Loss = "l1",
    decode_before_loss: bool = False,
    mask_roi_extractor: RoIExtractor | None = {"name": "roi_align", "output_size": 14},
    mask_convs: int = 4,
    mask_channels: int | None = None,
    coder_style: Literal["exact", "v1"] = "exact",
    clamp_below: bool = True,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> TwoStageDetector:
    """Return the detector; the convolutions of masks are `mask_channels` wide (None: as the features).

    Without a `mask_roi_extractor`, masks come from the features that boxes come from. Without an `rpn_head`, the model
    needs proposals in its batches' targets, also to detect.

    Boxes come from `box_convs` convolutions and `box_fcs` fully connected layers; `norm` is for these convolutions and
    those of masks.

    Without a neck, both stages work on the backbone's only map; with `shared_head`, the backbone's last stage works on
    RoIs, in place of the fully connected layers. `decode_before_loss` gives `loss_bbox` boxes in pixels, for losses
    of overlaps. For `coder_style` and `clamp_below` see `DeltaBoxCoder`.
    """
    body = trunk(backbone, neck, shared_head=shared_head)
    first_stage = None if rpn_head is None else body.rpn_head(rpn_head)
    masks = MaskHead(
        body.roi_channels,
        num_classes,
        channels=mask_channels or body.roi_channels,
        num_convs=mask_convs,
        norm=norm,
    )
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
        decode_before_loss=decode_before_loss,
        coder_style=coder_style,
        clamp_below=clamp_below,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
        mask_roi_extractor=mask_roi_extractor,
        mask_head=masks,
    )
    return TwoStageDetector(body.backbone, body.neck, first_stage, second_stage, ("box", "mask"))
