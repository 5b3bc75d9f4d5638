"""Group normalisation in the backbone, the pyramid and the heads, of any method with two stages."""

from detcli.plugin import Overlay, Part, Plugin
from detcli.published import CAFFE_INPUT, OPENMMLAB

RESNET = "detcli.nn.resnet:resnet"

plugin = Plugin(
    name="gn",
    title="Group Normalization",
    arxiv="1803.08494",
    backbones={
        "r50_gn": Part(
            RESNET,
            {"depth": 50, "norm": "gn"},
            CAFFE_INPUT,
            OPENMMLAB + "resnet50_gn-9186a21c.pth",
            "ResNet-50 with group norms, of Detectron: BGR input",
        ),
        "r101_gn": Part(
            RESNET,
            {"depth": 101, "norm": "gn"},
            CAFFE_INPUT,
            OPENMMLAB + "resnet101_gn-cac0ab98.pth",
            "ResNet-101 with group norms, of Detectron: BGR input",
        ),
        "r50_gn_contrib": Part(
            RESNET,
            {"depth": 50, "norm": "gn"},
            weights=OPENMMLAB + "resnet50_gn_thangvubk-ad1730dd.pth",
            summary="ResNet-50 with group norms, contributed to MMDetection: RGB input",
        ),
    },
    overlays=[
        Overlay(
            "gn",
            {
                "model": {
                    # The norm is said once more for backbones that are chosen instead, as r18.
                    "backbone": {"name": "r50_gn", "norm": "gn"},
                    "neck": {"norm": "gn"},
                    "roi_head": {
                        "bbox_head": {"convs": 4, "fcs": 1, "norm": "gn"},
                        "mask_head": {"norm": "gn"},
                    },
                }
            },
            recipe="mask_rcnn",
            summary="group normalisation everywhere, and a box head with four convolutions",
        )
    ],
)
