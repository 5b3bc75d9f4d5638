"""Training in half precision, of any method."""

from detcli.plugin import Overlay, Plugin

plugin = Plugin(
    name="fp16",
    title="Mixed Precision Training",
    arxiv="1710.03740",
    overlays=[
        Overlay(
            "fp16",
            {"train": {"precision": "fp16"}},
            recipe="faster_rcnn",
            summary="mixed precision, float16 and float32, with a scaled loss",
        )
    ],
)
