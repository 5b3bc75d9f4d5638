import math

import pytest
import torch
from torch import nn

from detcli.nn.blocks import (
    ConvNorm,
    Scale,
    StandardizedConv2d,
    SyncBatchNorm,
    logit,
    make_conv,
    make_norm,
    normal_init,
    xavier_init,
)


@pytest.mark.parametrize(
    ("norm", "names"),
    [
        ("none", ["conv.weight", "conv.bias"]),
        ("gn", ["conv.weight", "gn.weight", "gn.bias"]),
        ("gn_ws", ["conv.weight", "gn.weight", "gn.bias"]),
        (
            "bn",
            [
                "conv.weight",
                "bn.weight",
                "bn.bias",
                "bn.running_mean",
                "bn.running_var",
                "bn.num_batches_tracked",
            ],
        ),
    ],
)
def test_names_and_automatic_bias(norm, names):
    assert list(ConvNorm(32, 32, 3, norm=norm).state_dict()) == names


def test_bias_beside_a_norm():
    assert "conv.bias" in ConvNorm(32, 32, 3, norm="gn", bias=True).state_dict()
    assert "conv.bias" not in ConvNorm(32, 32, 3, bias=False).state_dict()


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_stride_one_keeps_the_size(kernel, dilation):
    x = torch.zeros(1, 4, 9, 7)
    assert ConvNorm(4, 6, kernel, dilation=dilation)(x).shape == (1, 6, 9, 7)
    assert ConvNorm(4, 6, kernel, dilation=dilation, stride=2)(x).shape == (1, 6, 5, 4)


def test_order_is_convolution_norm_relu():
    block = ConvNorm(3, 64, 3, norm="gn")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(block(x), block.gn(block.conv(x)).relu())
    assert ConvNorm(3, 64, 3, relu=False)(x).min() < 0


def test_norms_have_the_published_constants():
    assert make_norm("bn", 64).eps == 1e-5
    group_norm = make_norm("gn", 64)
    assert (group_norm.num_groups, group_norm.eps) == (32, 1e-5)


def test_synced_norm_of_one_process_is_batch_norm():
    x = torch.randn(4, 8, 5, 5)
    synced, plain = make_norm("syncbn", 8), make_norm("bn", 8)
    assert isinstance(synced, SyncBatchNorm)
    torch.testing.assert_close(synced(x), plain(x))
    torch.testing.assert_close(synced.running_var, plain.running_var)


def test_scale_is_learned():
    scale = Scale(2.0)
    assert [name for name, _ in scale.named_parameters()] == ["scale"]
    scale(torch.ones(3)).sum().backward()
    assert scale.scale.grad.item() == 3
    assert scale(torch.ones(3)).tolist() == [2, 2, 2]


def test_logit_undoes_the_sigmoid_also_at_its_ends():
    assert torch.tensor(logit(0.3)).sigmoid().item() == pytest.approx(0.3)
    assert logit(0) == -math.inf
    assert logit(1) == math.inf


def test_initial_weights():
    module = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Linear(64, 64), nn.BatchNorm2d(64))
    normal_init(module, std=0.01, bias=logit(0.01))
    assert module[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert module[1].bias.sigmoid().unique().item() == pytest.approx(0.01)
    assert module[2].weight.unique().item() == 1
    xavier_init(module)
    assert module[1].weight.abs().max().item() == pytest.approx(math.sqrt(6 / 128), rel=0.01)
    assert module[1].bias.abs().max() == 0


def test_standardised_weights():
    conv = make_conv(6, 4, 3, groups=2, stride=2, norm="gn_ws")
    plain = make_conv(6, 4, 3, groups=2, stride=2)
    assert (type(conv), type(plain)) == (StandardizedConv2d, nn.Conv2d)
    nn.init.normal_(conv.weight, mean=3.0, std=5.0)
    x = torch.randn(2, 6, 8, 10)
    for ours, weights in zip(plain.weight.data, conv.weight.data, strict=True):
        ours.copy_((weights - weights.mean()) / (weights.std() + 1e-5))
    torch.testing.assert_close(conv(x), plain(x))
    with torch.no_grad():
        conv.weight.mul_(7).add_(2)
    torch.testing.assert_close(conv(x), plain(x), rtol=1e-4, atol=1e-4)
