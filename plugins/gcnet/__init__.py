"""What all of a map holds, for each of its positions: an attention in the blocks of a ResNet."""

from typing import Any

from detcli.plugin import Overlay, Part, Plugin, Recipe

R16: dict[str, Any] = {"attention": {"name": "context_block", "ratio": 0.0625}}
R4: dict[str, Any] = {"attention": {"name": "context_block", "ratio": 0.25}}
SYNCBN: dict[str, Any] = {"norm": "syncbn", "norm_eval": False}
DCONV: dict[str, Any] = {"dcn": "v1"}

IN_WORDS = {
    "syncbn-backbone": "synchronised batch norms in the backbone",
    "dconv_c3-c5": "deformable convolutions in its last three stages",
    "r16_gcb_c3-c5": "global context in its last three stages, of a 16th of the width inside",
    "r4_gcb_c3-c5": "global context in its last three stages, of a quarter of the width inside",
}
SETTINGS = {"syncbn-backbone": SYNCBN, "dconv_c3-c5": DCONV, "r16_gcb_c3-c5": R16, "r4_gcb_c3-c5": R4}


def _recipe(model: str, *words: str) -> Recipe:
    backbone: dict[str, Any] = {"name": "r50"}
    for word in words:
        backbone |= SETTINGS[word]
    return Recipe(
        "_".join((model, *words)),
        model=model,
        backbone=backbone,
        summary=", ".join(IN_WORDS[word] for word in words),
    )


plugin = Plugin(
    name="gcnet",
    title="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
    arxiv="1904.11492",
    attentions={
        "context_block": Part(".model:context_block", summary="the same for each position: what all of a map holds")
    },
    converters={"mmdet/ContextBlock": ".convert:mmdet_context_block"},
    recipes=[
        _recipe("mask_rcnn", "r16_gcb_c3-c5"),
        _recipe("mask_rcnn", "r4_gcb_c3-c5"),
        *(
            _recipe(model, "syncbn-backbone", *words)
            for model in ("mask_rcnn", "cascade_mask_rcnn")
            for words in ((), ("r16_gcb_c3-c5",), ("r4_gcb_c3-c5",))
        ),
        _recipe("cascade_mask_rcnn", "syncbn-backbone", "dconv_c3-c5"),
        _recipe("cascade_mask_rcnn", "syncbn-backbone", "dconv_c3-c5", "r16_gcb_c3-c5"),
        _recipe("cascade_mask_rcnn", "syncbn-backbone", "dconv_c3-c5", "r4_gcb_c3-c5"),
    ],
    overlays=[
        Overlay(
            "gcb",
            {"model": {"backbone": R4}},
            recipe="mask_rcnn",
            summary="global context in the last three stages of a ResNet",
        )
    ],
)
