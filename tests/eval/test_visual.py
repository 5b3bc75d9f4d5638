"""Annotated pictures."""

import numpy as np
import pytest
import torch

from detcli.nn.masks import resize_masks
from detcli.structures import Detections, Panoptic, Target
from detcli.visual import class_color, contact_sheet, draw

NAMES = ("cat", "dog", "a class with quite a long name")


def grey(height=200, width=300):
    return np.full((height, width, 3), 128, np.uint8)


def found(boxes, scores=None, labels=None, **masks):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([0.9] * len(boxes) if scores is None else scores)
    labels = torch.tensor([0] * len(boxes) if labels is None else labels, dtype=torch.int64)
    return Detections(boxes, scores, labels, **masks)


def changed(before, after):
    return (before != after).any(-1)


def test_box_is_drawn_in_the_color_of_its_class_and_the_input_stays():
    image = grey()
    drawn = draw(image, found([[50, 60, 150, 160]], labels=[1]), NAMES)
    assert (image == 128).all()
    assert drawn.dtype == np.uint8
    assert tuple(drawn[160, 100]) == class_color(1)
    assert tuple(drawn[100, 150]) == class_color(1)
    assert not changed(image, drawn)[70:150, 60:140].any()
    assert not changed(image, drawn)[170:].any()
    assert not changed(image, drawn)[:, 160:].any()


def test_scores_below_the_threshold_are_left_out():
    detections = found([[50, 60, 150, 160]], scores=[0.29])
    assert not changed(grey(), draw(grey(), detections, NAMES, 0.3)).any()
    assert changed(grey(), draw(grey(), detections, NAMES, 0.2)).any()


def test_the_label_has_readable_ink():
    for label in range(40):
        drawn = draw(grey(), found([[50, 60, 150, 160]], labels=[label]), ["name"] * 40)
        ground = np.array(class_color(label))
        luminance = ground @ [0.299, 0.587, 0.114]
        ink = 0 if luminance > 127 else 255
        label_area = drawn[42:60, 50:110].reshape(-1, 3).astype(int)
        assert (label_area == ground).all(1).sum() > 200
        assert np.abs(label_area - ink).max(1).min() < 60


@pytest.mark.parametrize("box", [[0, 0, 20, 20], [280, 0, 299, 20], [0, 180, 20, 199], [285, 185, 299, 199]])
def test_labels_stay_inside_the_picture(box):
    inside = draw(grey(), found([box], labels=[2]), NAMES)
    margin = 400
    shifted = [value + margin for value in box]
    outside = draw(np.full((200 + 2 * margin, 300 + 2 * margin, 3), 128, np.uint8), found([shifted]), NAMES)
    assert changed(outside, np.full_like(outside, 128)).any()
    color_pixels = (inside == class_color(2)).all(-1)
    columns = np.nonzero(color_pixels)[1]
    assert columns.max() - columns.min() > 130  # the whole label, wider than the box, is there
    assert color_pixels.sum() > 1000


def test_masks_are_translucent():
    masks = torch.zeros(1, 200, 300, dtype=torch.uint8)
    masks[0, 80:140, 70:130] = 1
    drawn = draw(grey(), found([[50, 60, 150, 160]], masks=masks), NAMES)
    expected = 0.6 * 128 + 0.4 * np.array(class_color(0))
    np.testing.assert_allclose(drawn[110, 100], expected, atol=1)
    assert tuple(drawn[80, 100]) == class_color(0)
    assert tuple(drawn[70, 100]) == (128, 128, 128)


def test_mask_crops_look_like_the_masks_they_become():
    boxes = [[50, 60, 150, 160], [140, 90, 400, 120]]
    crops = torch.ones(2, 28, 28)
    masks = torch.zeros(2, 200, 300, dtype=torch.uint8)
    masks[0, 60:160, 50:150] = 1
    masks[1, 90:120, 140:] = 1
    masks[0, [60, 60, 159, 159], [50, 149, 50, 149]] = 0
    masks[1, [90, 119], [140, 140]] = 0
    from_crops = draw(grey(), found(boxes, mask_crops=crops), NAMES)
    from_masks = draw(grey(), found(boxes, masks=masks), NAMES)
    assert changed(from_crops, from_masks).sum() < 20


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_mask_maps_look_like_the_masks_they_become(scale):
    boxes = [[48, 60, 150, 160], [140, 90, 300, 120]]
    maps = torch.zeros(2, 50, 75)
    maps[0, 15:40, 12:37] = 1
    maps[1, 22:30, 35:] = 1
    from_maps = draw(grey(), found(boxes, mask_maps=maps), NAMES, scale=scale)
    from_masks = draw(grey(), found(boxes, masks=resize_masks(maps, (200, 300))), NAMES, scale=scale)
    assert changed(from_maps, from_masks).sum() < 20 * scale
    assert changed(from_maps, draw(grey(), found(boxes), NAMES, scale=scale)).sum() > 2000 * scale


