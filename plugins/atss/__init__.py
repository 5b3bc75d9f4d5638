"""One stage, with training samples selected by the statistics of each object's overlaps."""

from detcli.plugin import Part, Plugin, Recipe

plugin = Plugin(
    name="atss",
    title="Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection",
    arxiv="1912.02424",
    models={"atss": Part(".model:atss", summary="one anchor a location, assigned by its overlaps' statistics")},
    converters={"mmdet/ATSSHead": ".convert:mmdet_head"},
    recipes=[
        Recipe(
            "atss",
            optim={"lr": 0.01},
            under={"demo": {"sched": {"length": 1400}}},
            summary="as MMDetection trains it",
        )
    ],
)
