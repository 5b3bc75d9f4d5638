"""Cityscapes: streets of 50 cities, with a number for each object at every pixel."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe

# MMDetection shows every picture eight times in each of its eight epochs.
SETTING: dict[str, Any] = {
    "args": {"roi_head": {"bbox_head": {"loss_bbox": {"name": "smooth_l1", "beta": 1.0}}}},
    "optim": {"lr": 0.01, "batch": 8},
    "sched_args": {"length": 64, "drops": [56]},
    "data": {"resize": [(2048, 800), (2048, 1024)], "resize_mode": "range", "test_resize": (2048, 1024)},
    "train": {"eval_every": 8},
}

plugin = Plugin(
    name="cityscapes",
    title="The Cityscapes Dataset for Semantic Urban Scene Understanding",
    arxiv="1604.01685",
    evaluators={"cityscapes": Part("detcli.eval.cityscapes:cityscapes", summary="Cityscapes' own AP of masks")},
    recipes=[
        Recipe("faster_rcnn_cityscapes", model="faster_rcnn", summary="any size between two, 64 epochs", **SETTING),
        Recipe("mask_rcnn_cityscapes", model="mask_rcnn", summary="any size between two, 64 epochs", **SETTING),
    ],
)
