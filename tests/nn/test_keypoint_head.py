"""Keypoints of RoIs: targets, loss and decoding. The tables of Detectron2 hold targets and decoding to its own."""

import math

import pytest
import torch
from torch.nn import functional

from detcli.errors import DetcliError
from detcli.nn.keypoint_head import KeypointHead, find_keypoints, keypoint_places
from detcli.nn.roi_head import RoISample
from detcli.structures import Target


def sample(boxes, gt_index):
    boxes, gt_index = torch.tensor(boxes), torch.tensor(gt_index)
    positive = gt_index >= 0
    labels = torch.zeros_like(gt_index)
    return RoISample(boxes, boxes, gt_index, labels, positive, torch.ones_like(positive), len(boxes))


def target(keypoints):
    keypoints = torch.tensor(keypoints).view(-1, 2, 3)
    return Target(torch.zeros(len(keypoints), 4), torch.zeros(len(keypoints)).long(), keypoints=keypoints)


@pytest.fixture
def head():
    torch.manual_seed(0)
    return KeypointHead(8, 2, channels=16, num_convs=2)


def test_maps_have_four_times_the_side_of_rois(head):
    assert head(torch.randn(3, 8, 14, 14)).shape == (3, 2, 56, 56)
    assert {name.rsplit(".", 1)[0] for name, _ in head.named_parameters()} == {
        *("convs.0.conv", "convs.1.conv"),
        "upsample",
    }


def test_the_loss_is_a_mean_over_visible_keypoints_in_their_rois(head):
    rois = torch.randn(3, 8, 14, 14)
    # Of six keypoints, one is outside its RoI, one unlabelled, and two are those of a RoI that is not positive.
    samples = [sample([[0.0, 0.0, 56.0, 56.0], [0.0, 0.0, 28.0, 28.0]], [0, 1]), sample([[0.0, 0.0, 9.0, 9.0]], [-1])]
    targets = [target([[3.5, 4.5, 2.0], [60.0, 2.0, 2.0], [7.2, 5.1, 1.0], [3.0, 3.0, 0.0]]), target([])]
    loss = head.losses(rois, samples, targets)["loss_keypoint"]
    log_shares = head(rois).flatten(2).log_softmax(-1)
    expected = -(log_shares[0, 0, 4 * 56 + 3] + log_shares[1, 0, 10 * 56 + 14]) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("objects", [[], [9.0, 9.0, 0.0, 9.0, 9.0, 0.0]])
def test_without_visible_keypoints_the_loss_is_0_and_has_a_gradient(head, objects):
    boxes = [[0.0, 0.0, 20.0, 20.0]] * bool(objects)
    samples = [sample(torch.tensor(boxes).view(-1, 4).tolist() or torch.zeros(0, 4).tolist(), [0] * len(boxes))]
    samples[0].boxes, samples[0].gt_index = samples[0].boxes.view(-1, 4), samples[0].gt_index.long()
    loss = head.losses(torch.randn(len(boxes), 8, 14, 14), samples, [target(objects)])["loss_keypoint"]
    assert loss == 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_data_without_keypoints_are_named(head):
    plain = Target(torch.zeros(1, 4), torch.zeros(1).long())
    with pytest.raises(DetcliError, match="the data have none"):
        head.losses(torch.randn(1, 8, 14, 14), [sample([[0.0, 0.0, 9.0, 9.0]], [0])], [plain])


def test_what_is_learned_is_found():
    boxes = torch.tensor([[10.0, 20.0, 66.0, 76.0], [3.0, 5.0, 143.0, 89.0]])
    points = torch.tensor([[[12.5, 30.5, 2.0], [65.5, 75.5, 1.0]], [[4.5, 6.5, 2.0], [130.5, 30.0, 2.0]]])
    places, inside = keypoint_places(points, boxes, 56)
    assert inside.all()
    logits = torch.full((2, 2, 56 * 56), -10.0).scatter(2, places[..., None], 10.0).view(2, 2, 56, 56)
    found = find_keypoints(logits, boxes)
    cell = (boxes[:, 2:] - boxes[:, :2]).amax(1) / 56
    assert ((found[..., :2] - points[..., :2]).abs() <= cell[:, None, None]).all()
    share = 1 / (1 + (56**2 - 1) * math.exp(-20))
    torch.testing.assert_close(found[0, :, 2], torch.full((2,), share), rtol=1e-4, atol=0)


def test_a_keypoint_on_the_far_side_is_in_the_last_cell_and_one_beyond_is_not_there():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    points = torch.tensor([[[10.0, 20.0, 2.0], [10.1, 5.0, 2.0], [-0.1, 5.0, 2.0], [5.0, 5.0, 0.0]]])
    places, inside = keypoint_places(points, boxes, 4)
    assert inside.tolist() == [[True, False, False, False]]
    assert places[0, 0] == 15


def detectron_head(num_convs=0):
    torch.manual_seed(0)
    return KeypointHead(2, 2, channels=2, num_convs=num_convs, style="detectron")


def test_detectron_enlarges_by_a_deconvolution():
    head, rois = detectron_head(), torch.randn(3, 2, 5, 5)
    side = torch.tensor([0.25, 0.75, 0.75, 0.25])
    kernel = (side[:, None] * side).expand(2, 1, 4, 4)
    expected = functional.conv_transpose2d(head.upsample(rois), kernel, stride=2, padding=1, groups=2)
    torch.testing.assert_close(head(rois), expected)


def test_detectron_maps_boxes_up_to_their_last_pixel():
    head, size = detectron_head(), 20
    rois = torch.randn(1, 2, 5, 5)
    # There, pixels are numbers, and the last one of a box is in it; here, places are half a pixel on.
    first, last = torch.tensor([10.0, 20.0]), torch.tensor([57.0, 45.0])
    pixels = torch.tensor([[31.0, 41.0], [57.0, 22.0]])
    cells = ((pixels - first) * size / (last - first)).floor()
    cells[1, 0] = size - 1
    points = torch.cat([pixels + 0.5, torch.full((2, 1), 2.0)], dim=1)
    boxes = torch.cat([first, last + 1])[None]
    samples = [sample(boxes.tolist(), [0])]
    loss = head.losses(rois, samples, [target(points.tolist())])["loss_keypoint"]
    shares = head(rois).flatten(2).log_softmax(-1)[0]
    index = (cells[:, 1] * size + cells[:, 0]).long()
    torch.testing.assert_close(loss, -shares[[0, 1], index].mean())

    logits = torch.full((1, 2, size * size), -10.0).scatter(2, index[None, :, None], 10.0).view(1, 2, size, size)
    found = head.find(logits, boxes)[0, :, :2] - 0.5
    # Its sides are 47 and 25 pixels, which maps are resized to.
    resized = functional.interpolate(logits, (25, 47), mode="bicubic")[0].flatten(1).argmax(1)
    expected = torch.stack([resized % 47, resized // 47], dim=1) + 0.5 + first
    torch.testing.assert_close(found, expected)


def test_nothing_found_has_no_keypoints():
    assert find_keypoints(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4)).shape == (0, 17, 3)
