"""Stages of boxes, each trained on what the one before found, with masks or without."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    CASCADE_RPN_HEAD,
    DETECTRON2_CASCADE,
    DETECTRON2_DATA,
    DETECTRON2_SCHED,
    LEGACY_MASKS,
    LEGACY_OPTIM,
    LEGACY_ROI_ALIGN,
    LEGACY_SCHED,
    LEGACY_STYLES,
    combined,
)

MASKS: dict[str, Any] = {"model": "cascade_mask_rcnn"}

LEGACY_ARGS = {
    "rpn_head": LEGACY_STYLES,
    "roi_head": {"roi_extractor": LEGACY_ROI_ALIGN, "bbox_head": {"coder_style": "v1"}},
}
LEGACY_MASK_ARGS = combined(LEGACY_ARGS, LEGACY_MASKS)
LOW_QUALITY = {"roi_head": {"match_low_quality": True}}
LEGACY: dict[str, Any] = {"sched_args": LEGACY_SCHED, "optim": LEGACY_OPTIM}

plugin = Plugin(
    name="cascade_rcnn",
    title="Cascade R-CNN: High Quality Object Detection and Instance Segmentation",
    arxiv="1906.09756",
    models={
        "cascade_rcnn": Part(
            "detcli.nn.two_stage:two_stage",
            {"rpn_head": CASCADE_RPN_HEAD, "roi_head": "cascade"},
            summary="an RPN, then three stages of boxes",
        ),
        "cascade_mask_rcnn": Part(
            "detcli.nn.two_stage:two_stage",
            {"rpn_head": CASCADE_RPN_HEAD, "roi_head": {"name": "cascade", "mask_head": "fcn"}},
            summary="an RPN, then three stages of boxes and masks",
        ),
    },
    roi_heads={"cascade": Part(".model:cascade_roi_head", summary="stages of boxes, each on those of the one before")},
    converters={"mmdet/CascadeRoIHead": ".convert:mmdet_head"},
    recipes=[
        Recipe("cascade_rcnn", summary="on a feature pyramid"),
        Recipe("cascade_mask_rcnn", summary="with a mask for each detection"),
        Recipe(
            "cascade_mask_rcnn_detectron2",
            backbone="r50_caffe",
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args=DETECTRON2_CASCADE,
            data=DETECTRON2_DATA,
            summary="as Detectron2 trains it: masks of the first stage's boxes",
            **MASKS,
        ),
        Recipe(
            "cascade_rcnn_legacy",
            model="cascade_rcnn",
            args=combined(LEGACY_ARGS, LOW_QUALITY),
            summary="as MMDetection 0 trains it",
            **LEGACY,
        ),
        Recipe(
            "cascade_mask_rcnn_legacy",
            args=combined(LEGACY_MASK_ARGS, LOW_QUALITY),
            summary="as MMDetection 0 trains it, with masks",
            **MASKS,
            **LEGACY,
        ),
        Recipe(
            "cascade_mask_rcnn_legacy_v1",
            args=LEGACY_MASK_ARGS,
            summary="as MMDetection 2 trains it for comparison with MMDetection 1",
            **MASKS,
        ),
    ],
)
