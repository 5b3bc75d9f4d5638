"""RetinaNet: its model and recipes."""

from detcli.plugin import Part, Plugin, Recipe

plugin = Plugin(
    name="retinanet",
    title="Focal Loss for Dense Object Detection",
    arxiv="1708.02002",
    models={"retinanet": Part(".model:retinanet", summary="anchors at every location, focal loss")},
    recipes=[Recipe("retinanet", optim={"lr": 0.01}, summary="RetinaNet as MMDetection trains it")],
)
