"""Boxes from a grid of points, each found on a map of its own."""

from detcli.plugin import Part, Plugin, Recipe
from detcli.published import CASCADE_RPN_HEAD

# Slimmer grids, and more of them: where its points are is what it is slow to learn.
DEMO = {
    "demo": {
        "sched": {"length": 1500},
        "optim": {"lr": 1e-3},
        "model": {
            "roi_head": {
                "grid_convs": 2,
                "point_channels": 16,
                "sampler": {"num": 64, "positive_fraction": 0.5},
            }
        },
    }
}

# As MMDetection measures it.
UNCLIPPED = {"roi_head": {"clip": False}}

plugin = Plugin(
    name="grid_rcnn",
    title="Grid R-CNN",
    arxiv="1811.12030",
    models={
        "grid_rcnn": Part(
            "detcli.nn.two_stage:two_stage",
            {"rpn_head": CASCADE_RPN_HEAD, "roi_head": "grid"},
            summary="an RPN, then classes, and boxes from a grid of points",
        )
    },
    roi_heads={"grid": Part(".model:grid_roi_head", summary="classes of proposals, and boxes from a grid of points")},
    bbox_heads={"conv_fc_cls": Part(".model:conv_fc_classes", summary="conv_fc for classes alone")},
    converters={"mmdet/GridRoIHead": ".convert:mmdet_head"},
    recipes=[
        Recipe("grid_rcnn", args=UNCLIPPED, under=DEMO, summary="on a feature pyramid, 12 epochs"),
        Recipe(
            "grid_rcnn_2x",
            model="grid_rcnn",
            args=UNCLIPPED,
            sched="2x",
            sched_args={"length": 25, "drops": [17, 23], "warmup_iters": 3665, "warmup_ratio": 1 / 80},
            summary="25 epochs, the first of which warms up",
        ),
    ],
)
