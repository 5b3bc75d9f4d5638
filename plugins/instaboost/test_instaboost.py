"""Moved objects: masks and boxes say where their pixels are."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from detcli.config import resolve
from detcli.errors import DetcliError
from detcli.registry import build

RED, BLUE, GREY = (200, 20, 20), (20, 20, 200), (120, 120, 120)


def scene(*rectangles):
    """Return a record of a grey picture with a rectangle (color, left, top, right, bottom) for each object."""
    pixels = np.full((90, 120, 3), GREY, np.uint8)
    masks = np.zeros((len(rectangles), 90, 120), np.uint8)
    for mask, (color, left, top, right, bottom) in zip(masks, rectangles, strict=True):
        pixels[top:bottom, left:right] = color
        mask[top:bottom, left:right] = 1
    boxes = torch.tensor([rectangle[1:] for rectangle in rectangles], dtype=torch.float32).view(-1, 4)
    return {
        "image": tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(90, 120)),
        "ignored": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(90, 120)),
        "labels": torch.arange(len(rectangles)),
        "masks": tv_tensors.Mask(torch.from_numpy(masks)),
    }


def boost(record, seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"probability": 1.0, "color_probability": 0.0, **settings}
    return build("transforms", {"name": "instaboost", **settings})(record)


def near(image, color):
    """Return where pixels are nearer to a color than to the grey around, [H,W]."""
    pixels = image.as_subclass(torch.Tensor).permute(1, 2, 0).float()
    distance = [(pixels - torch.tensor(other, dtype=torch.float32)).norm(dim=-1) for other in (color, GREY)]
    return distance[0] < distance[1]


def overlap(one, other):
    return float((one & other).sum() / (one | other).sum())


TWO = ((RED, 20, 20, 50, 60), (BLUE, 75, 30, 100, 70))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("settings", [{}, {"actions": (0.0, 1.0, 0.0)}, {"degrees": 20.0, "shift": 0.1}])
def test_masks_and_boxes_say_where_the_pixels_are(seed, settings):
    record = boost(scene(*TWO), seed, **settings)
    for color, mask, box in zip((RED, BLUE), record["masks"].bool(), record["boxes"], strict=True):
        assert overlap(near(record["image"], color), mask) > 0.9
        rows, columns = mask.nonzero(as_tuple=True)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_objects_move_and_what_was_behind_them_is_filled_in():
    before = scene(*TWO)
    after = boost(before, scale=(0.8, 0.8))
    assert float(after["masks"][0].sum() / before["masks"][0].sum()) == pytest.approx(0.64, abs=0.05)
    uncovered = before["masks"].amax(0).bool() & ~near(after["image"], RED) & ~near(after["image"], BLUE)
    assert uncovered.sum() > 300
    colors = after["image"].as_subclass(torch.Tensor)[:, uncovered].float()
    assert (colors - torch.tensor(GREY, dtype=torch.float32)[:, None]).abs().mean() < 15


def test_the_seed_decides():
    one, same, other = (boost(scene(*TWO), seed, color_probability=0.5) for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["image"], other["image"])


def test_it_happens_with_a_probability():
    record = scene(*TWO)
    changed = [boost(record, seed, probability=0.5) is not record for seed in range(40)]
    assert 10 < sum(changed) < 30
    assert boost(record, actions=(0.0, 0.0, 1.0)) is record
    empty = scene()
    assert boost(empty) is empty


def test_objects_that_touch_move_together():
    record = boost(scene((RED, 20, 20, 50, 60), (BLUE, 50, 30, 80, 60)), seed=1, scale=(1.0, 1.0), degrees=0.0)
    first, second = record["boxes"].as_subclass(torch.Tensor)
    assert first.tolist() != [20, 20, 50, 60]
    assert second[0] == first[2]
    assert (second[1] - first[1], second[3] - first[3]) == (10, 0)


def test_objects_stay_whole_enough():
    # So large a shift would leave the picture, or hide the small object.
    near_edge = scene((RED, 0, 20, 30, 60))
    for seed in range(10):
        record = boost(near_edge, seed, shift=1.0)
        assert record["masks"].sum() >= near_edge["masks"].sum() / 2
    beside = scene((RED, 20, 20, 70, 70), (BLUE, 74, 40, 80, 46))
    for seed in range(10):
        record = boost(beside, seed, shift=0.3)
        assert (record["masks"].sum((1, 2)) >= beside["masks"].sum((1, 2)) / 2).all()
        assert not (record["masks"][0] & record["masks"][1]).any()


def test_models_that_it_does_not_fit_are_told_so():
    boxes = {key: value for key, value in scene(*TWO).items() if key != "masks"}
    with pytest.raises(DetcliError, match="trained without"):
        boost(boxes)
    with pytest.raises(DetcliError, match="does not move keypoints"):
        boost({**scene(*TWO), "keypoints": torch.zeros(2, 1, 2)})


def test_the_overlay_is_before_the_resize():
    config = resolve("instaboost", sched="4x").config
    assert [part["name"] for part in config.data.before_resize] == ["instaboost"]
    assert (config.sched.length, config.sched.drops) == (48, [32, 44])
