import torch

from detcli.config import resolve
from detcli.registry import build
from detcli.structures import Batch

SLIM = ["model.backbone=r18", "model.neck.out_channels=16"]


def make(*settings):
    torch.manual_seed(0)
    return build("models", resolve("rpn", settings=[*SLIM, *settings]).config.model, num_classes=5)


def test_the_head_is_as_wide_as_the_neck_unless_told():
    assert make().rpn_head.rpn_conv.weight.shape[:2] == (16, 16)
    assert make("model.rpn_head.channels=24").rpn_head.rpn_conv.weight.shape[:2] == (24, 16)


def test_detections_are_proposals_of_no_class():
    model = make("model.rpn_head.test_proposals=50").eval()
    assert model.tasks == ("proposal",)
    with torch.no_grad():
        found = model(Batch(torch.randn(2, 3, 96, 128), torch.tensor([[96, 128], [64, 128]])))
    assert [len(image) for image in found] == [50, 50]
    assert all((image.labels == 0).all() for image in found)
    assert found[1].boxes[:, 3].max() <= 64
