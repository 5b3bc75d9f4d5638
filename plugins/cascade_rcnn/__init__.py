"""Stages of boxes, each trained on what the one before found, with masks or without."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    DETECTRON2_DATA,
    DETECTRON2_RPN,
    DETECTRON2_SCHED,
    LEGACY_OPTIM,
    LEGACY_ROI_ALIGN,
    LEGACY_SCHED,
    LEGACY_STYLES,
    UNCLAMPED,
)

MASKS: dict[str, Any] = {"model": "cascade_mask_rcnn"}

DETECTRON2_ARGS = {
    "rpn_head": {**DETECTRON2_RPN, "anchor_border": None, "loss_bbox": "l1"},
    **UNCLAMPED,
    "stage_stds": (
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.03333333333333333, 0.03333333333333333, 0.06666666666666667, 0.06666666666666667),
    ),
    "stage_weights": (1.0, 1.0, 1.0),
    "resample": False,
    "loss_bbox": "l1",
    "roi_gradient": 0.3333333333333333,
    "mask_heads": 1,
    "score_average": "probabilities",
}

LEGACY_ARGS = {"rpn_head": LEGACY_STYLES, "roi_extractor": LEGACY_ROI_ALIGN, "coder_style": "v1"}
LEGACY_MASK_ARGS = {**LEGACY_ARGS, "mask_roi_extractor": LEGACY_ROI_ALIGN}
LOW_QUALITY = {"match_low_quality": True}
LEGACY: dict[str, Any] = {"sched_args": LEGACY_SCHED, "optim": LEGACY_OPTIM}

# In a few hundred steps from random weights.
DEMO = {"demo": {"sched": {"length": 500}}}

plugin = Plugin(
    name="cascade_rcnn",
    title="Cascade R-CNN: High Quality Object Detection and Instance Segmentation",
    arxiv="1906.09756",
    models={
        "cascade_rcnn": Part(".model:cascade_rcnn", summary="an RPN, then three stages of boxes"),
        "cascade_mask_rcnn": Part(
            ".model:cascade_rcnn", {"mask_heads": 3}, summary="an RPN, then three stages of boxes and masks"
        ),
    },
    converters={"mmdet/CascadeRoIHead": ".convert:mmdet_head"},
    recipes=[
        Recipe("cascade_rcnn", under=DEMO, summary="on a feature pyramid"),
        Recipe("cascade_mask_rcnn", under=DEMO, summary="with a mask for each detection"),
        Recipe(
            "cascade_mask_rcnn_detectron2",
            backbone="r50_caffe",
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args=DETECTRON2_ARGS,
            data=DETECTRON2_DATA,
            summary="as Detectron2 trains it: masks of the first stage's boxes",
            **MASKS,
        ),
        Recipe(
            "cascade_rcnn_legacy",
            model="cascade_rcnn",
            args={**LEGACY_ARGS, **LOW_QUALITY},
            summary="as MMDetection 0 trains it",
            **LEGACY,
        ),
        Recipe(
            "cascade_mask_rcnn_legacy",
            args={**LEGACY_MASK_ARGS, **LOW_QUALITY},
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
