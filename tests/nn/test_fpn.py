import pytest
import torch
from torch.nn import functional

from detcli.errors import UsageError
from detcli.nn.fpn import fpn

CHANNELS, STRIDES = (8, 16, 32, 64), (4, 8, 16, 32)


def make(**args):
    torch.manual_seed(0)
    return fpn(in_channels=CHANNELS, in_strides=STRIDES, out_channels=32, **args)


def features(height=128, width=192):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(2, channels, -(-height // stride), -(-width // stride), generator=generator)
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    )


def test_pooled_level_is_every_second_pixel():
    neck = make()
    outs = neck(features())
    assert neck.strides == (4, 8, 16, 32, 64)
    assert [tuple(out.shape) for out in outs] == [(2, 32, 128 // s, 192 // s) for s in neck.strides]
    assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])


def test_levels_can_be_brought_to_size_bilinearly():
    neck, inputs = make(upsample="bilinear"), features(104, 152)
    total = neck.lateral_convs[3](inputs[3])
    for level in (2, 1, 0):
        size = inputs[level].shape[-2:]
        total = neck.lateral_convs[level](inputs[level]) + functional.interpolate(total, size, mode="bilinear")
    torch.testing.assert_close(neck(inputs)[0], neck.fpn_convs[0](total))
    assert not torch.allclose(neck(inputs)[0], make()(inputs)[0])


def test_levels_are_summed_from_the_top():
    neck = make()
    inputs = features()
    total = neck.lateral_convs[3](inputs[3])
    for level in (2, 1, 0):
        total = neck.lateral_convs[level](inputs[level]) + total.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(neck(inputs)[0], neck.fpn_convs[0](total))


def test_odd_sizes_are_met_exactly():
    inputs = features(100, 135)
    outs = make()(inputs)
    assert [out.shape[-2:] for out in outs[:4]] == [feature.shape[-2:] for feature in inputs]
    assert outs[4].shape[-2:] == (2, 3)


@pytest.mark.parametrize("extra", ["on_input", "on_lateral", "on_output"])
@pytest.mark.parametrize("relu", [False, True])
def test_convolved_levels(extra, relu):
    neck = make(start_level=1, extra=extra, relu_before_extra=relu)
    inputs = features()
    outs = neck(inputs)
    assert neck.strides == (8, 16, 32, 64, 128)
    assert [tuple(out.shape[-2:]) for out in outs] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    first, second = neck.fpn_convs[3:]
    source = {"on_input": inputs[3], "on_lateral": neck.lateral_convs[2](inputs[3]), "on_output": outs[2]}[extra]
    torch.testing.assert_close(outs[3], first(source))
    torch.testing.assert_close(outs[4], second(functional.relu(outs[3]) if relu else outs[3]))


def test_no_extra_level_on_request():
    neck = make(start_level=1, num_outs=3, extra="on_input")
    assert (neck.strides, len(neck(features()))) == ((8, 16, 32), 3)


def test_norm_replaces_bias():
    names = set(make(norm="gn", extra="on_output").state_dict())
    assert {"lateral_convs.0.conv.weight", "lateral_convs.0.gn.weight", "fpn_convs.4.gn.bias"} <= names
    assert not any(name.endswith("conv.bias") for name in names)


def test_initial_weights_are_xavier_uniform():
    weight = make().fpn_convs[0].conv.weight
    bound = (6 / (2 * 32 * 9)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound


def test_too_few_levels_are_refused():
    with pytest.raises(UsageError, match="num_outs of the neck is 3, but its inputs are 4"):
        make(num_outs=3)
