"""Detection as the prediction of a set: a transformer, no anchors and no NMS."""

from detcli.plugin import Part, Plugin, Recipe

SIZES = [(1333, side) for side in range(480, 801, 32)]

# Small pictures, of which it sees many: sets are learned slowly, since no query knows at first where to look. Features
# are of stride 8, and there are a few times as many queries as objects.
DEMO = {
    "demo": {
        "sched": {"length": 12000},
        "train": {"batch": 16, "ema": 0.998},
        "optim": {"batch": 16, "backbone_lr": 1.0, "clip_norm": 1.0, "weight_decay": 1e-4},
        "data": {"resize": [(80, 64)], "test_resize": (80, 64), "before_resize": []},
        "model": {
            "backbone": {"out_stages": [2]},
            "num_queries": 20,
            "channels": 128,
            "heads": 4,
            "encoder_layers": 1,
            "decoder_layers": 3,
            "ffn_channels": 256,
            "dropout": 0.0,
        },
    }
}

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
            under=DEMO,
            summary="as MMDetection trains it",
        )
    ],
)
