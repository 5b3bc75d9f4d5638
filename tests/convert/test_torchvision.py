from functools import cache
from pathlib import Path

import pytest
import torch
from torchvision import models

from benchmarks.torchvision_models import (
    NAMES,
    matched,
    our_detection,
    ours,
    picture,
    random_weights,
    their_detection,
    theirs,
)
from detcli.convert import torchvision
from detcli.convert.rules import rename
from detcli.convert.torchvision import CLASSES, convert, source
from detcli.errors import DetcliError, UsageError
from detcli.nn.weights import load_weights
from detcli.registry import build


@cache
def weights(name):
    return random_weights(name)


# The sides of the topmost map do not divide these:
SIZE = (128, 224)


@pytest.mark.parametrize("name", NAMES)
def test_detections_are_those_of_torchvision(name):
    state, image = weights(name), picture(*SIZE, seed=1)
    model, detector = theirs(name, state, SIZE), ours(name, state)
    expected, found = [], []
    if name.startswith("mask"):
        # Before they are pasted, which torchvision does in another way.
        model.roi_heads.register_forward_hook(lambda *args: expected.append(args[2][0][0]["masks"][:, 0]))
        detector.roi_head.mask_head.register_forward_hook(lambda *args: found.append(args[2].sigmoid()))
    reference = their_detection(model, image)()
    detections = our_detection(detector, image, "fp32")()
    assert len(detections) == len(reference["boxes"]) > 3
    assert matched(detections, reference) >= 0.95
    assert len(found) == len(expected) == name.startswith("mask")
    for ours_, theirs_ in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=0, atol=1e-3)


def test_a_missing_key_is_named():
    name = "fasterrcnn_resnet50_fpn"
    state = dict(weights(name))
    del state["backbone.body.layer2.0.conv1.weight"]
    with pytest.raises(DetcliError, match=r"layer2\.0\.conv1\.weight is missing"):
        ours(name, state)


def test_a_key_without_a_rule_and_a_rule_without_a_key_are_errors():
    state = weights("fasterrcnn_resnet50_fpn")
    with pytest.raises(DetcliError, match=r"head\.other has no place in it"):
        convert("fasterrcnn_resnet50_fpn", state | {"roi_heads.box_head.other": torch.zeros(1)})
    with pytest.raises(DetcliError, match=r"nothing is there for roi_head\.mask_head"):
        convert("maskrcnn_resnet50_fpn", state)


def test_names_from_before_torchvision_0_13_are_known():
    state = weights("maskrcnn_resnet50_fpn")
    expected = convert("maskrcnn_resnet50_fpn", state)
    old = {}
    for key, value in state.items():
        for new, former in (
            ("rpn.head.conv.0.0", "rpn.head.conv"),
            *((f"_blocks.{level}.0", f"_blocks.{level}") for level in range(4)),
            *((f"mask_head.{layer}.0", f"mask_head.mask_fcn{layer + 1}") for layer in range(4)),
        ):
            key = key.replace(f"{new}.", f"{former}.")
        old[key] = value
    assert set(old) != set(state)
    converted = convert("maskrcnn_resnet50_fpn", old)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


def test_detectors_and_backbones_are_recognised_and_classifiers_left_out():
    detector = weights("fcos_resnet50_fpn")
    assert torchvision.recognises(detector, Path("a.pth"))
    assert torchvision.recognises({"model": detector, "optimizer": {}, "epoch": 3}, Path("a.pth"))
    assert not torchvision.is_backbone(detector)
    unwrapped = torchvision.unwrap({"model": detector, "optimizer": {}, "epoch": 3})
    assert unwrapped.tensors == detector
    assert [entry.theirs for entry in unwrapped.dropped] == ["optimizer", "epoch"]

    resnet = models.resnext50_32x4d(weights=None).state_dict()
    assert torchvision.recognises(resnet, Path("a.pth"))
    assert torchvision.is_backbone(resnet)
    tensors, report = rename(resnet, torchvision.rules(resnet), "it")
    backbone = build("backbones", {"name": "resnet", "depth": 50, "groups": 32, "width_per_group": 4})
    load_weights(backbone, tensors, "it")
    assert [entry.theirs for entry in report.dropped] == ["fc.weight", "fc.bias"]
    assert not report.renamed
    assert not torchvision.recognises({"state_dict": resnet}, Path("a.pth"))


def test_labels_are_the_published_ones():
    assert len(torchvision.CLASS_MAP) == CLASSES - 1
    assert torchvision.CLASS_MAP.ids == tuple(range(1, 91))
    assert torchvision.CLASS_MAP.names[10:13] == ("fire hydrant", "unused 12", "stop sign")


def test_an_unknown_model_is_named():
    with pytest.raises(UsageError, match="did you mean 'retinanet_resnet50_fpn'"):
        source("retinanet_resnet50")
