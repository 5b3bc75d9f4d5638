"""Losses that weigh samples by how many others have a gradient of their length."""

from detcli.plugin import Overlay, Part, Plugin

plugin = Plugin(
    name="ghm",
    title="Gradient Harmonized Single-stage Detector",
    arxiv="1811.05181",
    losses={
        "ghm_c": Part(".model:ghm_c", summary="sigmoid cross-entropy, weighed by the density of gradients"),
        "ghm_r": Part(".model:ghm_r", summary="smooth L1 of box deltas, weighed by the density of gradients"),
    },
    converters={"mmdet/GHMC": ".convert:mmdet_ghm_c", "mmdet/GHMR": ".convert:mmdet_ghm_r"},
    overlays=[
        Overlay(
            "ghm",
            {"model": {"loss_cls": "ghm_c", "loss_bbox": "ghm_r"}, "optim": {"clip_norm": 35.0}},
            applies_to=("retinanet",),
            recipe="retinanet",
            summary="the losses GHM-C and GHM-R, as MMDetection trains them",
        )
    ],
)
