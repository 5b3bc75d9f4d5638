"""A feature pyramid with a second path, from the lowest level up."""

from detcli.plugin import Overlay, Part, Plugin

plugin = Plugin(
    name="pafpn",
    title="Path Aggregation Network for Instance Segmentation",
    arxiv="1803.01534",
    necks={"pafpn": Part(".model:pafpn", summary="feature pyramid with a second path, from the lowest level up")},
    converters={"mmdet/PAFPN": ".convert:mmdet_pafpn"},
    overlays=[
        Overlay(
            "pafpn",
            {"model": {"neck": "pafpn"}},
            recipe="faster_rcnn",
            summary="the pyramid of PANet in place of FPN",
        )
    ],
)
