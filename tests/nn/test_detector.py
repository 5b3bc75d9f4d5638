import pytest
import torch
from torch import nn

from detcli.config import resolve
from detcli.errors import DetcliError, UsageError
from detcli.nn.detector import SingleStageDetector, TwoStageDetector, trunk
from detcli.nn.resnet import resnet
from detcli.nn.weights import load_backbone_file
from detcli.registry import build
from detcli.structures import Batch, Detections, Target


class Body(nn.Module):
    def forward(self, images):
        return (images[:, :1],)


class Neck(nn.Module):
    def forward(self, features):
        return tuple(feature * 2 for feature in features)


class Head(nn.Module):
    def losses(self, features, batch):
        return {"loss_cls": features[0].sum(), "accuracy": torch.tensor(1.0)}

    def detect(self, features, batch):
        return [Detections(torch.zeros(1, 4), value.mean()[None], torch.zeros(1).long()) for value in features[0]]


class ProposalHead(nn.Module):
    def forward(self, features):
        return features[0].mean((1, 2, 3))

    def losses(self, outputs, batch):
        return {"loss_rpn_cls": outputs.sum()}

    def propose(self, outputs, sizes):
        boxes = torch.cat([torch.zeros_like(sizes), sizes], dim=1).float()
        return [Detections(box[None], torch.ones(1), torch.zeros(1).long()) for box in boxes]


class RegionHead(nn.Module):
    tasks = ("box", "mask")

    def losses(self, features, proposals, batch):
        return {"loss_bbox": torch.cat(proposals).sum()}

    def detect(self, features, proposals, batch):
        return [Detections(boxes, torch.ones(len(boxes)), torch.zeros(len(boxes))) for boxes in proposals]


def batch(proposals=None):
    targets = [Target(torch.zeros(0, 4), torch.zeros(0).long(), proposals=proposals) for _ in range(2)]
    return Batch(torch.ones(2, 3, 4, 4), torch.tensor([[4, 3], [2, 4]]), targets)


def test_mode_decides_what_comes_out():
    model = SingleStageDetector(Body(), Neck(), Head())
    assert model.tasks == ("box",)
    assert model.train()(batch())["loss_cls"].item() == 2 * 2 * 16
    assert [detections.scores.item() for detections in model.eval()(batch())] == [2, 2]
    assert SingleStageDetector(Body(), None, Head()).eval()(batch())[0].scores.item() == 1


def test_second_stage_gets_the_proposals_of_the_first():
    model = TwoStageDetector(Body(), None, ProposalHead(), RegionHead())
    assert model.tasks == ("box", "mask")
    losses = model.train()(batch())
    assert {name: value.item() for name, value in losses.items()} == {
        "loss_rpn_cls": 2,
        "loss_bbox": 4 + 3 + 2 + 4,
    }
    assert [detections.boxes.tolist() for detections in model.eval()(batch())] == [
        [[0, 0, 4, 3]],
        [[0, 0, 2, 4]],
    ]


def test_proposals_that_came_with_the_batch():
    model = TwoStageDetector(Body(), None, None, RegionHead())
    boxes = torch.tensor([[1.0, 2, 3, 4]])
    assert list(model.train()(batch(boxes))) == ["loss_bbox"]
    assert model.eval()(batch(boxes))[1].boxes.tolist() == boxes.tolist()
    with pytest.raises(DetcliError, match=r"proposals from a file.*--proposals FILE"):
        model(batch())


def test_without_a_neck_the_heads_need_one_map():
    assert trunk({"name": "r18", "out_stages": (3,)}, None).strides == (16,)
    with pytest.raises(UsageError, match=r"the backbone has 4: `--set model\.backbone\.out_stages=\[4\]`"):
        trunk("r18", None)
    with pytest.raises(UsageError, match=r"the backbone has 3: `--set model\.backbone\.out_stages=\[3, 4\]`"):
        trunk("r18", None, shared_head=True)


def test_a_shared_head_is_the_stage_after_the_map():
    body = trunk({"name": "r18", "out_stages": (3, 4)}, None, shared_head=True)
    assert (body.channels, body.strides, body.roi_channels) == (256, (16,), 512)
    assert body.shared_head(torch.zeros(2, 256, 14, 14)).shape == (2, 512, 7, 7)
    assert trunk("r18", "fpn").roi_channels == 256


def test_weights_of_a_backbone_reach_its_stage_in_the_heads(tmp_path):
    trained = resnet(depth=18)
    torch.save(trained.state_dict(), tmp_path / "r18.pth")
    slim = ["model.backbone.depth=18", "model.backbone.style=pytorch"]
    model = build("models", resolve("faster_rcnn_c4_detectron2", settings=slim).config.model, num_classes=3)
    load_backbone_file(model.whole_backbone(), tmp_path / "r18.pth")
    own = model.state_dict()
    for name, value in trained.state_dict().items():
        part = "roi_head.shared_head" if name.startswith("layer4.") else "backbone"
        assert torch.equal(own[f"{part}.{name}"], value)
