"""Mask R-CNN with classes of stuff for every pixel that no object has."""

from detcli.plugin import Part, Plugin, Recipe

# In a few hundred steps from random weights: narrower layers, and stuff of any size, since pictures are small.
DEMO = {
    "demo": {
        "sched": {"length": 500},
        "model": {
            "fc_channels": 384,
            "sampler": {"num": 64},
            "train_proposals": 300,
            "semantic_channels": 64,
            "least_stuff_area": 64,
        },
    }
}

plugin = Plugin(
    name="panoptic_fpn",
    title="Panoptic Feature Pyramid Networks",
    arxiv="1901.02446",
    models={
        "panoptic_fpn": Part(".model:panoptic_fpn", summary="Mask R-CNN with classes of stuff for the other pixels")
    },
    recipes=[
        Recipe("panoptic_fpn", under=DEMO, summary="on a feature pyramid"),
        Recipe(
            "panoptic_fpn_detectron2",
            model="panoptic_fpn",
            backbone="r50_caffe",
            args={
                "rpn_assigner": {"name": "max_iou", "min_positive": 0.0, "low_quality_gt": "best"},
                "rpn_loss_divisor": "capacity",
                "train_padding": True,
                "clamp_below": False,
                "assigner": {"name": "max_iou", "match_low_quality": False},
            },
            sched_args={"unit": "iter", "length": 90_000, "drops": [60_000, 80_000], "warmup_iters": 1000},
            data={
                "resize": [(1333, side) for side in (640, 672, 704, 736, 768, 800)],
                "keep_empty": True,
            },
            summary="as Detectron2 trains it",
        ),
    ],
)
