from functools import cache

import pytest
import torch

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
from detcli.convert.torchvision import CLASSES, background_last, convert, drop_background, source
from detcli.errors import DetcliError, UsageError


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


def test_the_background_goes_or_comes_last():
    rows = torch.arange(2 * 3 * 4).view(6, 4)  # two anchors of three classes
    assert drop_background(1, anchors=2)(rows).tolist() == rows[[1, 2, 4, 5]].tolist()
    assert drop_background(4)(torch.arange(12)).tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert background_last(torch.tensor([0, 1, 2])).tolist() == [1, 2, 0]
    assert CLASSES == 91


def test_an_unknown_model_is_named():
    with pytest.raises(UsageError, match="did you mean 'retinanet_resnet50_fpn'"):
        source("retinanet_resnet50")
