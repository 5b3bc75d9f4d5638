import pytest
import torch
from torch import nn
from torch.nn import functional

from detcli.errors import DetcliError, UsageError
from detcli.nn.blocks import make_conv
from detcli.nn.deform import DeformConv2d, deform_roi_pool, deformable
from detcli.nn.resnet import resnet
from detcli.nn.roi_extractor import single_level
from detcli.nn.weights import load_backbone_file

IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 4), (1, 2, 2)])
def test_it_starts_as_the_plain_convolution(stride, dilation, groups):
    plain = make_conv(8, 12, 3, stride=stride, dilation=dilation, groups=groups)
    x = torch.randn(2, 8, 9, 11)
    for modulated, share in ((False, 1.0), (True, 0.5)):
        conv = deformable(plain, modulated=modulated, groups=2)
        conv.weight = plain.weight
        torch.testing.assert_close(conv(x), share * plain(x))


def test_an_offset_of_a_pixel_moves_what_is_seen():
    conv = DeformConv2d(1, 1, 1)
    nn.init.ones_(conv.weight)
    conv.conv_offset.bias.data.copy_(torch.tensor([1.0, 2.0]))  # down, right
    x = torch.randn(1, 1, 6, 7)
    expected = functional.pad(x[..., 1:, 2:], (0, 2, 0, 1))
    torch.testing.assert_close(conv(x), expected)


def test_low_precision_goes_through_float32():
    conv = deformable(make_conv(4, 4, 3), modulated=True)
    x = torch.randn(1, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        result = conv(x.bfloat16())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), conv(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("depth", [18, 50])
def test_the_chosen_stages_of_a_resnet_are_deformable(depth):
    model = resnet(depth=depth, dcn="v2", dcn_stages=(3, 4), dcn_groups=2)
    found = {name.rpartition(".")[0] for name in model.state_dict() if ".conv_offset.weight" in name}
    assert {name.split(".")[0] for name in found} == {"layer3", "layer4"}
    assert {name.split(".", 2)[2] for name in found} == {"conv2.conv_offset"}
    assert model.get_submodule("layer3.0.conv2.conv_offset").weight.shape[0] == 2 * 3 * 9
    assert all(not value.any() for name, value in model.state_dict().items() if "conv_offset" in name)


def test_standardised_weights_do_not_deform():
    with pytest.raises(UsageError, match=r"gn_ws\) can't be deformable"):
        resnet(depth=50, norm="gn_ws", dcn="v2", dcn_stages=(4,))
    assert not any("conv_offset" in name for name in resnet(depth=50, norm="gn_ws").state_dict())


def test_weights_of_the_plain_resnet_are_those_of_the_deformable_one(tmp_path):
    plain, deformed = resnet(depth=50).eval(), resnet(depth=50, dcn="v1").eval()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    load_backbone_file(deformed, tmp_path / "plain.pth")
    with torch.no_grad():
        for ours, theirs in zip(deformed(IMAGES), plain(IMAGES), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    lacking = {name: value for name, value in plain.state_dict().items() if name != "layer2.0.conv2.weight"}
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(DetcliError, match=r"layer2\.0\.conv2\.weight is missing"):
        load_backbone_file(deformed, tmp_path / "lacking.pth")


ROIS = torch.tensor([[0, 3, 4, 47, 30], [0, 10, 5, 22, 60.0], [0, 0, 0, 90, 60]])


@pytest.mark.parametrize(("modulated", "share"), [(False, 1.0), (True, 0.5)])
def test_pooling_starts_as_roi_align(modulated, share):
    features = [torch.randn(1, 6, 16, 24), torch.randn(1, 6, 8, 12)]
    settings = {"strides": (4, 8), "output_size": 3, "finest_scale": 28}
    pool = deform_roi_pool(in_channels=6, fc_channels=8, modulated=modulated, **settings)
    plain = single_level(**settings)
    torch.testing.assert_close(pool(features, ROIS), share * plain(features, ROIS), rtol=1e-4, atol=1e-5)
    assert pool(features, ROIS[:0]).shape == (0, 6, 3, 3)


def test_each_level_has_offsets_of_its_own():
    features = [torch.randn(1, 6, 16, 24), torch.randn(1, 6, 8, 12)]
    pool = deform_roi_pool(in_channels=6, strides=(4, 8), output_size=3, finest_scale=28, fc_channels=8)
    before = pool(features, ROIS)
    pool.roi_layers[1].offset_fc[-1].bias.data.fill_(1.0)
    moved = (pool(features, ROIS) - before).abs().amax((1, 2, 3)) > 1e-3
    assert moved.tolist() == [False, False, True]
    pool(features, ROIS).sum().backward()
    assert pool.roi_layers[1].offset_fc[-1].bias.grad.abs().sum() > 0
    assert pool.roi_layers[0].offset_fc[-1].bias.grad.abs().sum() > 0
