"""Faster R-CNN with the keypoints of each detection."""

from detcli.plugin import Part, Plugin, Recipe

# In a few hundred steps from random weights: fewer and narrower layers.
DEMO = {
    "demo": {
        "sched": {"length": 500},
        "model": {
            "fc_channels": 384,
            "sampler": {"num": 64},
            "train_proposals": 300,
            "keypoint_convs": 4,
            "keypoint_channels": 128,
        },
    }
}

plugin = Plugin(
    name="keypoint_rcnn",
    title="Mask R-CNN (keypoints)",
    arxiv="1703.06870",
    models={"keypoint_rcnn": Part(".model:keypoint_rcnn", summary="Faster R-CNN with the keypoints of each detection")},
    recipes=[
        Recipe("keypoint_rcnn", under=DEMO, summary="on a feature pyramid"),
        Recipe(
            "keypoint_rcnn_detectron2",
            model="keypoint_rcnn",
            backbone="r50_caffe",
            args={
                "rpn_assigner": {"name": "max_iou", "min_positive": 0.0, "low_quality_gt": "best"},
                "rpn_loss_divisor": "capacity",
                "train_padding": True,
                "clamp_below": False,
                "assigner": {"name": "max_iou", "match_low_quality": False},
            },
            sched_args={"unit": "iter", "length": 90_000, "drops": [60_000, 80_000], "warmup_iters": 1000},
            data={"resize": [(1333, side) for side in (640, 672, 704, 736, 768, 800)]},
            summary="as Detectron2 trains it",
        ),
    ],
)
