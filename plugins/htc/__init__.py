"""Stages of boxes and masks in turn, with features of classes of pixels."""

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import CASCADE_RPN_HEAD

plugin = Plugin(
    name="htc",
    title="Hybrid Task Cascade for Instance Segmentation",
    arxiv="1901.07518",
    models={
        "htc": Part(
            "detcli.nn.two_stage:two_stage",
            {"rpn_head": CASCADE_RPN_HEAD, "roi_head": "htc"},
            summary="boxes and masks in three stages, with features of classes of pixels",
        )
    },
    roi_heads={"htc": Part(".model:hybrid_roi_head", summary="a cascade whose masks see those of the stage before")},
    mask_heads={"htc": Part(".model:hybrid_masks", summary="that of a stage, which takes what the one before saw")},
    converters={"mmdet/HybridTaskCascadeRoIHead": ".convert:mmdet_head"},
    recipes=[
        Recipe("htc", summary="with labels of things and stuff for every pixel"),
        Recipe(
            "htc_dconv_c3-c5_mstrain_20e",
            model="htc",
            backbone={"name": "r50", "dcn": "v1", "dcn_stages": (2, 3, 4)},
            sched="20e",
            data={"resize": [(1600, 400), (1600, 1400)], "resize_mode": "range"},
            summary="deformable convolutions in the last three stages, multi-scale training from 400 to 1400 pixels",
        ),
        Recipe(
            "htc_without_semantic",
            model="htc",
            args={"roi_head": {"semantic": False}},
            summary="without labels of pixels",
        ),
    ],
)
