"""One stage, with anchors at every location and the focal loss."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    DETECTRON2_DATA,
    DETECTRON2_SCHED,
    DETECTRON_OPTIM,
    DETECTRON_SCHED,
    LEGACY_OPTIM,
    LEGACY_SCHED,
    LEGACY_STYLES,
)

OPTIM = {"lr": 0.01}

# A ReLU before P7.
NECK = {"name": "fpn", "start_level": 1, "extra": "on_input", "relu_before_extra": True}

LEGACY: dict[str, Any] = {**LEGACY_STYLES, "loss_bbox": {"name": "smooth_l1", "beta": 0.11}}

# In a few hundred steps from random weights: a normalised head, anchors as wide as high, as the drawn shapes are, and
# only those trained that fit an object well.
DEMO = {
    "demo": {
        "sched": {"length": 1400},
        "model": {"norm": "gn", "ratios": (1.0,), "assigner": {"positive": 0.6, "negative": 0.5}},
    }
}


plugin = Plugin(
    name="retinanet",
    title="Focal Loss for Dense Object Detection",
    arxiv="1708.02002",
    models={"retinanet": Part(".model:retinanet", summary="anchors at every location and the focal loss")},
    converters={
        "detectron/retinanet": ".convert:DETECTRON",
        "detectron2/retinanet": ".convert:DETECTRON2",
        "torchvision/retinanet": ".convert:TORCHVISION",
        "mmdet/RetinaHead": ".convert:mmdet_head",
    },
    recipes=[
        Recipe("retinanet", optim=OPTIM, under=DEMO, summary="as MMDetection trains it"),
        Recipe(
            "retinanet_fp16",
            model="retinanet",
            optim={**OPTIM, "clip_norm": 35.0},
            train={"precision": "fp16"},
            summary="in half precision, with clipped gradients",
        ),
        Recipe(
            "retinanet_detectron2",
            model="retinanet",
            backbone="r50_caffe",
            neck=NECK,
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            optim=OPTIM,
            args={
                "anchor_order": "scale",
                "assigner": {"low_quality_gt": "best"},
                "train_padding": True,
                "normalizer_momentum": 0.9,
                "clamp_below": False,
                "clip": "after_nms",
            },
            data=DETECTRON2_DATA,
            summary="as Detectron2 trains it",
        ),
        Recipe(
            "retinanet_detectron",
            model="retinanet",
            backbone="r50_detectron",
            neck=NECK,
            sched="90k",
            sched_args=DETECTRON_SCHED,
            optim={**DETECTRON_OPTIM, **OPTIM},
            args={
                "ratios": (1.0, 2.0, 0.5),
                "anchor_order": "scale",
                "anchor_style": "detectron",
                "assigner": {"low_quality_gt": "best"},
                "loss_bbox": {"name": "smooth_l1", "beta": 0.11},
                "train_padding": True,
                "clamp_below": False,
            },
            input={"pad_divisor": 128},
            summary="as Detectron trains it",
        ),
        Recipe(
            "retinanet_legacy",
            model="retinanet",
            sched_args=LEGACY_SCHED,
            optim={**LEGACY_OPTIM, **OPTIM},
            args=LEGACY,
            summary="as MMDetection 0 trains it",
        ),
        Recipe(
            "retinanet_legacy_v1",
            model="retinanet",
            args=LEGACY,
            summary="as MMDetection 2 trains it for comparison with MMDetection 1",
        ),
    ],
)
