"""Stages of boxes and masks in turn, with features of classes of pixels."""

from detcli.plugin import Part, Plugin, Recipe

# In a few hundred steps from random weights: narrower layers.
DEMO = {
    "demo": {
        "sched": {"length": 500},
        "model": {"fc_channels": 384, "sampler": {"num": 64}, "train_proposals": 300},
    }
}

plugin = Plugin(
    name="htc",
    title="Hybrid Task Cascade for Instance Segmentation",
    arxiv="1901.07518",
    models={"htc": Part(".model:htc", summary="boxes and masks in three stages, with features of classes of pixels")},
    converters={"mmdet/HybridTaskCascadeRoIHead": ".convert:mmdet_head"},
    recipes=[
        Recipe("htc", under=DEMO, summary="with labels of things and stuff for every pixel"),
        Recipe("htc_without_semantic", model="htc", args={"semantic": False}, summary="without labels of pixels"),
    ],
)
