"""Convolutions and RoI pooling whose sampling points are learned."""

from typing import Any

from detcli.plugin import Overlay, Part, Plugin, Recipe
from detcli.published import DETECTRON2_DATA, DETECTRON2_MASKS, DETECTRON2_SCHED

DCONV: dict[str, Any] = {"dcn": "v1", "dcn_stages": (2, 3, 4)}


def _on_backbone(model: str) -> Recipe:
    return Recipe(
        f"{model}_dconv_c3-c5",
        model=model,
        backbone={"name": "r50", **DCONV},
        summary="deformable convolutions in the last three stages",
    )


plugin = Plugin(
    name="dcn",
    title="Deformable Convolutional Networks",
    arxiv="1703.06211",
    roi_extractors={
        "deform_roi_pool": Part(
            "detcli.nn.deform:deform_roi_pool", summary="each RoI from the level that fits its size, by cells that move"
        )
    },
    recipes=[
        *(_on_backbone(model) for model in ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")),
        Recipe(
            "faster_rcnn_dpool",
            model="faster_rcnn",
            args={"roi_head": {"roi_extractor": "deform_roi_pool"}},
            summary="boxes from deformable RoI pooling",
        ),
        Recipe(
            "mask_rcnn_dconv_c3-c5_detectron2",
            model="mask_rcnn",
            backbone={"name": "r50_caffe", **DCONV},
            sched="90k",
            sched_args=DETECTRON2_SCHED,
            args=DETECTRON2_MASKS,
            data=DETECTRON2_DATA,
            summary="deformable convolutions in the last three stages, as Detectron2 trains it",
        ),
    ],
    overlays=[
        Overlay(
            "dconv",
            {"model": {"backbone": DCONV}},
            recipe="faster_rcnn",
            summary="deformable convolutions in the last three stages of a ResNet",
        )
    ],
)
