"""Class-agnostic proposals of a region proposal network, for Fast R-CNN or to look at."""

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    DETECTRON2_DATA,
    DETECTRON2_RPN,
    DETECTRON2_SCHED,
    DETECTRON_OPTIM,
    DETECTRON_RPN,
    DETECTRON_SCHED,
    LEGACY_OPTIM,
    LEGACY_RPN,
    LEGACY_SCHED,
    ONE_MAP_ANCHORS,
    UNPADDED,
)

DETECTRON2 = {**DETECTRON2_RPN, "anchor_border": None, "test_proposals": 2000}
DETECTRON = {**DETECTRON_RPN, "test_proposals": 2000}
ONE_MAP = {**ONE_MAP_ANCHORS, "test_nms_pre": 12000}
# RPN alone needs no stage after the map that it works on.
C4_DETECTRON2 = {"name": "r50_caffe", "out_stages": (3,)}
C4_DETECTRON = {"name": "r50_detectron", "out_stages": (3,)}

plugin = Plugin(
    name="rpn",
    title="Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
    arxiv="1506.01497",
    models={"rpn": Part(".model:rpn", summary="proposals of any class, from a feature pyramid")},
    converters={"mmdet/RPNHead": ".convert:mmdet_head"},
    recipes=[
        Recipe("rpn", summary="RPN on a pyramid, 2000 boxes of each level into NMS"),
        Recipe(
            "rpn_detectron2",
            model="rpn",
            backbone="r50_caffe",
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args={"rpn_head": {**DETECTRON2, "test_nms_pre": 1000}},
            data=DETECTRON2_DATA,
            summary="as Detectron2 trains it",
        ),
        Recipe(
            "rpn_c4_detectron2",
            model="rpn",
            backbone=C4_DETECTRON2,
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args={"neck": None, "rpn_head": {**DETECTRON2, **ONE_MAP, "anchor_order": "scale"}},
            input=UNPADDED,
            data=DETECTRON2_DATA,
            summary="as Detectron2 trains it on the map of the third stage",
        ),
        Recipe(
            "rpn_detectron",
            model="rpn",
            backbone="r50_detectron",
            sched="90k",
            sched_args=DETECTRON_SCHED,
            optim=DETECTRON_OPTIM,
            args={"rpn_head": {**DETECTRON, "test_nms_pre": 1000}},
            summary="as Detectron trains it",
        ),
        Recipe(
            "rpn_c4_detectron",
            model="rpn",
            backbone=C4_DETECTRON,
            sched="90k",
            sched_args=DETECTRON_SCHED,
            optim=DETECTRON_OPTIM,
            args={"neck": None, "rpn_head": {**DETECTRON, **ONE_MAP, "loss_divisor": "sampled"}},
            input=UNPADDED,
            summary="as Detectron trains it on the map of the third stage",
        ),
        Recipe(
            "rpn_legacy",
            model="rpn",
            sched_args=LEGACY_SCHED,
            optim=LEGACY_OPTIM,
            args={"rpn_head": {**LEGACY_RPN, "test_proposals": 2000}},
            summary="as MMDetection 0 trains it",
        ),
    ],
)
