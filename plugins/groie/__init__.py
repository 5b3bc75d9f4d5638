"""The features of a region from all levels of the pyramid."""

from detcli.plugin import Part, Plugin, Recipe

SMALL = {"name": "groie", "output_size": 7}
LARGE = {"name": "groie", "output_size": 14}

# Synchronised batch norms, and the global context of GCNet (arXiv 1904.11492).
SYNCBN_GCB = {"norm": "syncbn", "norm_eval": False, "attention": {"name": "context_block", "ratio": 0.25}}

plugin = Plugin(
    name="groie",
    title="A novel Region of Interest Extraction Layer for Instance Segmentation",
    arxiv="2004.13665",
    roi_extractors={"groie": Part(".model:groie", summary="each RoI from all levels, through attention")},
    converters={"mmdet/GenericRoIExtractor": ".convert:mmdet_groie"},
    recipes=[
        Recipe(
            "faster_rcnn_groie",
            model="faster_rcnn",
            args={"roi_head": {"roi_extractor": SMALL}},
            summary="boxes from all levels of the pyramid",
        ),
        Recipe(
            "mask_rcnn_groie",
            model="mask_rcnn",
            args={"roi_head": {"roi_extractor": SMALL, "mask_roi_extractor": LARGE}},
            summary="boxes and masks from all levels of the pyramid",
        ),
        Recipe(
            "mask_rcnn_syncbn-backbone_r4_gcb_c3-c5_groie",
            model="mask_rcnn",
            backbone={"name": "r50", **SYNCBN_GCB},
            args={"roi_head": {"roi_extractor": SMALL, "mask_roi_extractor": LARGE}},
            summary="the same, with global context in the backbone",
        ),
        Recipe(
            "grid_rcnn_groie",
            model="grid_rcnn",
            args={"roi_head": {"roi_extractor": SMALL, "grid_roi_extractor": LARGE, "clip": False}},
            summary="classes and grids of points from all levels of the pyramid",
        ),
    ],
)
