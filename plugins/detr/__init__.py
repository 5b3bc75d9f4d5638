"""Detection as the prediction of a set: a transformer, no anchors and no NMS."""

from detcli.plugin import Part, Plugin, Recipe

SIZES = [(1333, side) for side in range(480, 801, 32)]

plugin = Plugin(
    name="detr",
    title="End-to-End Object Detection with Transformers",
    arxiv="2005.12872",
    models={"detr": Part(".model:detr", summary="a transformer that predicts all objects at once, without NMS")},
    converters={"mmdet/detr": ".convert:MMDET", "mmdet/DETRHead": ".convert:mmdet_head"},
    schedules={"150e": {"sched": {"unit": "epoch", "length": 150, "drops": [100]}}},
    recipes=[
        Recipe(
            "detr",
            sched="150e",
            sched_args={"warmup": "none"},
            optim={"name": "adamw", "lr": 1e-4, "weight_decay": 1e-4, "backbone_lr": 0.1, "clip_norm": 0.1},
            data={"resize": SIZES, "before_resize": [{"name": "random_size_crop"}]},
            input={"pad_divisor": 1},
            under={"demo": {}},
            summary="as MMDetection trains it",
        )
    ],
)
