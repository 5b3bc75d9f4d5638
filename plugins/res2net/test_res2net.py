"""Deformable convolutions in the blocks; the plain blocks are held to recorded numbers by the parity cases."""

import pytest
import torch

from detcli.config import resolve
from detcli.errors import UsageError
from detcli.nn.weights import load_backbone_file
from detcli.registry import build


@pytest.mark.parametrize("dcn", ["v1", "v2"])
def test_all_3x3_convolutions_of_the_chosen_stages_are_deformable(dcn):
    with torch.device("meta"):
        model = build("backbones", {"name": "res2net50", "dcn": dcn, "dcn_stages": [3, 4]})
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if "conv_offset.weight" in name}
    assert {name.split(".")[0] for name in shapes} == {"layer3", "layer4"}
    assert len(shapes) == 3 * (6 + 3)
    assert shapes["layer3.0.convs.2.conv_offset.weight"] == (18 if dcn == "v1" else 27, 104, 3, 3)


def test_weights_of_the_plain_blocks_are_those_of_the_deformable_ones(tmp_path):
    plain = build("backbones", "res2net50").eval()
    deformed = build("backbones", {"name": "res2net50", "dcn": "v1"}).eval()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    load_backbone_file(deformed, tmp_path / "plain.pth")
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(deformed(images), plain(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_overlay_reaches_this_backbone():
    backbone = resolve("faster_rcnn", backbone="res2net101", overlays=["mdconv"]).config.model["backbone"]
    assert (backbone["name"], backbone["dcn"], backbone["dcn_stages"]) == ("res2net101", "v2", (2, 3, 4))


def test_norms_that_do_not_fit_are_refused():
    with torch.device("meta"):
        with pytest.raises(UsageError, match=r"gn_ws\) can't be deformable"):
            build("backbones", {"name": "res2net50", "base_width": 32, "norm": "gn_ws", "dcn": "v1"})
        with pytest.raises(UsageError, match="104 channels"):
            build("backbones", {"name": "res2net50", "norm": "gn"})
