"""Faster R-CNN with the keypoints of each detection."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    DETECTRON2_DATA,
    DETECTRON2_MASKS,
    DETECTRON2_SCHED,
    DETECTRON_MASKS,
    DETECTRON_OPTIM,
    DETECTRON_ROI_ALIGN,
    DETECTRON_SCHED,
    MASK_ROI_HEAD,
    SIX_SIZES,
    combined,
)

ROI_HEAD = {
    "name": "standard",
    "bbox_head": {"name": "conv_fc", "loss_bbox": {"name": "smooth_l1", "beta": 0.5}},
    "assigner": MASK_ROI_HEAD["assigner"],
    "keypoint_roi_extractor": {"name": "roi_align", "output_size": 14},
    "keypoint_head": "fcn",
}

DETECTRON: dict[str, Any] = {
    "model": "keypoint_rcnn",
    "backbone": "r50_detectron",
    "sched": "90k",
    "sched_args": DETECTRON_SCHED,
    "optim": DETECTRON_OPTIM,
    "data": SIX_SIZES,
}
DETECTRON_ARGS = combined(
    DETECTRON_MASKS,
    {"roi_head": {"keypoint_roi_extractor": DETECTRON_ROI_ALIGN, "keypoint_head": {"style": "detectron"}}},
)

# Fewer and narrower layers.
DEMO = {
    "demo": {"sched": {"length": 1400}, "model": {"roi_head": {"keypoint_head": {"convs": 4, "channels": 128}}}},
}

plugin = Plugin(
    name="keypoint_rcnn",
    title="Mask R-CNN (keypoints)",
    arxiv="1703.06870",
    models={
        "keypoint_rcnn": Part(
            "detcli.nn.two_stage:two_stage",
            {"rpn_head": {"name": "rpn", "train_proposals": 1500}, "roi_head": ROI_HEAD},
            summary="Faster R-CNN with the keypoints of each detection",
        )
    },
    recipes=[
        Recipe("keypoint_rcnn", under=DEMO, summary="on a feature pyramid"),
        Recipe(
            "keypoint_rcnn_detectron2",
            model="keypoint_rcnn",
            backbone="r50_caffe",
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args=DETECTRON2_MASKS,
            data=DETECTRON2_DATA,
            summary="as Detectron2 trains it",
        ),
        Recipe("keypoint_rcnn_detectron", args=DETECTRON_ARGS, summary="as Detectron trains it", **DETECTRON),
        Recipe(
            "fast_keypoint_rcnn_detectron",
            args={**DETECTRON_ARGS, "rpn_head": None},
            summary="as Detectron trains it, with proposals from a file",
            **DETECTRON,
        ),
    ],
)
