"""Masks as sums of prototypes, in one stage."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe

# Norms are trained, unlike those of most recipes.
BACKBONE = {"name": "r50", "norm_eval": False, "frozen_stages": 0}

# In a few hundred steps from random weights: small scenes as they are drawn, normalised features, anchors as wide as
# high, as the shapes are, and masks that do not outweigh classes.
DEMO: dict[str, Any] = {
    "demo": {
        "sched": {"length": 2000},
        "data": {"before_resize": [], "transforms": [], "keep_ratio": True},
        "model": {"neck": {"norm": "gn"}, "image_size": 128, "anchor_ratios": (1.0,), "mask_weight": 2.0},
    }
}

SETTINGS: dict[str, Any] = {
    "model": "yolact",
    "backbone": BACKBONE,
    "sched": "55e",
    "input": {"mean": [123.68, 116.78, 103.94], "std": [58.4, 57.12, 57.38], "pad_divisor": 1},
    "data": {
        "resize": [(550, 550)],
        "test_resize": (550, 550),
        "keep_ratio": False,
        "min_side": 4.0,
        "before_resize": [{"name": "expand"}, {"name": "min_iou_crop"}],
        "transforms": [{"name": "photometric"}],
    },
    "under": DEMO,
}

plugin = Plugin(
    name="yolact",
    title="YOLACT: Real-time Instance Segmentation",
    arxiv="1904.02689",
    models={"yolact": Part(".model:yolact", summary="masks as sums of prototypes, in one stage")},
    converters={"mmdet/YOLACTHead": ".convert:mmdet_head"},
    schedules={"55e": {"sched": {"length": 55, "drops": [20, 42, 49, 52]}}},
    recipes=[
        Recipe(
            "yolact",
            optim={"lr": 1e-3, "batch": 8, "weight_decay": 5e-4},
            sched_args={"warmup_ratio": 0.1},
            summary="as MMDetection trains it on one GPU",
            **SETTINGS,
        ),
        Recipe(
            "yolact_8gpu",
            optim={"lr": 8e-3, "batch": 64, "weight_decay": 5e-4, "clip_norm": 35.0},
            sched_args={"warmup_ratio": 0.1, "warmup_iters": 1000},
            summary="as MMDetection trains it on eight GPUs",
            **SETTINGS,
        ),
    ],
)
