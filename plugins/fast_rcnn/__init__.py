"""A class and a box for each proposal of a file that another model wrote."""

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    C4,
    DETECTRON2_DATA,
    DETECTRON2_SCHED,
    DETECTRON_BOXES,
    DETECTRON_C4,
    DETECTRON_OPTIM,
    DETECTRON_OPTIM_ONE_IMAGE,
    DETECTRON_SCHED,
    LEGACY_BOXES,
    LEGACY_OPTIM,
    LEGACY_SCHED,
    UNCLAMPED,
    UNPADDED,
    combined,
)

LOW_QUALITY = {"roi_head": {"assigner": {"match_low_quality": True}}}

plugin = Plugin(
    name="fast_rcnn",
    title="Fast R-CNN",
    arxiv="1504.08083",
    models={
        "fast_rcnn": Part(
            "detcli.nn.two_stage:two_stage", {"rpn_head": None}, summary="a class and a box for each proposal of a file"
        )
    },
    recipes=[
        Recipe(
            "fast_rcnn",
            summary="on a feature pyramid, with proposals from a file",
        ),
        Recipe(
            "fast_rcnn_detectron2",
            model="fast_rcnn",
            backbone="r50_caffe",
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args={"roi_head": {"bbox_head": UNCLAMPED}},
            data=DETECTRON2_DATA,
            summary="as Detectron2 trains it",
        ),
        Recipe(
            "fast_rcnn_detectron",
            model="fast_rcnn",
            backbone="r50_detectron",
            sched="90k",
            sched_args=DETECTRON_SCHED,
            optim=DETECTRON_OPTIM,
            args=DETECTRON_BOXES,
            summary="as Detectron trains it",
        ),
        Recipe(
            "fast_rcnn_c4_detectron",
            model="fast_rcnn",
            backbone={"name": "r50_detectron", **C4},
            sched="180k",
            sched_args=DETECTRON_SCHED,
            optim=DETECTRON_OPTIM_ONE_IMAGE,
            args=combined(DETECTRON_BOXES, DETECTRON_C4, {"neck": None}),
            input=UNPADDED,
            summary="as Detectron trains it with the last stage on RoIs",
        ),
        Recipe(
            "fast_rcnn_legacy",
            model="fast_rcnn",
            sched_args=LEGACY_SCHED,
            optim=LEGACY_OPTIM,
            args=combined(LEGACY_BOXES, LOW_QUALITY),
            summary="as MMDetection 0 trains it",
        ),
    ],
)
