"""Mask R-CNN with classes of stuff for every pixel that no object has."""

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import DETECTRON2_DATA, DETECTRON2_SCHED, DETECTRON2_TWO_STAGE

# In a few hundred steps from random weights: narrower layers, and stuff of any size, since pictures are small.
DEMO = {"demo": {"sched": {"length": 500}, "model": {"semantic_channels": 64, "least_stuff_area": 64}}}

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
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args={**DETECTRON2_TWO_STAGE, "assigner": {"match_low_quality": False}},
            optim={"norm_decay": 0.0},
            data={**DETECTRON2_DATA, "keep_empty": True},
            summary="as Detectron2 trains it",
        ),
    ],
)
