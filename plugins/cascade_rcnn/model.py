"""Cascade R-CNN and Cascade Mask R-CNN.

Cai, Vasconcelos: Cascade R-CNN: High Quality Object Detection and Instance Segmentation, arXiv 1906.09756; the
detector alone: arXiv 1712.00726.

Deviations from the papers, as in MMDetection: as many sampling points of RoIAlign as the RoI is large, 512 RoIs of each
image, the mean of logits in place of that of probabilities.
The recipes named after Detectron2 and MMDetection 0 have their ways, each of which is an argument.
"""

from __future__ import annotations

from typing import Literal

from detcli.nn.cascade_roi_head import CascadeRoIHead, cascade_stages, stage_extractors
from detcli.nn.detector import TwoStageDetector, trunk
from detcli.nn.roi_head import MaskHead
from detcli.plugin import Backbone, Loss, Neck, RoIExtractor, RPNHead, Sampler


def cascade_rcnn(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck = "fpn",
    rpn_head: RPNHead = {
        "name": "rpn",
        "anchor_border": 0,
        "loss_bbox": {"name": "smooth_l1", "beta": 0.1111111111111111},
        "train_proposals": 2000,
    },
    roi_extractor: RoIExtractor = "roi_align",
    box_convs: int = 0,
    box_fcs: int = 2,
    fc_channels: int = 1024,
    norm: Literal["none", "bn", "syncbn", "gn", "gn_ws"] = "none",
    stage_ious: tuple[float, ...] = (0.5, 0.6, 0.7),
    stage_stds: tuple[tuple[float, float, float, float], ...] = (
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    ),
    stage_weights: tuple[float, ...] = (1.0, 0.5, 0.25),
    match_low_quality: bool = False,
    sampler: Sampler = {"name": "random", "num": 512, "positive_fraction": 0.25, "add_gt": True},
    resample: bool = True,
    loss_cls: Loss = "cross_entropy",
    loss_bbox: Loss = "smooth_l1",
    roi_gradient: float = 1.0,
    mask_heads: int = 0,
    mask_roi_extractor: RoIExtractor = {"name": "roi_align", "output_size": 14},
    mask_convs: int = 4,
    mask_channels: int | None = None,
    coder_style: Literal["exact", "v1"] = "exact",
    clamp_below: bool = True,
    score_average: Literal["logits", "probabilities"] = "logits",
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> TwoStageDetector:
    """Return the detector; the convolutions of masks are `mask_channels` wide (None: as the features).

    Each stage has an IoU from which an RoI is an object's, deviations of its box coder and a weight of its losses; with
    `match_low_quality`, an RoI that overlaps an object most is that object's, where it reaches the IoU, even if it
    overlaps another one more. `mask_heads` of the stages, from the first, draw masks. For `resample`, `roi_gradient`
    and `score_average` see `CascadeRoIHead`; for the rest, Faster R-CNN and Mask R-CNN, whose arguments they are.

    Raises `UsageError` when the stages' arguments are not as many, or there are more mask heads than stages.
    """
    body = trunk(backbone, neck)
    first_stage = body.rpn_head(rpn_head)
    stages = cascade_stages(
        trunk=body,
        num_classes=num_classes,
        roi_extractor=roi_extractor,
        box_convs=box_convs,
        box_fcs=box_fcs,
        fc_channels=fc_channels,
        norm=norm,
        ious=stage_ious,
        stds=stage_stds,
        loss_weights=stage_weights,
        num_masks=mask_heads,
        match_low_quality=match_low_quality,
        sampler=sampler,
        resample=resample,
        loss_cls=loss_cls,
        loss_bbox=loss_bbox,
        coder_style=coder_style,
        clamp_below=clamp_below,
    )
    later_stages = CascadeRoIHead(
        stages,
        resample=resample,
        score_average=score_average,
        roi_gradient=roi_gradient,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
        mask_roi_extractors=stage_extractors(body, mask_roi_extractor, mask_heads),
        mask_heads=[
            MaskHead(
                body.channels, num_classes, channels=mask_channels or body.channels, num_convs=mask_convs, norm=norm
            )
            for _ in range(mask_heads)
        ],
    )
    return TwoStageDetector(
        body.backbone, body.neck, first_stage, later_stages, ("box", "mask") if mask_heads else ("box",)
    )
