"""The semantic head: shapes, which levels it reads, its loss, and logits in pixels of a picture."""

import pytest
import torch
from torch.nn import functional

from detcli.nn.semantic_head import SemanticHead, resize_logits
from detcli.structures import UNLABELLED


@pytest.fixture
def head():
    torch.manual_seed(0)
    return SemanticHead(8, (4, 8, 16), 5, channels=32, norm="gn", loss_weight=0.5)


def make_features(side=64):
    torch.manual_seed(1)
    return [torch.randn(2, 8, side // stride, side // stride) for stride in (4, 8, 16, 32)]


def test_every_level_is_brought_to_the_lowest(head):
    features = make_features()
    logits = head(features)
    assert logits.shape == (2, 5, 16, 16)
    assert [len(layer.conv) for layer in head.conv_upsample_layers] == [1, 1, 2]
    for level in range(3):
        changed = [feature + (number == level) for number, feature in enumerate(features)]
        assert not torch.allclose(head(changed), logits)
    assert torch.equal(head([*features[:3], features[3] + 1]), logits)


def test_the_loss_is_the_weighted_mean_over_labelled_pixels(head):
    features = make_features()
    labels = torch.randint(0, 5, (2, 64, 64), dtype=torch.uint8)
    labels[1, 20:] = UNLABELLED
    loss = head.losses(features, labels)["loss_sem_seg"]
    logits = functional.interpolate(head(features), scale_factor=4.0, mode="bilinear", align_corners=False)
    per_pixel = functional.cross_entropy(logits, labels.long().clamp(max=4), reduction="none")
    torch.testing.assert_close(loss, 0.5 * per_pixel[labels != UNLABELLED].mean())


def test_without_a_labelled_pixel_the_loss_is_0_and_has_a_gradient(head):
    loss = head.losses(make_features(), torch.full((2, 64, 64), UNLABELLED))["loss_sem_seg"]
    assert loss == 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_logits_are_cropped_to_the_picture_before_they_are_resized():
    logits = torch.zeros(2, 4, 4)
    logits[1, :, 2:] = 1  # right of pixel 8 of 16
    found = resize_logits(logits, 4, (16, 12), (32, 24))
    assert found.shape == (2, 32, 24)
    assert (found[1, :, :12] < 0.5).all()
    assert (found[1, :, 20:] > 0.5).all()
    assert torch.equal(resize_logits(logits, 4, (16, 12), (16, 12))[0], torch.zeros(16, 12))
