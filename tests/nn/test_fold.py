import pytest
import torch
from torch import nn

from detcli.nn.blocks import ConvNorm
from detcli.nn.fold import cast_weights, conv_norm, fold_norms, prepare_on_cpu
from detcli.nn.resnet import resnet
from detcli.registry import build
from detcli.structures import Batch


def shake_norms(model):
    """Give batch norms statistics and weights that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                tensor.data.uniform_(low, low + 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


@pytest.mark.parametrize("depth", [18, 50])
def test_a_folded_backbone_gives_the_same_features(depth):
    torch.manual_seed(0)
    model = shake_norms(resnet(depth=depth)).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = model(images)
        after = fold_norms(model)(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for expected, found in zip(before, after, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_convolutions_with_a_bias_are_folded():
    torch.manual_seed(0)
    block = shake_norms(ConvNorm(4, 8, 3, norm="bn", bias=True)).eval()
    nn.init.normal_(block.conv.bias)
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        before = block(x)
        torch.testing.assert_close(fold_norms(block)(x), before, rtol=1e-5, atol=1e-5)
    assert isinstance(block.bn, nn.Identity)


def test_norms_in_training_mode_and_group_norms_stay():
    training = ConvNorm(4, 8, 3, norm="bn").train()
    assert isinstance(fold_norms(training).bn, nn.BatchNorm2d)
    group = ConvNorm(4, 32, 3, norm="gn").eval()
    assert isinstance(fold_norms(group).gn, nn.GroupNorm)


def test_norms_in_eval_mode_have_the_same_gradients_in_training():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False).double(), nn.BatchNorm2d(4).double().eval()
    shake_norms(norm)
    x = torch.randn(2, 3, 9, 8, dtype=torch.double, requires_grad=True)
    outputs = [conv_norm(conv, norm, x), norm(conv(x))]
    torch.testing.assert_close(*outputs)
    inputs = [x, conv.weight, norm.weight, norm.bias]
    for gradients in zip(*(torch.autograd.grad(output.pow(3).sum(), inputs) for output in outputs), strict=True):
        torch.testing.assert_close(*gradients)


def test_a_convolution_of_another_kind_is_not_folded():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    conv, norm, x = Doubled(3, 4, 1), nn.BatchNorm2d(4).eval(), torch.randn(1, 3, 2, 2)
    expected = norm(conv(x))
    torch.testing.assert_close(conv_norm(conv, norm, x), expected)
    torch.testing.assert_close(fold_norms(nn.Sequential(conv, norm))(x), expected)


def test_weights_are_cast_as_autocast_would():
    model = cast_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), torch.bfloat16)
    assert model[0].weight.dtype == model[0].bias.dtype == torch.bfloat16
    assert model[1].weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_a_model_prepared_for_a_cpu_detects_the_same(name):
    torch.manual_seed(0)
    neck = {"name": "fpn", "out_channels": 32}
    model = build("models", {"name": name, "backbone": "r18", "neck": neck}, num_classes=3).eval()
    nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=0.5)
    batch = Batch(torch.randn(1, 3, 96, 128), torch.tensor([[96, 128]]))
    with torch.inference_mode():
        before = model(batch)[0]
        after = prepare_on_cpu(fold_norms(model))(batch)[0]
    assert isinstance(model.roi_head.bbox_head.shared_fcs[0], nn.Conv2d)
    assert len(before) > 0
    torch.testing.assert_close(after.boxes, before.boxes, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(after.scores, before.scores, rtol=1e-3, atol=1e-4)
