"""PASCAL VOC: twenty classes, an XML file a picture, and the average precision at half overlap."""

from typing import Any

from detcli.plugin import Part, Plugin, Recipe

# MMDetection shows every picture three times in each of its four epochs.
SETTING: dict[str, Any] = {
    "optim": {"lr": 0.01, "batch": 16},
    "sched_args": {"length": 12, "drops": [9], "warmup": "none"},
    "data": {"resize": [(1000, 600)], "test_resize": (1000, 600)},
    "train": {"eval_every": 3},
    "eval": {"evaluator": "voc07"},
}

plugin = Plugin(
    name="pascal_voc",
    title="The PASCAL Visual Object Classes Challenge",
    datasets={"voc": Part("detcli.data.voc:voc", summary="a PASCAL VOC folder, such as VOCdevkit")},
    evaluators={
        "voc": Part("detcli.eval.voc:voc", summary="VOC's AP: the area below the curve"),
        "voc07": Part("detcli.eval.voc:voc", {"interpolation": "11_points"}, summary="VOC's AP of 2007: at 11 recalls"),
    },
    recipes=[
        Recipe(
            "faster_rcnn_voc",
            model="faster_rcnn",
            summary="VOC 2007 and 2012, 12 epochs",
            **SETTING,
        ),
        Recipe("retinanet_voc", model="retinanet", summary="VOC 2007 and 2012, 12 epochs", **SETTING),
    ],
)
