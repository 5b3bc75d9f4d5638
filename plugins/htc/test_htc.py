import pytest
import torch
from detcli.plugins.htc.model import FusedSemanticHead
from torch import nn
from torch.nn import functional

from detcli.errors import DetcliError, UsageError
from detcli.registry import build
from detcli.structures import UNLABELLED
from detcli.testing import random_batch


@pytest.fixture(scope="module")
def model():
    """Return a small model."""
    torch.manual_seed(0)
    return make()


def make(**changes):
    """Return a small model with other arguments of its second stage."""
    roi_head = {"name": "htc", "bbox_head": {"name": "conv_fc", "channels": 16}, "num_semantic_classes": 6, **changes}
    config = {
        "name": "htc",
        "backbone": "r18",
        "neck": {"name": "fpn", "out_channels": 16},
        "rpn_head": {"name": "rpn", "train_proposals": 20},
        "roi_head": roi_head,
    }
    return build("models", config, num_classes=3)


def test_every_eighth_pixel_has_a_loss_and_unlabelled_ones_count():
    torch.manual_seed(0)
    head = FusedSemanticHead(16, 3, 6, level=1, stride=8, num_convs=1, loss_weight=0.5)
    logits = torch.randn(2, 6, 4, 5)
    coarse = torch.randint(0, 6, (2, 4, 5))
    coarse[0, :2] = UNLABELLED
    labels = torch.randint(0, 6, (2, 32, 40), dtype=torch.uint8)
    labels[:, ::8, ::8] = coarse.to(torch.uint8)
    total = functional.cross_entropy(logits, coarse, ignore_index=UNLABELLED, reduction="sum")
    torch.testing.assert_close(head.losses(logits, labels)["loss_semantic_seg"], total / coarse.numel() * 0.5)
    labels[:] = UNLABELLED
    assert head.losses(logits, labels)["loss_semantic_seg"] == 0


def test_levels_are_brought_to_one():
    head = FusedSemanticHead(2, 2, 3, level=1, stride=8, num_convs=0, loss_weight=1.0)
    for conv in head.lateral_convs:
        nn.init.dirac_(conv.conv.weight)
    ramp = torch.arange(5.0).expand(1, 2, 5, 5)
    hidden = []
    head.conv_logits.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    head([ramp, torch.ones(1, 2, 3, 3)])
    torch.testing.assert_close(hidden[0][0, 0, 0], torch.tensor([0.0, 2.0, 4.0]) + 1)  # corners stay corners


def test_features_of_pixels_are_added_to_those_of_rois(model):
    head, boxes = model.roi_head, [torch.tensor([[4.0, 4.0, 20.0, 20.0]])]
    maps = [torch.full((1, 2, 64 // stride, 64 // stride), value) for stride, value in ((4, 0.0), (8, 1.0), (8, 0.25))]
    found = head.pool(head.bbox_roi_extractor[0], maps, boxes)
    torch.testing.assert_close(found, torch.full((1, 2, 7, 7), 0.25))
    without = make(semantic=False).roi_head
    assert not without.pool(without.bbox_roi_extractor[0], maps, boxes).any()


def test_stages_have_an_extractor_each_where_it_learns():
    torch.manual_seed(0)
    masks = {"name": "deform_roi_pool", "output_size": 14, "fc_channels": 8}
    model = make(mask_roi_extractor=masks).eval()
    assert {name.split(".")[1] for name in model.roi_head.state_dict() if "mask_roi_extractor" in name} == set("012")
    batch, used = random_batch(), []
    for number, extractor in enumerate(model.roi_head.mask_roi_extractor):
        extractor.register_forward_hook(lambda *_, number=number: used.append(number))
    with torch.no_grad():
        model(batch)
    assert used == [2]
    model.train()(batch)
    assert used == [2, 0, 1, 2]


def test_masks_see_what_the_masks_before_saw(model):
    head, rois, labels = model.roi_head, torch.randn(4, 16, 14, 14), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        first, second, third = head.mask_logits(rois, labels, range(3))
        (alone,) = head.mask_logits(rois, labels, range(2, 3))
        hidden = head.mask_head[0].hidden(rois, None)
        hidden = head.mask_head[1].hidden(rois + 0, hidden)
        expected = head.mask_head[2].logits(head.mask_head[2].hidden(rois, hidden), labels)
        torch.testing.assert_close(first, head.mask_head[0](rois, labels))
        torch.testing.assert_close(third, expected)
        torch.testing.assert_close(third, alone)
        assert not torch.allclose(second, head.mask_head[1](rois, labels))
    assert head.mask_head[0].conv_res is None


def test_masks_are_trained_on_boxes_that_their_stage_has_refined(model):
    model.train()
    seen = []

    def note(number, features, samples, batch):
        seen.append((number, samples))
        return {}

    batch = random_batch()
    head = model.roi_head
    sampled, original = [], head.sample
    head.sample = lambda *args: sampled.append(original(*args)) or sampled[-1]
    head.mask_losses = note
    try:
        model(batch)
    finally:
        del head.sample, head.mask_losses
    assert [number for number, _ in seen] == [0, 1, 2]
    # Boxes and masks of each stage in turn; the former's objects are among the latter's RoIs again.
    assert [samples for _, samples in seen] == sampled[1::2]
    assert not torch.equal(sampled[0][0].boxes[:10], sampled[1][0].boxes[:10])


def test_labels_of_pixels_are_asked_for_only_where_they_are_learned(model):
    batch = random_batch()
    for target in batch.targets:
        target.semantic = None
    assert model.needs == {"masks", "semantic"}
    with pytest.raises(DetcliError, match=r"classes of pixels, and the data have none\..*roi_head\.semantic=false"):
        model.train()(batch)
    without = make(semantic=False)
    assert without.needs == {"masks"}
    losses = without.train()(batch)
    assert "loss_semantic_seg" not in losses
    assert "s2.loss_mask" in losses


def test_a_level_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="no level 5"):
        make(semantic_level=5)
