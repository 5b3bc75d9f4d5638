"""One stage, with anchors at every location and the focal loss."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe

OPTIM = {"lr": 0.01}

# What Detectron2 does differently from MMDetection; see model.py.
DETECTRON2: dict[str, Any] = {
    "model": "retinanet",
    "backbone": "r50_caffe",
    "neck": {"name": "fpn", "start_level": 1, "extra": "on_input", "relu_before_extra": True},
    "args": {
        "anchor_order": "scale",
        "assigner": {"name": "max_iou", "low_quality_gt": "best"},
        "train_padding": True,
        "normalizer_momentum": 0.9,
        "clamp_below": False,
        "clip": "after_nms",
    },
    "optim": OPTIM,
    "data": {"resize": [(1333, side) for side in (640, 672, 704, 736, 768, 800)]},
}

# In a few hundred steps from random weights: a normalised head, anchors as wide as high, as the drawn shapes are, and
# only those trained that fit an object well.
DEMO = {
    "demo": {
        "model": {"norm": "gn", "ratios": (1.0,), "assigner": {"positive": 0.6, "negative": 0.5}},
    }
}


def _iterations(length: int, drops: list[int]) -> dict[str, Any]:
    return {"unit": "iter", "length": length, "drops": drops, "warmup_iters": 1000}


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
            sched_args=_iterations(90_000, [60_000, 80_000]),
            summary="as Detectron2 trains it",
            **DETECTRON2,
        ),
        Recipe(
            "retinanet_detectron2_3x",
            sched="3x",
            sched_args=_iterations(270_000, [210_000, 250_000]),
            summary="as Detectron2 trains it, three times as long",
            **DETECTRON2,
        ),
    ],
)
