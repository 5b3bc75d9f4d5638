import pytest
import torch

from detcli.config import resolve
from detcli.registry import build
from detcli.structures import Batch, Target

SLIM = ["model.backbone.depth=18", "model.backbone.style=pytorch", "model.roi_head.bbox_head.channels=32"]


def make(recipe, *settings):
    torch.manual_seed(0)
    return build("models", resolve(recipe, settings=[*SLIM, *settings]).config.model, num_classes=3)


def make_batch():
    boxes = torch.tensor([[10.0, 10.0, 70.0, 80.0], [60.0, 30.0, 120.0, 90.0]])
    return Batch(torch.randn(1, 3, 96, 128), torch.tensor([[96, 128]]), [Target(boxes, torch.tensor([0, 2]))])


def test_without_a_neck_both_stages_see_one_map():
    model = make("faster_rcnn_dc5")
    assert model.neck is None
    assert model.rpn_head.anchors.strides == model.roi_head.bbox_roi_extractor.strides == (16,)
    assert model.rpn_head.anchors.num_base_anchors == 15
    assert set(model(make_batch())) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}
    with torch.no_grad():
        assert len(model.eval()(make_batch())) == 1


@pytest.mark.parametrize("recipe", ["faster_rcnn_iou", "faster_rcnn_giou", "faster_rcnn_bounded_iou"])
def test_overlap_losses_take_boxes_in_pixels(recipe):
    model = make(recipe, "model.neck.out_channels=16")
    with torch.no_grad():
        model.roi_head.bbox_head.fc_reg.weight.zero_()  # boxes stay their RoIs
        model.rpn_head.rpn_cls.weight.zero_()
    features = model.neck(model.backbone(make_batch().images))
    batch = make_batch()
    exact = model.roi_head.losses(features, [batch.targets[0].boxes], batch)
    assert float(exact["loss_bbox"]) == pytest.approx(0, abs=1e-4)
    beside = model.roi_head.losses(features, [batch.targets[0].boxes + 5], batch)
    assert float(beside["loss_bbox"]) > 0.1


def test_proposals_of_training_and_test_have_their_own_limits():
    model = make(
        "faster_rcnn",
        "model.neck.out_channels=16",
        "model.rpn_head.train_proposals=30",
        "model.rpn_head.test_proposals=20",
    )
    features = model.neck(model.backbone(make_batch().images))
    for mode, limit in ((True, 30), (False, 20)):
        proposals = model.train(mode).rpn_head.propose(model.rpn_head(features), torch.tensor([[96, 128]]))
        assert len(proposals[0]) == limit
