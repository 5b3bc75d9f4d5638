"""Objects that are moved a little in their own picture, as an augmentation of masks' training."""

from detcli.plugin import Overlay, Part, Plugin

plugin = Plugin(
    name="instaboost",
    title="InstaBoost: Boosting Instance Segmentation via Probability Map Guided Copy-Pasting",
    arxiv="1908.07801",
    transforms={"instaboost": Part(".model:instaboost", summary="objects moved a little in their own picture")},
    schedules={"4x": {"sched": {"unit": "epoch", "length": 48, "drops": [32, 44]}}},
    overlays=[
        Overlay(
            "instaboost",
            {"data": {"before_resize": [{"name": "instaboost"}]}},
            recipe="mask_rcnn",
            summary="objects are moved, turned and scaled a little in training",
        )
    ],
)
