"""What a training step asks of a GPU, on tensors that are on one but hold no values."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from detcli.config import resolve
from detcli.registry import build
from detcli.structures import Batch, Target


def batch(device, images=2, objects=5, size=(96, 128)):
    """Return a batch of `images` with boxes, labels and masks of no particular values."""
    targets = [
        Target(
            torch.zeros(objects, 4, device=device),
            torch.zeros(objects, dtype=torch.long, device=device),
            torch.zeros(objects, *size, dtype=torch.uint8, device=device),
        )
        for _ in range(images)
    ]
    return Batch(torch.zeros(images, 3, *size, device=device), torch.tensor([size] * images, device=device), targets)


def test_a_wait_is_seen():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.zeros(1, device="cuda").item()


@pytest.mark.parametrize("name", ["rpn", "retinanet", "retinanet_detectron2", "fcos", "atss", "yolact"])
def test_the_losses_wait_for_nothing(name):
    """No number is read from the device, no shape depends on one, and no tensor is on another device."""
    config = resolve(name, backbone="r18").config.model
    with FakeTensorMode():
        with torch.device("cuda"):
            model = build("models", config, num_classes=80).train()
        losses = model(batch("cuda"))
        assert all(loss.device.type == "cuda" and loss.shape == () for loss in losses.values())
        assert losses
