import pytest
import torch

from detcli.config import resolve
from detcli.errors import DetcliError
from detcli.nn.boxes import pairwise_iou
from detcli.registry import build
from detcli.structures import Batch, Target

SLIM = ["model.backbone=r18", "model.neck.out_channels=16", "model.roi_head.bbox_head.channels=32"]
PROPOSALS = torch.tensor([[10.0, 10.0, 70.0, 80.0], [60.0, 30.0, 120.0, 90.0], [5.0, 50.0, 40.0, 90.0]])


def make():
    torch.manual_seed(0)
    settings = [*SLIM, "model.roi_head.score_threshold=0.0"]
    return build("models", resolve("fast_rcnn", settings=settings).config.model, num_classes=3)


def make_batch(proposals):
    target = Target(PROPOSALS[:2], torch.tensor([0, 2]), proposals=proposals)
    return Batch(torch.randn(1, 3, 96, 128), torch.tensor([[96, 128]]), [target])


def test_detections_are_the_given_proposals_refined():
    with torch.no_grad():
        found = make().eval()(make_batch(PROPOSALS))[0]
    # The last layer starts near 0: every class of every proposal is a detection, hardly moved.
    assert len(found) == 9
    best = pairwise_iou(found.boxes, PROPOSALS).max(1)
    assert best.values.min() > 0.9
    assert best.indices.bincount().tolist() == [3, 3, 3]


def test_losses_are_those_of_the_second_stage():
    assert set(make()(make_batch(PROPOSALS))) == {"loss_cls", "loss_bbox"}


@pytest.mark.parametrize("train", [True, False])
def test_without_proposals_the_error_says_where_they_come_from(train):
    with pytest.raises(DetcliError, match=r"--proposals FILE.*--set data\.proposals="):
        make().train(train)(make_batch(None))
    with pytest.raises(DetcliError, match="proposals"):
        make().eval()(Batch(torch.randn(1, 3, 96, 128), torch.tensor([[96, 128]])))
