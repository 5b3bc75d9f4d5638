"""DETR's sets: padding, more objects than queries, what losses are divided by, old names."""

import pytest
import torch

from detcli.config import resolve
from detcli.convert import mmdet
from detcli.convert.rules import plugin_rules, rename
from detcli.registry import build
from detcli.structures import Batch
from detcli.testing import random_batch

SMALL = ["channels=32", "heads=2", "encoder_layers=2", "decoder_layers=2", "ffn_channels=32", "backbone.out_stages=[2]"]


def model(*settings):
    torch.manual_seed(0)
    settings = ["weights=none", *(f"model.{setting}" for setting in (*SMALL, "dropout=0", *settings))]
    config = resolve("detr", backbone="r18", settings=settings).config
    return build("models", config.model, num_classes=3)


def test_what_is_in_the_padding_changes_nothing():
    head, batch = model().bbox_head.eval(), random_batch()
    features = torch.randn(2, 128, 16, 20)
    other = features.clone()
    other[1, :, 13:] = 7.0  # rows from pixel 104 on, of 98
    with torch.no_grad():
        before, after = head.detect([features], batch), head.detect([other], batch)
        for ours, again in zip(before, after, strict=True):
            torch.testing.assert_close(again.boxes, ours.boxes)
            torch.testing.assert_close(again.scores, ours.scores)
        other[1, :, 12] = 7.0
        assert not torch.allclose(head.detect([other], batch)[1].scores, before[1].scores)


def test_each_layer_has_losses_and_the_last_has_no_prefix():
    losses = model("decoder_layers=3").train()(random_batch())
    kinds = ("loss_cls", "loss_bbox", "loss_iou")
    assert set(losses) == {f"{prefix}{kind}" for prefix in ("", "d0.", "d1.") for kind in kinds}


@pytest.mark.parametrize("queries", [2, 5])
def test_an_image_twice_in_a_batch_has_the_same_losses(queries):
    """Also with fewer queries than objects, of which there are three."""
    detector, batch = model(f"num_queries={queries}", "backbone.norm=gn").train(), random_batch()
    once = detector(Batch(batch.images[:1], batch.sizes[:1], batch.targets[:1]))
    twice = detector(Batch(batch.images[[0, 0]], batch.sizes[[0, 0]], [batch.targets[0]] * 2))
    for name, loss in once.items():
        assert loss > 0
        torch.testing.assert_close(twice[name], loss)


def test_a_query_without_an_object_counts_little():
    """The loss of classes is a mean with weights: of equal logits it is the logarithm of their number."""
    for weight in (0.1, 1.0):
        detector, batch = model(f"background_weight={weight}").train(), random_batch()
        torch.nn.init.zeros_(detector.bbox_head.fc_cls.weight)
        bias = torch.tensor([0.0, 0.0, 0.0, 2.0])
        detector.bbox_head.fc_cls.bias.data = bias
        objects, background = 3, 2 * 100 - 3
        losses = -bias.log_softmax(0)
        expected = objects * losses[0] + weight * background * losses[3]
        torch.testing.assert_close(detector(batch)["loss_cls"], expected / (objects + weight * background))


def test_names_of_before_mmdetection_2_10():
    names = {
        "encoder.layers.0.self_attn.attn.in_proj_weight": "encoder.layers.0.attentions.0.attn.in_proj_weight",
        "encoder.layers.5.ffn.layers.0.0.weight": "encoder.layers.5.ffns.0.layers.0.0.weight",
        "encoder.layers.5.norms.1.bias": "encoder.layers.5.norms.1.bias",
        "decoder.layers.3.self_attn.attn.out_proj.bias": "decoder.layers.3.attentions.0.attn.out_proj.bias",
        "decoder.layers.3.multihead_attn.attn.out_proj.bias": "decoder.layers.3.attentions.1.attn.out_proj.bias",
        "decoder.norm.weight": "decoder.post_norm.weight",
    }
    theirs = {f"bbox_head.transformer.{name}": torch.zeros(1) for name in names}
    renamed, _ = rename(theirs, (*plugin_rules("mmdet", "detr"), *mmdet.rules(theirs)), "latest.pth")
    assert list(renamed) == [f"bbox_head.transformer.{name}" for name in names.values()]
