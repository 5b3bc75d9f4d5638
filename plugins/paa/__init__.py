"""One stage, with training samples separated by a mixture of two Gaussians of their losses."""

from detcli.plugin import Part, Plugin, Recipe

OPTIM = {"lr": 0.01}

plugin = Plugin(
    name="paa",
    title="Probabilistic Anchor Assignment with IoU Prediction for Object Detection",
    arxiv="2007.08103",
    models={"paa": Part(".model:paa", summary="one anchor a location, assigned by how likely its loss is an object's")},
    converters={"mmdet/PAAHead": ".convert:mmdet_head"},
    schedules={"1.5x": {"sched": {"unit": "epoch", "length": 18, "drops": [12, 16]}}},
    recipes=[
        Recipe(
            "paa",
            optim=OPTIM,
            under={"demo": {"sched": {"length": 1400}}},
            summary="as MMDetection trains it",
        ),
        Recipe(
            "paa_unvoted",
            model="paa",
            args={"score_voting": False},
            optim=OPTIM,
            summary="with boxes as NMS leaves them",
        ),
        Recipe(
            "paa_mstrain",
            model="paa",
            sched="3x",
            sched_args={"drops": [28, 34]},
            optim=OPTIM,
            data={"resize": [(1333, 640), (1333, 800)], "resize_mode": "range"},
            summary="any size between two, 36 epochs",
        ),
    ],
)
