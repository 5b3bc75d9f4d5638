"""ResNet whose blocks see several scales."""

from detcli.plugin import Part, Plugin
from detcli.published import OPENMMLAB

plugin = Plugin(
    name="res2net",
    title="Res2Net: A New Multi-scale Backbone Architecture",
    arxiv="1904.01169",
    backbones={
        "res2net": Part(".model:res2net", summary="a Res2Net of any depth, width and number of scales"),
        "res2net50": Part(".model:res2net", {"depth": 50}, summary="Res2Net-50 v1d 26w 4s"),
        "res2net101": Part(
            ".model:res2net",
            {"depth": 101},
            weights=OPENMMLAB + "res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth",
            summary="Res2Net-101 v1d 26w 4s",
        ),
    },
    converters={"mmdet/Res2Net": ".convert:mmdet_res2net"},
)
