"""Faster R-CNN with a mask for each detection."""

from detcli.plugin import Part, Plugin, Recipe

MSTRAIN = {"resize": [(1333, side) for side in (640, 672, 704, 736, 768, 800)]}

DEMO = {
    "demo": {
        "sched": {"length": 500},
        "model": {"fc_channels": 384, "sampler": {"num": 64}, "train_proposals": 300},
    }
}

plugin = Plugin(
    name="mask_rcnn",
    title="Mask R-CNN",
    arxiv="1703.06870",
    models={"mask_rcnn": Part(".model:mask_rcnn", summary="Faster R-CNN with a mask for each detection")},
    recipes=[
        Recipe("mask_rcnn", under=DEMO, summary="on a feature pyramid"),
        Recipe(
            "mask_rcnn_mstrain_2x",
            model="mask_rcnn",
            backbone="r50_caffe",
            sched="2x",
            sched_args={"drops": [16, 23]},
            data=MSTRAIN,
            summary="multi-scale training, one of six sizes",
        ),
        Recipe(
            "mask_rcnn_mstrain_3x",
            model="mask_rcnn",
            backbone="r50_caffe",
            sched="3x",
            sched_args={"drops": [28, 34]},
            data=MSTRAIN,
            summary="multi-scale training, three times as long",
        ),
    ],
)
