import re

import pytest
import torch

from detcli.config import resolve
from detcli.errors import DetcliError, UsageError
from detcli.registry import build
from detcli.structures import Batch
from detcli.testing import random_batch

SLIM = ["model.backbone=r18", "model.neck.out_channels=16", "model.roi_head.bbox_head.channels=32"]


def make(*settings, recipe="mask_rcnn"):
    torch.manual_seed(0)
    return build("models", resolve(recipe, settings=[*SLIM, *settings]).config.model, num_classes=3)


def test_the_mask_head_is_as_wide_as_the_neck_unless_told():
    head = make().roi_head.mask_head
    assert [conv.conv.weight.shape[:2] for conv in head.convs] == [(16, 16)] * 4
    head = make("model.roi_head.mask_head.channels=24", "model.roi_head.mask_head.convs=2").roi_head.mask_head
    assert [conv.conv.weight.shape[:2] for conv in head.convs] == [(24, 16), (24, 24)]
    assert head.conv_logits.weight.shape[:2] == (3, 24)


def test_every_detection_has_a_mask_of_its_class():
    model = make("model.roi_head.score_threshold=0.0", "model.roi_head.max_per_image=7").eval()
    assert model.tasks == ("box", "mask")
    batch = Batch(torch.randn(2, 3, 96, 128), torch.tensor([[96, 128], [64, 128]]))
    with torch.no_grad():
        found = model(batch)
        assert [image.mask_crops.shape for image in found] == [(7, 28, 28)] * 2
        # Class 1 alone gets a mask: the rest is empty.
        model.roi_head.mask_head.conv_logits.weight.zero_()
        model.roi_head.mask_head.conv_logits.bias.copy_(torch.tensor([-9.0, 9.0, -9.0]))
        for image in model(batch):
            assert torch.equal(image.mask_crops.amin((1, 2)) > 0.5, image.labels == 1)
            assert torch.equal(image.mask_crops.amax((1, 2)) > 0.5, image.labels == 1)


def test_given_proposals_stand_in_place_of_an_rpn():
    model = make("model.roi_head.score_threshold=0.0", "model.roi_head.max_per_image=5", recipe="fast_mask_rcnn_legacy")
    assert not [name for name in model.state_dict() if name.startswith("rpn_head")]
    batch = random_batch()
    assert set(model(batch)) == {"loss_cls", "loss_bbox", "loss_mask"}
    with torch.no_grad():
        assert [len(image.mask_crops) for image in model.eval()(batch)] == [5, 5]
    batch.targets = None
    with pytest.raises(DetcliError, match="takes its proposals from a file"):
        model(batch)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.roi_head.mask_head=htc", "mask head 'htc' needs takes_previous, which it is not given here"),
        ("model.roi_head.bbox_head=conv_fc_cls", "`--set model.roi_head.bbox_head=conv_fc`"),
        ("model.shared_head=true", "`--set model.roi_head.bbox_head.fcs=0`"),
    ],
)
def test_heads_of_other_second_stages_are_refused(setting, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        make(setting)


def test_a_shared_head_gives_boxes_and_masks_the_same_features():
    slim = ["model.backbone.depth=18", "model.backbone.style=pytorch"]
    config = resolve("mask_rcnn_c4_detectron2", settings=[*slim, "model.roi_head.score_threshold=0.0"]).config.model
    torch.manual_seed(0)
    model = build("models", config, num_classes=3)
    calls = []
    model.roi_head.shared_head.register_forward_hook(lambda *args: calls.append(args[2]))
    batch = random_batch()
    losses = model(batch)
    assert len(calls) == 1  # in training, each RoI goes through it once
    assert calls[0].shape[1:] == (512, 7, 7)
    assert model.roi_head.mask_head.upsample.weight.shape[:2] == (512, 256)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    with torch.no_grad():
        found = model.eval()(batch)
    assert len(calls) == 3  # of proposals, then of detected boxes
    assert [image.mask_crops.shape[1:] for image in found] == [(14, 14)] * 2


def test_a_part_inside_a_preset_is_as_a_builder_gets_it():
    """What a preset leaves out is the part's own default, not that of the argument whose place it takes."""
    for model, own in (("faster_rcnn", False), ("mask_rcnn", True)):
        for settings in ([], ["model.roi_head.assigner.ignore_iof=0.5"], ["model.roi_head.score_threshold=0.1"]):
            assigner = resolve(model, settings=settings).config.model["roi_head"]["assigner"]
            assert assigner["match_low_quality"] is own
