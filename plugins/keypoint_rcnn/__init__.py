"""Faster R-CNN with the keypoints of each detection."""

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import DETECTRON2_DATA, DETECTRON2_SCHED, DETECTRON2_TWO_STAGE

# In less than a thousand steps from random weights: fewer and narrower layers.
DEMO = {"demo": {"model": {"keypoint_convs": 4, "keypoint_channels": 128}}}

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
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args={**DETECTRON2_TWO_STAGE, "assigner": {"match_low_quality": False}},
            data=DETECTRON2_DATA,
            summary="as Detectron2 trains it",
        ),
    ],
)
