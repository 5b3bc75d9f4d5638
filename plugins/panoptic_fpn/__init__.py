"""Mask R-CNN with classes of stuff for every pixel that no object has."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import (
    DETECTRON2_CASCADE,
    DETECTRON2_DATA,
    DETECTRON2_MASKS,
    DETECTRON2_OPTIM,
    DETECTRON2_SCHED,
    combined,
)

# Narrower layers, and stuff of any size, since pictures are small.
DEMO = {"demo": {"model": {"semantic_channels": 64, "least_stuff_area": 64}}}

DETECTRON2: dict[str, Any] = {
    "model": "panoptic_fpn",
    "optim": DETECTRON2_OPTIM,
    "data": {**DETECTRON2_DATA, "keep_empty": True},
}
GN = {"norm": "gn"}

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
            backbone="r50_caffe",
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args=DETECTRON2_MASKS,
            summary="as Detectron2 trains it",
            **DETECTRON2,
        ),
        Recipe(
            "panoptic_fpn_dconv_cascade_gn_detectron2",
            backbone={"name": "r101_gn", "dcn": "v1", "dcn_stages": (2, 3, 4)},
            neck={"name": "fpn", **GN},
            sched_args={**DETECTRON2_SCHED, "unit": "iter", "length": 135_000, "drops": [105_000, 125_000]},
            args=combined(DETECTRON2_CASCADE, {"roi_head": {"mask_head": GN}}),
            summary="as Detectron2 trains it with a cascade, deformable convolutions and group norms",
            **{**DETECTRON2, "optim": {**DETECTRON2_OPTIM, "lr": 0.04, "batch": 32}},
        ),
    ],
)
