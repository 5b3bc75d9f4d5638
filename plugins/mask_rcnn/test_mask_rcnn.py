import torch

from detcli.config import resolve
from detcli.registry import build
from detcli.structures import Batch

SLIM = ["model.backbone=r18", "model.neck.out_channels=16", "model.fc_channels=32"]


def make(*settings):
    torch.manual_seed(0)
    return build("models", resolve("mask_rcnn", settings=[*SLIM, *settings]).config.model, num_classes=3)


def test_the_mask_head_is_as_wide_as_the_neck_unless_told():
    head = make().roi_head.mask_head
    assert [conv.conv.weight.shape[:2] for conv in head.convs] == [(16, 16)] * 4
    head = make("model.feat_channels=24", "model.mask_convs=2").roi_head.mask_head
    assert [conv.conv.weight.shape[:2] for conv in head.convs] == [(24, 16), (24, 24)]
    assert head.conv_logits.weight.shape[:2] == (3, 24)


def test_every_detection_has_a_mask_of_its_class():
    model = make("model.score_threshold=0.0", "model.max_per_image=7").eval()
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
