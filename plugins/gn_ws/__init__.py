"""Group normalisation after convolutions with standardised weights, of any method with two stages."""

from detcli.plugin import Overlay, Part, Plugin
from detcli.published import OPENMMLAB


def _backbone(depth: int, weights: str, summary: str, **args: int) -> Part:
    return Part(
        "detcli.nn.resnet:resnet",
        {"depth": depth, "norm": "gn_ws", **args},
        weights=OPENMMLAB + weights,
        summary=f"{summary} with group norms and weight standardisation",
    )


RESNEXT = {"groups": 32, "width_per_group": 4}

plugin = Plugin(
    name="gn_ws",
    title="Weight Standardization",
    arxiv="1903.10520",
    backbones={
        "r50_gn_ws": _backbone(50, "resnet50_gn_ws-15beedd8.pth", "ResNet-50"),
        "r101_gn_ws": _backbone(101, "resnet101_gn_ws-3e3c308c.pth", "ResNet-101"),
        "x50_32x4d_gn_ws": _backbone(50, "resnext50_32x4d_gn_ws-0d87ac85.pth", "ResNeXt-50 32x4d", **RESNEXT),
        "x101_32x4d_gn_ws": _backbone(101, "resnext101_32x4d_gn_ws-34ac1a9e.pth", "ResNeXt-101 32x4d", **RESNEXT),
    },
    schedules={"20-23-24e": {"sched": {"unit": "epoch", "length": 24, "drops": [20, 23]}}},
    overlays=[
        Overlay(
            "gn_ws",
            {
                "model": {
                    # The norm is said once more for backbones that are chosen instead, as r18.
                    "backbone": {"name": "r50_gn_ws", "norm": "gn_ws"},
                    "neck": {"norm": "gn_ws"},
                    "roi_head": {
                        "bbox_head": {"convs": 4, "fcs": 1, "norm": "gn_ws"},
                        "mask_head": {"norm": "gn_ws"},
                    },
                }
            },
            recipe="mask_rcnn",
            summary="group norms and standardised weights everywhere, and a box head with four convolutions",
        )
    ],
)
