"""Deformable convolutions and RoI pooling where each sampling point has a weight, too."""

from typing import Any

from detcli.plugin import Overlay, Plugin, Recipe

MDCONV: dict[str, Any] = {"dcn": "v2", "dcn_stages": (2, 3, 4)}

plugin = Plugin(
    name="dcnv2",
    title="Deformable ConvNets v2: More Deformable, Better Results",
    arxiv="1811.11168",
    recipes=[
        Recipe(
            "faster_rcnn_mdconv_c3-c5",
            model="faster_rcnn",
            backbone={"name": "r50", **MDCONV},
            summary="modulated deformable convolutions in the last three stages",
        ),
        Recipe(
            "faster_rcnn_mdconv_c3-c5_group4",
            model="faster_rcnn",
            backbone={"name": "r50", **MDCONV, "dcn_groups": 4},
            summary="modulated deformable convolutions with four sets of sampling points",
        ),
        Recipe(
            "faster_rcnn_mdpool",
            model="faster_rcnn",
            args={"roi_head": {"roi_extractor": {"name": "deform_roi_pool", "modulated": True}}},
            summary="boxes from modulated deformable RoI pooling",
        ),
        Recipe(
            "mask_rcnn_mdconv_c3-c5",
            model="mask_rcnn",
            backbone={"name": "r50", **MDCONV},
            summary="modulated deformable convolutions in the last three stages",
        ),
    ],
    overlays=[
        Overlay(
            "mdconv",
            {"model": {"backbone": MDCONV}},
            recipe="faster_rcnn",
            summary="modulated deformable convolutions in the last three stages of a ResNet",
        )
    ],
)
