"""Test-time augmentation, of any method."""

from detcli.plugin import Overlay, Plugin

plugin = Plugin(
    name="tta",
    title="Test-time augmentation",
    overlays=[
        Overlay(
            "tta",
            {"eval": {"tta": {"scales": [0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.375, 1.5], "flip": True}}},
            summary="pictures are looked at in nine sizes and mirrored, and what is found is merged",
        )
    ],
)