@pytest.mark.parametrize("scale", [1.0, 4.0, 0.5])
def test_scale_enlarges_everything(scale):
    masks = torch.zeros(1, 96, 96, dtype=torch.uint8)
    masks[0, 40:60, 40:60] = 1
    detections = found([[30, 30, 70, 70]], masks=masks, keypoints=torch.tensor([[[35.0, 65.0, 1.0]]]))
    drawn = draw(grey(96, 96), detections, NAMES, scale=scale)
    assert drawn.shape == (96 * scale, 96 * scale, 3)
    assert tuple(drawn[round(70 * scale), round(50 * scale)]) == class_color(0)
    assert tuple(drawn[round(65 * scale), round(35 * scale)]) == class_color(0)
    np.testing.assert_allclose(
        drawn[round(50 * scale), round(50 * scale)], 0.6 * 128 + 0.4 * np.array(class_color(0)), atol=1
    )


def test_lines_are_thicker_on_large_pictures():
    def line(side):
        drawn = draw(grey(side, side), found([[side / 4, side / 4, side / 2, side / 2]]), NAMES)
        return int((drawn[:, side * 3 // 8] == class_color(0)).all(-1)[side * 7 // 16 :].sum())

    assert line(100) == 1
    assert 2 <= line(800) <= 5
    assert 8 <= line(3000) <= 13


def test_keypoints_that_are_unlikely_or_unlabelled_are_not_drawn():
    points = torch.tensor([[[100.0, 100.0, 0.06], [120.0, 100.0, 0.04]]])
    drawn = draw(grey(), found([[50, 60, 150, 160]], keypoints=points), NAMES)
    assert tuple(drawn[100, 100]) == class_color(0)
    assert not changed(grey(), drawn)[100, 120]
    points = torch.tensor([[[100.0, 100.0, 1.0], [120.0, 100.0, 0.0]]])
    drawn = draw(grey(), Target(torch.tensor([[50.0, 60, 150, 160]]), torch.tensor([1]), keypoints=points), NAMES)
    assert tuple(drawn[100, 100]) == class_color(1)
    assert not changed(grey(), drawn)[100, 120]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_segments_are_drawn_in_place_of_detections(scale):
    segments = torch.zeros(200, 300, dtype=torch.int32)
    segments[100:] = 2
    segments[120:160, 100:200] = 1
    panoptic = Panoptic(segments, torch.tensor([0, 2]), torch.tensor([0.75, 1.0]))
    drawn = draw(grey(), found([[20, 20, 60, 60]], panoptic=panoptic), NAMES, scale=scale)

    def at(x, y):
        return drawn[round(y * scale), round(x * scale)]

    for (x, y), label in (((150, 140), 0), ((250, 190), 2)):
        np.testing.assert_allclose(at(x, y), 0.6 * 128 + 0.4 * np.array(class_color(label)), atol=1)
    assert (at(20, 40) == 128).all()  # no box


def test_ground_truth_with_crowd_and_masks():
    masks = torch.zeros(1, 200, 300, dtype=torch.uint8)
    masks[0, 80:140, 70:130] = 1
    target = Target(
        torch.tensor([[50.0, 60, 150, 160]]),
        torch.tensor([1]),
        masks,
        ignored=torch.tensor([[200.0, 100, 280, 180]]),
    )
    drawn = draw(grey(), target, NAMES)
    assert tuple(drawn[160, 100]) == class_color(1)
    assert tuple(drawn[180, 240]) == (160, 160, 160)
    assert changed(grey(), drawn)[110, 100]


def test_nothing_found_and_boxes_far_outside():
    assert not changed(grey(), draw(grey(), found([]), NAMES)).any()
    masks = torch.zeros(0, 200, 300, dtype=torch.uint8)
    assert draw(grey(), found([], masks=masks), NAMES, scale=2).shape == (400, 600, 3)
    draw(
        grey(),
        found([[-500, -500, -400, -400], [1000, 1000, 2000, 2000]], mask_crops=torch.ones(2, 28, 28)),
        NAMES,
    )


def test_labels_without_a_name():
    drawn = draw(grey(), found([[50, 60, 150, 160]], labels=[77]), NAMES)
    assert tuple(drawn[160, 100]) == class_color(77)


def test_class_colors_are_distinct():
    colors = np.array([class_color(label) for label in range(20)])
    distance = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(20)
    assert distance.min() > 40


def test_contact_sheet_holds_every_picture():
    images = [
        np.full((height, width, 3), value, np.uint8)
        for height, width, value in [(100, 80, 200), (50, 120, 210), (1300, 650, 220)]
    ]
    sheet = contact_sheet(images, columns=2)
    assert [(sheet == value).all(-1).sum() for value in (200, 210, 220)] == [8000, 6000, 640 * 320]
    assert contact_sheet(images[:1], columns=4).shape[1] < 100
