"""One stage without anchors: every location inside an object predicts its box."""

from detcli.plugin import Part, Plugin, Recipe

OPTIM = {"lr": 0.01, "bias_lr": 2.0, "bias_decay": 0.0}
CLIPPED = {**OPTIM, "clip_norm": 35.0}
CONSTANT_WARMUP = {"warmup": "constant", "warmup_ratio": 1 / 3}

# In a few hundred steps from random weights: only the middle of an object is trained, as in later versions.
DEMO = {
    "demo": {
        "sched": {"length": 1800},
        "model": {
            "center_sampling": True,
            "norm_on_bbox": True,
            "loss_bbox": {"name": "giou", "weight": 2.0},
        },
    }
}

plugin = Plugin(
    name="fcos",
    title="FCOS: Fully Convolutional One-Stage Object Detection",
    arxiv="1904.01355",
    models={"fcos": Part(".model:fcos", summary="no anchors: every location predicts a box around it")},
    converters={
        "legacy-v1/fcos": ".convert:MMDET",
        "mmdet/fcos": ".convert:MMDET",
        "torchvision/fcos": ".convert:TORCHVISION",
        "mmdet/FCOSHead": ".convert:mmdet_head",
    },
    recipes=[
        Recipe(
            "fcos",
            backbone="r50_detectron",
            optim=CLIPPED,
            sched_args=CONSTANT_WARMUP,
            under=DEMO,
            summary="as in the paper's first version",
        ),
        Recipe(
            "fcos_mstrain",
            model="fcos",
            backbone="r50_detectron",
            sched="2x",
            sched_args=CONSTANT_WARMUP,
            optim=CLIPPED,
            data={"resize": [(1333, 640), (1333, 800)]},
            summary="multi-scale training, one of two sizes",
        ),
        Recipe(
            "fcos_tricks",
            model="fcos",
            backbone="r50_caffe",
            args={
                "center_sampling": True,
                "norm_on_bbox": True,
                "centerness_on_reg": True,
                "conv_bias": True,
                "loss_bbox": "giou",
                "nms_threshold": 0.6,
            },
            optim=OPTIM,
            sched_args={"warmup_ratio": 1 / 3},
            summary="centre sampling, distances in strides, centerness from the box tower, GIoU loss",
        ),
    ],
)
