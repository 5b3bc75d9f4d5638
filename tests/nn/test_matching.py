"""Matching of whole sets of predictions to the objects of a batch."""

from itertools import permutations

import pytest
import torch

from detcli.nn import matching
from detcli.nn.matching import hungarian, object_set, to_pixels
from detcli.structures import Batch, Target

SIZES = torch.tensor([[80, 200], [100, 50], [60, 60]])
COUNTS = (3, 0, 5)


def batch(counts=COUNTS):
    torch.manual_seed(0)
    targets = []
    for count, (height, width) in zip(counts, SIZES.tolist(), strict=True):
        corners = torch.rand(count, 2, 2).sort(dim=1).values * torch.tensor([width, height])
        targets.append(Target(corners.flatten(1), torch.arange(count) % 2))
    return Batch(torch.zeros(3, 3, 100, 200), SIZES, targets)


def predictions(layers, queries):
    torch.manual_seed(1)
    return torch.randn(layers, 3, queries, 3), torch.rand(layers, 3, queries, 4)


def test_boxes_are_shares_of_their_own_image_and_back():
    images = batch()
    objects = object_set(images)
    assert objects.boxes.shape == (3, 5, 4)
    assert objects.counts == [3, 0, 5]
    x1, y1, x2, y2 = images.targets[0].boxes[1].tolist()
    expected = [(x1 + x2) / 400, (y1 + y2) / 160, (x2 - x1) / 200, (y2 - y1) / 80]
    torch.testing.assert_close(objects.boxes[0, 1], torch.tensor(expected))
    corners = to_pixels(objects.boxes, objects.sizes)
    for row, target in zip(corners, images.targets, strict=True):
        torch.testing.assert_close(row[: len(target.boxes)], target.boxes)


@pytest.mark.parametrize("class_score", ["softmax", "focal"])
def test_no_other_matching_costs_less(class_score, monkeypatch):
    seen = []
    least = matching._least
    monkeypatch.setattr(matching, "_least", lambda costs, counts: least(seen.append(costs) or costs, counts))
    queries = 6
    matched = hungarian(class_score=class_score)(*predictions(2, queries), object_set(batch()))
    (costs,) = seen  # of all layers and images at once
    assert matched.shape == (2, 3, 5)
    for layer in range(2):
        for image, count in enumerate(COUNTS):
            own = matched[layer, image, :count].tolist()
            assert len(set(own)) == count
            matrix = costs[layer, image]
            total = sum(matrix[query, number] for number, query in enumerate(own))
            others = permutations(range(queries), count)
            best = min(sum(matrix[q, number] for number, q in enumerate(other)) for other in others)
            torch.testing.assert_close(total, best)
            assert (matched[layer, image, count:] == queries).all()


def test_each_part_of_the_cost_alone_decides():
    images = batch()
    objects = object_set(images)
    wanted = torch.tensor([4, 1, 3])
    boxes = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(2)) * 0.1 + 0.9
    boxes[0, wanted] = objects.boxes[0, :3]
    logits = torch.full((3, 6, 4), -5.0)
    logits[0, wanted, torch.arange(3)] = 5.0
    objects.labels[0, :3] = torch.arange(3)
    for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        names = ("class_cost", "box_cost", "iou_cost")
        match = hungarian(**dict(zip(names, weights, strict=True)))
        assert match(logits, boxes, objects)[0, :3].tolist() == wanted.tolist()


def test_with_more_objects_than_predictions_some_objects_have_none():
    matched = hungarian()(*predictions(1, 2), object_set(batch()))
    assert matched[0, 0, :3].sort().values.tolist() == [0, 1, 2]
    assert matched[0, 2].sort().values.tolist() == [0, 1, 2, 2, 2]


def test_a_batch_without_objects_has_no_matches():
    objects = object_set(batch((0, 0, 0)))
    assert hungarian()(*predictions(2, 4), objects).shape == (2, 3, 0)


def test_predictions_that_are_not_finite_are_matched_all_the_same():
    logits, boxes = predictions(1, 6)
    logits[0, 0] = float("nan")
    boxes[0, 2, 3] = float("inf")
    matched = hungarian()(logits, boxes, object_set(batch()))
    assert sorted(matched[0, 2].tolist()) == [0, 1, 2, 4, 5]
