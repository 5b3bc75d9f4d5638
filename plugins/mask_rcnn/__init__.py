"""Faster R-CNN with a mask for each detection."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    C4,
    DC5,
    DETECTRON2_C4,
    DETECTRON2_DATA,
    DETECTRON2_ONE_MAP_RPN,
    DETECTRON2_RESIZE,
    DETECTRON2_SCHED,
    DETECTRON2_TWO_STAGE,
    DETECTRON_BOXES,
    DETECTRON_C4,
    DETECTRON_ONE_MAP_RPN,
    DETECTRON_OPTIM,
    DETECTRON_OPTIM_ONE_IMAGE,
    DETECTRON_ROI_ALIGN,
    DETECTRON_RPN,
    DETECTRON_SCHED,
    LEGACY_BOXES,
    LEGACY_OPTIM,
    LEGACY_ROI_ALIGN,
    LEGACY_RPN,
    LEGACY_SCHED,
    SHARED_MASKS,
    SIX_SIZES,
    UNCLAMPED,
    UNPADDED,
)

# MMDetection alone matches objects with RoIs that overlap them little.
NO_LOW_QUALITY = {"assigner": {"match_low_quality": False}}

DETECTRON2: dict[str, Any] = {
    "model": "mask_rcnn",
    "sched": "90k",
    "sched_args": DETECTRON2_SCHED,
    "data": DETECTRON2_DATA,
}
DETECTRON2_ARGS = {**DETECTRON2_TWO_STAGE, **NO_LOW_QUALITY}
SYNCBN = {"norm": "syncbn"}
DETECTRON2_ONE_MAP = {"neck": None, "rpn_head": DETECTRON2_ONE_MAP_RPN, **UNCLAMPED, **NO_LOW_QUALITY}

DETECTRON: dict[str, Any] = {"model": "mask_rcnn", "sched_args": DETECTRON_SCHED}
DETECTRON_ARGS = {**DETECTRON_BOXES, **NO_LOW_QUALITY}

DETECTRON_FPN = {"rpn_head": DETECTRON_RPN, **DETECTRON_ARGS, "mask_roi_extractor": DETECTRON_ROI_ALIGN}
DETECTRON_ONE_MAP = {
    "neck": None,
    "rpn_head": DETECTRON_ONE_MAP_RPN,
    **DETECTRON_ARGS,
    **DETECTRON_C4,
    **SHARED_MASKS,
}

LEGACY_ARGS = {**LEGACY_BOXES, "mask_roi_extractor": LEGACY_ROI_ALIGN}

# In the words of MMDetection, Fast Mask R-CNN.
GIVEN: dict[str, Any] = {"rpn_head": None}

# In a few hundred steps from random weights.
DEMO = {"demo": {"sched": {"length": 500}}}

plugin = Plugin(
    name="mask_rcnn",
    title="Mask R-CNN",
    arxiv="1703.06870",
    models={"mask_rcnn": Part(".model:mask_rcnn", summary="Faster R-CNN with a mask for each detection")},
    recipes=[
        Recipe("mask_rcnn", under=DEMO, summary="on a feature pyramid"),
        Recipe(
            "mask_rcnn_mstrain_2x",
            model="mask_rcnn",
            backbone="r50_caffe",
            sched="2x",
            sched_args={"drops": [16, 23]},
            data=SIX_SIZES,
            summary="multi-scale training, one of six sizes",
        ),
        Recipe(
            "mask_rcnn_mstrain_3x",
            model="mask_rcnn",
            backbone="r50_caffe",
            sched="3x",
            sched_args={"drops": [28, 34]},
            data=SIX_SIZES,
            summary="multi-scale training, three times as long",
        ),
        Recipe(
            "mask_rcnn_detectron2",
            backbone="r50_caffe",
            args=DETECTRON2_ARGS,
            summary="as Detectron2 trains it",
            **DETECTRON2,
        ),
        Recipe(
            "mask_rcnn_syncbn_detectron2",
            backbone={"name": "r50_caffe", **SYNCBN, "norm_eval": False, "norm_trained": True},
            neck={"name": "fpn", **SYNCBN},
            args={**DETECTRON2_ARGS, **SYNCBN, "box_convs": 4, "box_fcs": 1},
            summary="as Detectron2 trains it with synchronised batch norms in all parts",
            **DETECTRON2,
        ),
        Recipe(
            "mask_rcnn_c4_detectron2",
            backbone={"name": "r50_caffe", **C4},
            args={**DETECTRON2_ONE_MAP, **DETECTRON2_C4, **SHARED_MASKS},
            input=UNPADDED,
            summary="as Detectron2 trains it with the last stage on RoIs",
            **DETECTRON2,
        ),
        Recipe(
            "mask_rcnn_dc5_detectron2",
            backbone={"name": "r50_caffe", **DC5},
            args={**DETECTRON2_ONE_MAP, "mask_channels": 256},
            input=UNPADDED,
            summary="as Detectron2 trains it with a dilated last stage",
            **DETECTRON2,
        ),
        Recipe(
            "mask_rcnn_cityscapes_detectron2",
            model="mask_rcnn",
            backbone="r50_caffe",
            sched_args={"unit": "iter", "length": 24_000, "drops": [18_000], "warmup_iters": 1000},
            optim={"lr": 0.01, "batch": 8},
            args=DETECTRON2_ARGS,
            data={
                "resize": [(2048, side) for side in range(800, 1025, 32)],
                "test_resize": (2048, 1024),
                **DETECTRON2_RESIZE,
            },
            eval={"evaluator": "cityscapes"},
            summary="as Detectron2 trains it on Cityscapes, from a model of COCO",
        ),
        Recipe(
            "mask_rcnn_lvis_detectron2",
            model="mask_rcnn",
            backbone="r50_caffe",
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args={**DETECTRON2_ARGS, "score_threshold": 1e-4, "max_per_image": 300},
            data={**DETECTRON2_DATA, "repeat_threshold": 0.001, "repeat_rounding": "drawn"},
            eval={"evaluator": "lvis"},
            summary="as Detectron2 trains it on LVIS, repeating pictures of rare classes",
        ),
        Recipe(
            "mask_rcnn_detectron",
            backbone="r50_detectron",
            sched="90k",
            optim=DETECTRON_OPTIM,
            args=DETECTRON_FPN,
            summary="as Detectron trains it",
            **DETECTRON,
        ),
        Recipe(
            "mask_rcnn_c4_detectron",
            backbone={"name": "r50_detectron", **C4},
            sched="180k",
            optim=DETECTRON_OPTIM_ONE_IMAGE,
            args=DETECTRON_ONE_MAP,
            input=UNPADDED,
            summary="as Detectron trains it with the last stage on RoIs",
            **DETECTRON,
        ),
        Recipe(
            "fast_mask_rcnn_detectron",
            backbone="r50_detectron",
            sched="90k",
            optim=DETECTRON_OPTIM,
            args={**DETECTRON_FPN, **GIVEN},
            summary="as Detectron trains it, with proposals from a file",
            **DETECTRON,
        ),
        Recipe(
            "fast_mask_rcnn_c4_detectron",
            backbone={"name": "r50_detectron", **C4},
            sched="180k",
            optim=DETECTRON_OPTIM_ONE_IMAGE,
            args={**DETECTRON_ONE_MAP, **GIVEN},
            input=UNPADDED,
            summary="as Detectron trains it with the last stage on RoIs, with proposals from a file",
            **DETECTRON,
        ),
        Recipe(
            "fast_mask_rcnn_legacy",
            model="mask_rcnn",
            sched_args=LEGACY_SCHED,
            optim=LEGACY_OPTIM,
            args={**LEGACY_ARGS, **GIVEN},
            summary="as MMDetection 0 trains it, with proposals from a file",
        ),
        Recipe(
            "mask_rcnn_legacy",
            model="mask_rcnn",
            sched_args=LEGACY_SCHED,
            optim=LEGACY_OPTIM,
            args={"rpn_head": {**LEGACY_RPN, "anchor_border": 0}, **LEGACY_ARGS},
            summary="as MMDetection 0 trains it",
        ),
        Recipe(
            "mask_rcnn_legacy_v1",
            model="mask_rcnn",
            args={"rpn_head": LEGACY_RPN, **LEGACY_ARGS},
            summary="as MMDetection 2 trains it for comparison with MMDetection 1",
        ),
    ],
)
