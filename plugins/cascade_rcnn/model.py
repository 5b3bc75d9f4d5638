"""The second stage of Cascade R-CNN and Cascade Mask R-CNN.

Cai, Vasconcelos: Cascade R-CNN: High Quality Object Detection and Instance Segmentation, arXiv 1906.09756; the
detector alone: arXiv 1712.00726.

Deviations from the papers, as in MMDetection: as many sampling points of RoIAlign as the RoI is large, 512 RoIs of each
image, the mean of logits in place of that of probabilities.
The recipes named after Detectron2 and MMDetection 0 have their ways, each of which is an argument.
"""

from __future__ import annotations

from typing import Literal

from detcli.nn.cascade_roi_head import CascadeRoIHead, cascade_stages, stage_extractors
from detcli.nn.detector import Trunk
from detcli.plugin import BBoxHead, MaskHead, RoIExtractor, Sampler
from detcli.registry import build


def cascade_roi_head(
    *,
    trunk: Trunk,
    num_classes: int,
    roi_extractor: RoIExtractor = "roi_align",
    bbox_head: BBoxHead = {"name": "conv_fc", "loss_bbox": "smooth_l1"},
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
    roi_gradient: float = 1.0,
    mask_roi_extractor: RoIExtractor = {"name": "roi_align", "output_size": 14},
    mask_head: MaskHead | None = None,
    mask_stages: int | None = None,
    score_average: Literal["logits", "probabilities"] = "logits",
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> CascadeRoIHead:
    """Return stages of boxes on the maps of `trunk`, each with a `bbox_head` of its own.

    Each stage has an IoU from which an RoI is an object's, deviations of its box coder and a weight of its losses; with
    `match_low_quality`, an RoI that overlaps an object most is that object's, where it reaches the IoU, even if it
    overlaps another one more. With a `mask_head`, `mask_stages` of the stages, from the first, draw masks (None: all).
    For `resample`, `roi_gradient` and
    `score_average` see `CascadeRoIHead`.

    Raises `UsageError` as `cascade_stages` does.
    """
    num_masks = 0
    if mask_head is not None:
        num_masks = len(stage_ious) if mask_stages is None else mask_stages
    stages = cascade_stages(
        trunk=trunk,
        num_classes=num_classes,
        roi_extractor=roi_extractor,
        bbox_head=bbox_head,
        ious=stage_ious,
        stds=stage_stds,
        loss_weights=stage_weights,
        num_masks=num_masks,
        match_low_quality=match_low_quality,
        sampler=sampler,
        resample=resample,
    )
    return CascadeRoIHead(
        stages,
        resample=resample,
        score_average=score_average,
        roi_gradient=roi_gradient,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
        mask_roi_extractors=stage_extractors(trunk, mask_roi_extractor, num_masks),
        mask_heads=[
            build("mask_heads", mask_head, in_channels=trunk.roi_channels, num_classes=num_classes)
            for _ in range(num_masks)
        ],
    )
