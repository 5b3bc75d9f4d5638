"""Faster R-CNN with a mask for each detection."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    C4,
    DC5,
    DETECTRON2_C4,
    DETECTRON2_DATA,
    DETECTRON2_MASKS,
    DETECTRON2_ONE_MAP,
    DETECTRON2_OPTIM,
    DETECTRON2_RESIZE,
    DETECTRON2_SCHED,
    DETECTRON_C4,
    DETECTRON_MASKS,
    DETECTRON_ONE_MAP,
    DETECTRON_OPTIM,
    DETECTRON_OPTIM_ONE_IMAGE,
    DETECTRON_ROI_ALIGN,
    DETECTRON_SCHED,
    LEGACY_BOXES,
    LEGACY_MASKS,
    LEGACY_OPTIM,
    LEGACY_RPN,
    LEGACY_SCHED,
    MASK_ROI_HEAD,
    SHARED_MASKS,
    SIX_SIZES,
    UNPADDED,
    combined,
)

DETECTRON2: dict[str, Any] = {
    "model": "mask_rcnn",
    "sched": "90k",
    "sched_args": DETECTRON2_SCHED,
    "optim": DETECTRON2_OPTIM,
    "data": DETECTRON2_DATA,
}
DETECTRON2_ONE_MAP_ARGS = combined(DETECTRON2_MASKS, DETECTRON2_ONE_MAP)

SYNCBN = {"norm": "syncbn"}
SYNCBN_HEADS = {"roi_head": {"bbox_head": {**SYNCBN, "convs": 4, "fcs": 1}, "mask_head": SYNCBN}}

DETECTRON: dict[str, Any] = {"model": "mask_rcnn", "sched_args": DETECTRON_SCHED}
DETECTRON_FPN = combined(DETECTRON_MASKS, {"roi_head": {"mask_roi_extractor": DETECTRON_ROI_ALIGN}})
DETECTRON_ONE_MAP_ARGS = combined(DETECTRON_MASKS, DETECTRON_ONE_MAP, DETECTRON_C4, SHARED_MASKS)

LEGACY_ARGS = combined(LEGACY_BOXES, LEGACY_MASKS)

# In the words of MMDetection, Fast Mask R-CNN.
GIVEN: dict[str, Any] = {"rpn_head": None}

plugin = Plugin(
    name="mask_rcnn",
    title="Mask R-CNN",
    arxiv="1703.06870",
    models={
        "mask_rcnn": Part(
            "detcli.nn.two_stage:two_stage",
            {"roi_head": MASK_ROI_HEAD},
            summary="Faster R-CNN with a mask for each detection",
        )
    },
    recipes=[
        Recipe("mask_rcnn", summary="on a feature pyramid"),
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
            args=DETECTRON2_MASKS,
            summary="as Detectron2 trains it",
            **DETECTRON2,
        ),
        Recipe(
            "mask_rcnn_syncbn_detectron2",
            backbone={"name": "r50_caffe", **SYNCBN, "norm_eval": False, "norm_trained": True},
            neck={"name": "fpn", **SYNCBN},
            args=combined(DETECTRON2_MASKS, SYNCBN_HEADS),
            summary="as Detectron2 trains it with synchronised batch norms in all parts",
            **DETECTRON2,
        ),
        Recipe(
            "mask_rcnn_c4_detectron2",
            backbone={"name": "r50_caffe", **C4},
            args=combined(DETECTRON2_ONE_MAP_ARGS, DETECTRON2_C4, SHARED_MASKS),
            input=UNPADDED,
            summary="as Detectron2 trains it with the last stage on RoIs",
            **DETECTRON2,
        ),
        Recipe(
            "mask_rcnn_dc5_detectron2",
            backbone={"name": "r50_caffe", **DC5},
            args=combined(DETECTRON2_ONE_MAP_ARGS, {"roi_head": {"mask_head": {"channels": 256}}}),
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
            args=DETECTRON2_MASKS,
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
            args=combined(DETECTRON2_MASKS, {"roi_head": {"score_threshold": 1e-4, "max_per_image": 300}}),
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
            args=DETECTRON_ONE_MAP_ARGS,
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
            args={**DETECTRON_ONE_MAP_ARGS, **GIVEN},
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
            args={**LEGACY_ARGS, "rpn_head": {**LEGACY_RPN, "anchor_border": 0}},
            summary="as MMDetection 0 trains it",
        ),
        Recipe(
            "mask_rcnn_legacy_v1",
            model="mask_rcnn",
            args={**LEGACY_ARGS, "rpn_head": LEGACY_RPN},
            summary="as MMDetection 2 trains it for comparison with MMDetection 1",
        ),
    ],
)
