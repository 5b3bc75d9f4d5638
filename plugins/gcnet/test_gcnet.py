"""Attention in the blocks of a ResNet, and its configs; numbers are held to recorded ones by the parity cases."""

import pytest
import torch
from torch.nn import functional

from detcli.config import resolve
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import BACKBONES
from detcli.errors import DetcliError
from detcli.nn.resnet import resnet
from detcli.nn.weights import load_backbone_file
from detcli.registry import build

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_each_position_gets_the_same():
    torch.manual_seed(0)
    block = build("attentions", {"name": "context_block", "ratio": 0.5}, in_channels=8)
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(block(x), x)
    torch.nn.init.normal_(block.channel_add_conv[3].weight)
    added = block(x) - x
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added))
    # Weights of one position alone: that position is all there is of the map.
    x[..., 2, 3] += 100 * block.conv_mask.weight.detach()[0, :, 0, 0].sign()
    with torch.no_grad():
        block.conv_mask.weight.mul_(100)
    torch.testing.assert_close((block(x) - x)[..., :1, :1], block.channel_add_conv(x[..., 2:3, 3:4]))


@pytest.mark.parametrize(
    ("depth", "after", "channels"), [(18, 3, 256), (18, 1, 256), (50, 3, 1024), (50, 2, 256), (50, 1, 256)]
)
def test_attention_follows_a_convolution_of_the_chosen_stages(depth, after, channels):
    with torch.device("meta"):
        model = resnet(depth=depth, attention="context_block", attention_stages=(3,), attention_after=after)
    masks = {name: value for name, value in model.state_dict().items() if "context_block.conv_mask.weight" in name}
    assert {name.split(".")[0] for name in masks} == {"layer3"}
    assert len(masks) == len(model.layer3)
    assert {value.shape[1] for value in masks.values()} == {channels}


@pytest.mark.parametrize(("after", "rectified"), [(1, True), (2, True), (3, False)])
def test_maps_before_another_convolution_are_rectified(after, rectified):
    model = resnet(depth=50, attention="context_block", attention_stages=(2,), attention_after=after).eval()
    seen = []
    torch.nn.init.ones_(model.layer2[0].bn3.weight)
    model.layer2[0].context_block.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(IMAGES)
    assert bool((seen[0] >= 0).all()) == rectified
    assert seen[0].any()


def test_what_attention_returns_goes_on():
    model = resnet(depth=50, attention="context_block", attention_stages=(2,)).eval()
    block = model.layer2[0]
    torch.nn.init.ones_(block.bn3.weight)
    x = torch.randn(1, 256, 8, 8)
    with torch.no_grad():
        plain = block(x)
        block.context_block.channel_add_conv[3].bias.fill_(0.5)
        branch, shortcut = block.residual(x), block.downsample(x)
        torch.testing.assert_close(block(x), functional.relu(branch + shortcut), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(block(x), plain)


def test_weights_of_the_plain_resnet_are_those_of_the_one_with_attention(tmp_path):
    plain, other = resnet(depth=18).eval(), resnet(depth=18, attention="context_block").eval()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    load_backbone_file(other, tmp_path / "plain.pth")
    assert all(not block.context_block.channel_add_conv[3].weight.any() for block in other.layer4)
    with torch.no_grad():
        for ours, theirs in zip(other(IMAGES), plain(IMAGES), strict=True):
            torch.testing.assert_close(ours, theirs)
    lacking = {name: value for name, value in plain.state_dict().items() if name != "layer2.0.conv2.weight"}
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(DetcliError, match=r"layer2\.0\.conv2\.weight is missing"):
        load_backbone_file(other, tmp_path / "lacking.pth")


def test_the_overlay_reaches_other_backbones():
    backbone = resolve("retinanet", backbone="x101_32x4d", overlays=["gcb"]).config.model["backbone"]
    assert backbone["attention"] == {"name": "context_block", "ratio": 0.25}
    assert (backbone["groups"], backbone["attention_stages"], backbone["attention_after"]) == (32, (2, 3, 4), 3)


# Configs of MMDetection

RESNET = {"type": "ResNet", "depth": 50, "init_cfg": {"type": "Pretrained", "checkpoint": "torchvision://resnet50"}}
LAYER = {"cfg": {"type": "ContextBlock", "ratio": 0.25}, "stages": [False, True, True], "position": "after_conv3"}


def translated(**settings):
    group = Group({**RESNET, **settings}, "backbone")
    found = BACKBONES["ResNet"](group)
    group.check()
    return {key: value for key, value in found.items() if key == "name" or key.startswith("attention")}


def test_a_layer_of_blocks_is_their_attention():
    part = {"name": "context_block", "ratio": 0.25}
    expected = {"name": "r50", "attention": part, "attention_stages": (2, 3), "attention_after": 3}
    assert translated(plugins=[LAYER]) == expected
    # As most of the published weights say it.
    older = translated(gcb={"ratio": 0.25}, stage_with_gcb=[False, True, True], plugins=None, gen_attention=None)
    assert older == expected
    everywhere = translated(plugins=[{"cfg": LAYER["cfg"], "position": "after_conv2"}])
    assert everywhere == {**expected, "attention_stages": (1, 2, 3, 4), "attention_after": 2}


def test_backbones_have_names_whoever_shares_their_statistics():
    assert translated(norm_cfg={"type": "SyncBN"}, plugins=[], gcb=None) == {"name": "r50"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"plugins": [LAYER, LAYER]}, "backbone.plugins"),
        ({"plugins": [{**LAYER, "position": "after_conv4"}]}, "backbone.plugins.0.position to 'after_conv4'"),
        ({"plugins": [{**LAYER, "stages": 3}]}, "backbone.plugins.0.stages to 3"),
        ({"plugins": [{**LAYER, "more": 1}]}, "backbone.plugins.0.more"),
        ({"plugins": [{**LAYER, "cfg": {**LAYER["cfg"], "more": 1}}]}, "backbone.plugins.0.cfg.more"),
        ({"plugins": [{**LAYER, "cfg": {"type": "NonLocal2d"}}]}, "a layer of blocks of type 'NonLocal2d'"),
        ({"plugins": [{**LAYER, "cfg": {**LAYER["cfg"], "pooling_type": "avg"}}]}, "cfg.pooling_type to 'avg'"),
        ({"plugins": [{**LAYER, "cfg": {**LAYER["cfg"], "fusion_types": ["channel_mul"]}}]}, "cfg.fusion_types"),
        ({"gcb": {"ratio": 0.25, "more": 1}}, "backbone.gcb.more"),
        ({"gcb": 3}, "backbone.gcb"),
        ({"gen_attention": {"num_heads": 8}}, "backbone.gen_attention"),
    ],
)
def test_other_layers_of_blocks_are_named(settings, named):
    with pytest.raises(DetcliError) as error:
        translated(**settings)
    assert named in str(error.value)
