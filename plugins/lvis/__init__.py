"""LVIS: over a thousand classes, most of them rare, in pictures that were searched for some of them only."""

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import SIX_SIZES

plugin = Plugin(
    name="lvis",
    title="LVIS: A Dataset for Large Vocabulary Instance Segmentation",
    arxiv="1908.03195",
    evaluators={"lvis": Part("detcli.eval.lvis:lvis", summary="LVIS' figures: of rare, common and frequent classes")},
    recipes=[
        Recipe(
            "mask_rcnn_lvis",
            model="mask_rcnn",
            args={"roi_head": {"score_threshold": 1e-4, "max_per_image": 300}},
            data={**SIX_SIZES, "repeat_threshold": 1e-3},
            eval={"evaluator": "lvis"},
            summary="one of six sizes, pictures of rare classes repeated, 300 detections",
        ),
    ],
)
