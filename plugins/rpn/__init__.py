"""Class-agnostic proposals of a region proposal network, for Fast R-CNN or to look at."""

from detcli.plugin import Part, Plugin, Recipe

plugin = Plugin(
    name="rpn",
    title="Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
    arxiv="1506.01497",
    models={"rpn": Part(".model:rpn", summary="proposals of any class, from a feature pyramid")},
    converters={"mmdet/RPNHead": ".convert:mmdet_head"},
    recipes=[Recipe("rpn", summary="RPN on a pyramid, 2000 boxes of each level into NMS")],
)
