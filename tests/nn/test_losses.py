"""Losses against what MMDetection 2.28 and Detectron2 return, gradients included."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from detcli.errors import UsageError
from detcli.nn import losses
from detcli.nn.losses import cross_entropy, focal, giou, iou, l1, of_elements, smooth_l1

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "data" / "losses.json.gz").read_bytes()))
BUILDERS = {
    "CrossEntropyLoss": lambda use_sigmoid=False: cross_entropy(sigmoid=use_sigmoid),
    "FocalLoss": lambda alpha, gamma, loss_weight=1.0: focal(alpha=alpha, gamma=gamma, weight=loss_weight),
    "L1Loss": l1,
    "SmoothL1Loss": smooth_l1,
    "IoULoss": lambda linear=False: iou(mode="linear" if linear else "log"),
    "GIoULoss": giou,
}


def tensor(record):
    return torch.tensor(record["data"], dtype=getattr(torch, record["dtype"])).reshape(record["shape"])


@pytest.mark.parametrize("record", GOLDEN["mmdetection"], ids=lambda record: record["params"]["type"])
def test_as_mmdetection(record):
    params = dict(record["params"])
    avg_factor = params.pop("avg_factor")
    loss = BUILDERS[params.pop("type")](**params)
    x = {name: tensor(value) for name, value in record["inputs"].items()}
    pred = x["pred"].requires_grad_()
    value = loss(pred, x["target"], x["w"], avg_factor)
    value.backward()
    assert value.shape == ()
    torch.testing.assert_close(value.detach(), tensor(record["output"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(pred.grad, tensor(record["grad_of_sum"]["pred"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("beta", ["0", "0.111111", "0.5", "1"])
def test_smooth_l1_as_detectron2(beta):
    table = GOLDEN["detectron2"]["smooth_l1"]
    loss = smooth_l1(beta=1 / 9 if beta == "0.111111" else float(beta))
    for x, expected in zip(table["x"], table[f"beta_{beta}"], strict=True):
        assert loss(torch.tensor([x]), torch.zeros(1)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("target", [0, 1])
def test_focal_as_detectron2(target):
    table = GOLDEN["detectron2"]["sigmoid_focal"]
    for x, expected in zip(table["x"], table[f"target{target}"], strict=True):
        value = focal()(torch.tensor([[x]]), torch.tensor([1 - target]))  # one class: label 1 is background
        assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5), (0.5, 0.0)])
def test_focal_over_several_blocks_as_torchvision(monkeypatch, alpha, gamma):
    monkeypatch.setattr(losses, "FOCAL_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(11, 3, generator=generator) * 4).requires_grad_()
    labels, weight = torch.tensor([0, 3, 1, -1, 2, 3, 3, 0, 3, 1, 2]), torch.rand(11, generator=generator)
    one_hot = (labels[:, None] == torch.arange(3)).float()
    expected = 2 * (sigmoid_focal_loss(logits, one_hot, alpha, gamma) * weight[:, None]).sum() / 5
    value = focal(alpha=alpha, gamma=gamma, weight=2.0)(logits, labels, weight, 5.0)
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (value, expected)]
    torch.testing.assert_close(*gradients)


def test_focal_is_finite_at_large_logits():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    value = focal()(logits, torch.tensor([1]), avg_factor=1.0)
    value.backward()
    assert value.item() == pytest.approx(0.75 * 200 + 0.25 * 200)
    assert logits.grad.isfinite().all()


def test_sigmoid_takes_soft_targets():
    logits, target = torch.tensor([0.3, -2.0]), torch.tensor([0.2, 0.9])
    p = logits.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(cross_entropy(sigmoid=True)(logits, target), expected)


def test_weights_of_rows_and_divisor():
    pred, target = torch.ones(3, 4), torch.zeros(3, 4)
    weight = torch.tensor([1.0, 0.0, 2.0])
    assert l1(weight=0.5)(pred, target, weight).item() == pytest.approx(0.5 * 12 / 12)
    assert l1(weight=0.5)(pred, target, weight, torch.tensor(4.0)).item() == pytest.approx(0.5 * 12 / 4)
    assert l1()(pred, target, weight[:, None], 4.0).item() == pytest.approx(12 / 4)


def test_no_rows_cost_nothing():
    pred = torch.zeros(0, 4, requires_grad=True)
    value = giou()(pred, torch.zeros(0, 4), torch.zeros(0), 1.0)
    value.backward()
    assert value.item() == 0


def test_half_precision_is_widened():
    value = iou()(torch.tensor([[0.0, 0, 10, 10]]).bfloat16(), torch.tensor([[0.0, 0, 10, 5]]))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.693147, rel=1e-5)


@pytest.mark.parametrize("loss", [focal(weight=0.7), cross_entropy(sigmoid=True), l1(weight=2.0), giou(weight=1.3)])
def test_losses_of_rows_add_up_to_the_loss(loss):
    random = torch.Generator().manual_seed(0)
    pred = torch.rand(6, 4, generator=random, requires_grad=True)
    target = torch.rand(6, 4, generator=random) if loss.total is None else torch.arange(6)
    weight = torch.rand(6, generator=random)
    rows = loss.rows(pred, target)
    assert rows.shape == (6,)
    assert not rows.requires_grad
    torch.testing.assert_close((rows * weight).sum(), loss(pred, target, weight, 1.0).detach(), rtol=1e-5, atol=0)


def test_a_loss_with_statistics_is_none_of_elements():
    assert of_elements(loss := l1(), "the loss") is loss
    with pytest.raises(UsageError, match=r"^the loss must be a loss of single elements"):
        of_elements(torch.nn.L1Loss(), "the loss")
