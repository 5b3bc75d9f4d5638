"""Norms in all parts of every model with two stages, by one overlay."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detcli.config import resolve
from detcli.errors import UsageError
from detcli.nn.blocks import StandardizedConv2d
from detcli.registry import build, names


def two_stage_models():
    """Return the models whose RoIs can have masks; the heads of others have norms of their own."""
    heads = {model: resolve(model).config.model.get("roi_head") or {} for model in names("models")}
    return [model for model, head in heads.items() if "mask_head" in head]


@pytest.mark.parametrize("overlay", ["gn", "gn_ws"])
@pytest.mark.parametrize("name", two_stage_models())
def test_every_model_with_two_stages_takes_the_overlay(name, overlay):
    config = resolve(name, overlays=[overlay]).config
    with torch.device("meta"):
        model = build("models", config.model, num_classes=3)
    assert config.model["backbone"]["name"] == f"r50_{overlay}"
    assert not [where for where, module in model.named_modules() if isinstance(module, _BatchNorm)]
    conv = StandardizedConv2d if overlay == "gn_ws" else nn.Conv2d
    for part in (model.backbone, model.neck, model.roi_head.bbox_head):
        assert {type(module) for module in part.modules() if isinstance(module, nn.Conv2d)} == {conv}
        assert any(isinstance(module, nn.GroupNorm) for module in part.modules())


def test_another_backbone_has_the_norm():
    assert resolve("mask_rcnn", backbone="r18", overlays=["gn"]).config.model["backbone"]["norm"] == "gn"


def test_a_model_of_one_stage_has_no_place_for_it():
    with pytest.raises(UsageError, match="overlay 'gn' does not fit 'atss', which has no argument 'roi_head'"):
        resolve("atss", overlays=["gn"])


def test_an_overlay_leaves_out_pieces_of_parts_that_a_model_does_without():
    heads = [resolve(model, overlays=["gn"]).config.model["roi_head"] for model in ("faster_rcnn", "mask_rcnn")]
    assert heads[0]["mask_head"] is None
    assert heads[1]["mask_head"]["norm"] == heads[1]["bbox_head"]["norm"] == "gn"
