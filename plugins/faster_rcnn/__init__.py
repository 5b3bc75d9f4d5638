"""Two stages: a region proposal network, then a class and a box for each proposal."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    C4,
    DC5,
    DETECTRON2_C4,
    DETECTRON2_DATA,
    DETECTRON2_ONE_MAP,
    DETECTRON2_RESIZE,
    DETECTRON2_SCHED,
    DETECTRON2_TWO_STAGE,
    DETECTRON_C4,
    DETECTRON_ONE_MAP,
    DETECTRON_OPTIM,
    DETECTRON_OPTIM_ONE_IMAGE,
    DETECTRON_SCHED,
    DETECTRON_TWO_STAGE,
    LEGACY_BOXES,
    LEGACY_OPTIM,
    LEGACY_RPN,
    LEGACY_SCHED,
    ONE_MAP,
    SIX_SIZES,
    UNPADDED,
    combined,
)

DC5_BACKBONE = {"name": "r50_caffe", **DC5}
DC5_ARGS = combined(ONE_MAP, {"rpn_head": {"anchor_border": 0}})

DETECTRON2: dict[str, Any] = {
    "model": "faster_rcnn",
    "sched": "90k",
    "sched_args": DETECTRON2_SCHED,
    "data": DETECTRON2_DATA,
}
DETECTRON2_ONE_MAP_ARGS = combined(DETECTRON2_TWO_STAGE, DETECTRON2_ONE_MAP)

LEGACY_ARGS = combined(
    LEGACY_BOXES,
    {"rpn_head": {**LEGACY_RPN, "anchor_border": 0}, "roi_head": {"assigner": {"match_low_quality": True}}},
)


def _of_overlap(loss: str) -> dict[str, Any]:
    return {"roi_head": {"bbox_head": {"decode_before_loss": True, "loss_bbox": {"name": loss, "weight": 10.0}}}}


plugin = Plugin(
    name="faster_rcnn",
    title="Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
    arxiv="1506.01497",
    models={
        "faster_rcnn": Part("detcli.nn.two_stage:two_stage", summary="an RPN, then a class and a box for each proposal")
    },
    converters={"mmdet/StandardRoIHead": ".convert:mmdet_head"},
    recipes=[
        Recipe("faster_rcnn", summary="on a feature pyramid"),
        Recipe(
            "faster_rcnn_mstrain_2x",
            model="faster_rcnn",
            backbone="r50_caffe",
            sched="2x",
            sched_args={"drops": [16, 23]},
            data=SIX_SIZES,
            summary="multi-scale training, one of six sizes",
        ),
        Recipe(
            "faster_rcnn_mstrain_3x",
            model="faster_rcnn",
            backbone="r50_caffe",
            sched="3x",
            data={"resize": [(1333, 640), (1333, 800)], "resize_mode": "range"},
            summary="multi-scale training, any size between two",
        ),
        Recipe(
            "faster_rcnn_iou",
            model="faster_rcnn",
            args=_of_overlap("iou"),
            summary="IoU loss of the second stage's boxes",
        ),
        Recipe(
            "faster_rcnn_giou",
            model="faster_rcnn",
            args=_of_overlap("giou"),
            summary="generalised IoU loss of the second stage's boxes",
        ),
        Recipe(
            "faster_rcnn_bounded_iou",
            model="faster_rcnn",
            args=_of_overlap("bounded_iou"),
            summary="bounded IoU loss of the second stage's boxes",
        ),
        Recipe(
            "faster_rcnn_dc5",
            model="faster_rcnn",
            backbone=DC5_BACKBONE,
            args=DC5_ARGS,
            summary="no pyramid: one map of stride 16, from a dilated last stage",
        ),
        Recipe(
            "faster_rcnn_dc5_mstrain",
            model="faster_rcnn",
            backbone=DC5_BACKBONE,
            args=DC5_ARGS,
            data=SIX_SIZES,
            summary="dilated last stage, multi-scale training",
        ),
        Recipe(
            "faster_rcnn_dc5_mstrain_3x",
            model="faster_rcnn",
            backbone=DC5_BACKBONE,
            args=DC5_ARGS,
            sched="3x",
            sched_args={"drops": [28, 34]},
            data=SIX_SIZES,
            summary="dilated last stage, multi-scale training, three times as long",
        ),
        Recipe(
            "faster_rcnn_detectron2",
            backbone="r50_caffe",
            args=DETECTRON2_TWO_STAGE,
            summary="as Detectron2 trains it",
            **DETECTRON2,
        ),
        Recipe(
            "faster_rcnn_c4_detectron2",
            backbone={"name": "r50_caffe", **C4},
            args=combined(DETECTRON2_ONE_MAP_ARGS, DETECTRON2_C4),
            input=UNPADDED,
            summary="as Detectron2 trains it with the last stage on RoIs",
            **DETECTRON2,
        ),
        Recipe(
            "faster_rcnn_dc5_detectron2",
            backbone=DC5_BACKBONE,
            args=DETECTRON2_ONE_MAP_ARGS,
            input=UNPADDED,
            summary="as Detectron2 trains it with a dilated last stage",
            **DETECTRON2,
        ),
        Recipe(
            "faster_rcnn_c4_voc_detectron2",
            model="faster_rcnn",
            backbone={"name": "r50_caffe", **C4},
            sched_args={"unit": "iter", "length": 18_000, "drops": [12_000, 16_000], "warmup_iters": 100},
            args=combined(DETECTRON2_ONE_MAP_ARGS, DETECTRON2_C4),
            input=UNPADDED,
            data={"resize": [(1333, side) for side in range(480, 801, 32)], **DETECTRON2_RESIZE},
            eval={"evaluator": "voc07"},
            summary="as Detectron2 trains it on Pascal VOC, with the last stage on RoIs",
        ),
        Recipe(
            "faster_rcnn_detectron",
            model="faster_rcnn",
            backbone="r50_detectron",
            sched="90k",
            sched_args=DETECTRON_SCHED,
            optim=DETECTRON_OPTIM,
            args=DETECTRON_TWO_STAGE,
            summary="as Detectron trains it",
        ),
        Recipe(
            "faster_rcnn_c4_detectron",
            model="faster_rcnn",
            backbone={"name": "r50_detectron", **C4},
            sched="180k",
            sched_args=DETECTRON_SCHED,
            optim=DETECTRON_OPTIM_ONE_IMAGE,
            args=combined(DETECTRON_TWO_STAGE, DETECTRON_ONE_MAP, DETECTRON_C4),
            input=UNPADDED,
            summary="as Detectron trains it with the last stage on RoIs",
        ),
        Recipe(
            "faster_rcnn_legacy",
            model="faster_rcnn",
            sched_args=LEGACY_SCHED,
            optim=LEGACY_OPTIM,
            args=LEGACY_ARGS,
            summary="as MMDetection 0 trains it",
        ),
    ],
)
