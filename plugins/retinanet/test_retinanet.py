"""The moving average that Detectron2 divides RetinaNet's losses by."""

import torch

from detcli.config import resolve
from detcli.registry import build
from detcli.testing import random_batch


def test_normalizer_moves_from_100_towards_the_number_of_positives():
    torch.manual_seed(0)
    settings = ["model.neck.out_channels=32", "weights=none"]
    moving, plain = (
        build("models", resolve(recipe, backbone="r18", settings=settings).config.model, num_classes=3)
        for recipe in ("retinanet_detectron2", "retinanet")
    )
    head, batch = moving.bbox_head, random_batch()
    features = moving.neck(moving.backbone(batch.images))
    first, second = (head.losses(features, batch)["loss_cls"] for _ in range(2))
    # n_1 = 0.9 * 100 + 0.1 p and n_2 = 0.9 n_1 + 0.1 p, of the same p
    n_1, n_2 = head.normalizer / (first / second), head.normalizer
    p = 10 * n_1 - 900
    torch.testing.assert_close(0.9 * n_1 + 0.1 * p, n_2, rtol=1e-3, atol=0.01)
    assert p > 1
    assert "normalizer" not in "".join(moving.state_dict())
    assert plain.bbox_head.normalizer_momentum is None
