"""A class and a box for each proposal of a file that another model wrote."""

from detcli.plugin import Part, Plugin, Recipe

plugin = Plugin(
    name="fast_rcnn",
    title="Fast R-CNN",
    arxiv="1504.08083",
    models={"fast_rcnn": Part(".model:fast_rcnn", summary="a class and a box for each proposal of a file")},
    recipes=[
        Recipe(
            "fast_rcnn",
            under={
                "demo": {"sched": {"length": 500}, "model": {"fc_channels": 384, "sampler": {"num": 64}}},
            },
            summary="on a feature pyramid, with proposals from a file",
        )
    ],
)
