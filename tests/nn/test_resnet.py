import gzip
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from detcli.errors import UsageError
from detcli.nn.fpn import fpn
from detcli.nn.resnet import resnet
from detcli.registry import build

HERE = Path(__file__).parent


def images(height=64, width=96, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def random_weights(model):
    """Return a state dict for `model` in which every tensor shows where it is used."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in model.state_dict().items():
        if value.ndim > 1:
            values = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        else:
            values = torch.rand(value.shape, generator=generator) / 2 + 0.5
        weights[name] = values.to(value.dtype)
    return weights


@pytest.mark.parametrize(
    ("preset", "theirs"),
    [
        ("r18", "resnet18"),
        ("r34", "resnet34"),
        ("r50", "resnet50"),
        ("x101_32x8d", "resnext101_32x8d"),
        ("r152", "resnet152"),
    ],
)
def test_equals_torchvision(preset, theirs):
    with torch.device("meta"):
        reference = getattr(torchvision.models, theirs)(num_classes=1).eval()
        model = build("backbones", preset).eval()
    weights = random_weights(reference)
    reference.load_state_dict(weights, assign=True)
    del weights["fc.weight"], weights["fc.bias"]
    model.load_state_dict(weights, assign=True)
    # In double precision, for a norm that is folded into its convolution is rounded differently.
    reference, model, x = reference.double(), model.double(), images().double()
    with torch.no_grad():
        features = model(x)
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        for number, feature in enumerate(features):
            x = getattr(reference, f"layer{number + 1}")(x)
            torch.testing.assert_close(feature, x)
            assert feature.shape == (
                2,
                model.out_channels[number],
                *(s // model.strides[number] for s in (64, 96)),
            )


def test_group_norm_equals_mmdetection():
    """Names, shapes, frozen parameters and feature maps of ResNet-50 and FPN with GN everywhere."""
    spec = importlib.util.spec_from_file_location("parity_rule", HERE.parent / "parity" / "rule.py")
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    case = json.loads(gzip.decompress((HERE / "data" / "resnet50_fpn_gn.json.gz").read_bytes()))

    backbone = resnet(norm="gn")
    neck = fpn(in_channels=backbone.out_channels, in_strides=backbone.strides, norm="gn")
    model = nn.ModuleDict({"backbone": backbone, "neck": neck}).eval()
    ours = [[name, list(value.shape)] for name, value in model.state_dict().items()]
    assert ours == [[name, shape] for name, shape, _ in case["state_dict"]]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == set(case["frozen"])

    model.load_state_dict({row[0]: torch.from_numpy(rule.fill(*row)) for row in case["state_dict"]})
    with torch.no_grad():
        features = backbone(torch.from_numpy(rule.make_input(case["input"]["height"], case["input"]["width"])))
        outputs = {"backbone": features, "neck": neck(features)}
    for part, levels in outputs.items():
        for level, reference in zip(levels, case["features"][part], strict=True):
            assert list(level.shape) == reference["shape"]
            flat = level.flatten().double()
            index = torch.linspace(0, len(flat) - 1, len(reference["samples"]), dtype=torch.float64).long()
            difference = flat[index] - torch.tensor(reference["samples"], dtype=torch.float64)
            assert difference.abs().max() / reference["std"] < 1e-4


def test_style_says_where_a_bottleneck_strides():
    for style, strides in [("pytorch", [(1, 1), (2, 2), (1, 1)]), ("caffe", [(2, 2), (1, 1), (1, 1)])]:
        block = resnet(style=style).layer2[0]
        assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == strides


@pytest.mark.parametrize("frozen_stages", [0, 1, 3])
def test_frozen_stages(frozen_stages):
    model = resnet(depth=18, frozen_stages=frozen_stages, norm_eval=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sum(feature.sum() for feature in model(images())).backward()
    frozen = ("conv1", "bn1", *(f"layer{stage}." for stage in range(1, frozen_stages + 1))) if frozen_stages else ()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert changed == {name for name in statistics if not name.startswith(frozen)}


def test_fixed_statistics_with_trained_weights():
    model = resnet(depth=18, frozen_stages=0, norm_eval=True).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    sum(feature.sum() for feature in model(images())).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model.training
    assert model.layer4[0].bn1.weight.grad is not None


def test_fixed_norm_weights():
    model = resnet(depth=18, frozen_stages=0, norm_trained=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert not {name for name in trained if "bn" in name or "downsample.1" in name}


def test_blocks_start_as_their_shortcut():
    model = resnet(depth=50, frozen_stages=0).eval()
    x = images().repeat(1, 22, 1, 1)[:, :64].contiguous()
    block = model.layer1[0]
    torch.testing.assert_close(block(x), block.downsample(x).relu())


def test_dilated_last_stage():
    """DC5: the last stage keeps the resolution of the one before."""
    model = resnet(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_stages=(3, 4)).eval()
    assert model.strides == (16, 16)
    assert [feature.shape[-2:] for feature in model(images())] == [(4, 6), (4, 6)]
    assert {block.conv2.dilation for block in model.layer4} == {(2, 2)}


def test_only_stages_up_to_the_last_output_are_built():
    model = resnet(depth=18, out_stages=(2, 3)).eval()
    assert (model.out_channels, model.strides) == ((128, 256), (8, 16))
    assert not any(name.startswith("layer4") for name in model.state_dict())
    assert [feature.shape[1] for feature in model(images())] == [128, 256]


def test_synced_norm_trains_in_one_process():
    torch.manual_seed(0)
    plain = resnet(depth=18, norm="bn", norm_eval=False, frozen_stages=0).train()
    synced = resnet(depth=18, norm="syncbn", norm_eval=False, frozen_stages=0).train()
    synced.load_state_dict(plain.state_dict())
    for a, b in zip(plain(images()), synced(images()), strict=True):
        torch.testing.assert_close(a, b)


def test_the_last_stage_taken_from_a_backbone_does_what_it_did():
    whole, parted = (resnet(depth=18, out_stages=(3, 4)) for _ in range(2))
    for model in (whole, parted):
        model.load_state_dict(random_weights(model))
    stage = parted.take_last_stage()
    assert parted.strides == (16,)
    assert parted.out_channels == (256,)
    assert stage.out_channels == 512
    assert set(parted.state_dict()) | set(stage.state_dict()) == set(whole.state_dict())
    with torch.no_grad():
        third, fourth = whole.eval()(images())
        (below,) = parted.eval()(images())
        torch.testing.assert_close(below, third)
        torch.testing.assert_close(stage.eval()(below), fourth)


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norms_of_a_taken_stage_keep_their_statistics_as_the_backbone_does(norm_eval):
    stage = resnet(depth=18, out_stages=(3, 4), norm_eval=norm_eval).take_last_stage().train()
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert {norm.training for norm in norms} == {not norm_eval}


@pytest.mark.parametrize("out_stages", [(4,), (3,)])
def test_the_only_output_is_not_taken(out_stages):
    with pytest.raises(UsageError, match=r"--set model\.backbone\.out_stages=\[3,4\]"):
        resnet(depth=18, out_stages=out_stages).take_last_stage()
