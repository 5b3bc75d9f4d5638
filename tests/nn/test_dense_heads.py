"""What dense heads share, and what must hold for every method that has one."""

import pytest
import torch

from detcli.config import resolve
from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import max_iou
from detcli.nn.dense_heads import (
    Selection,
    assign_anchors,
    centerness,
    flatten_maps,
    select_candidates,
    select_detections,
)
from detcli.registry import build
from detcli.structures import Batch, Target

RECIPES = ["retinanet", "retinanet_detectron2", "atss", "fcos", "fcos_tricks"]
BOXES = torch.tensor([[8.0, 10.0, 60.0, 70.0], [70.0, 20.0, 150.0, 120.0], [20.0, 80.0, 50.0, 110.0]])
SLIM = ["model.neck.out_channels=32", "weights=none"]


def model(recipe, *settings):
    torch.manual_seed(0)
    config = resolve(recipe, backbone="r18", settings=[*SLIM, *settings]).config
    return build("models", config.model, num_classes=3)


def batch(*counts):
    """Images of one seed each, with the first `counts` objects."""
    images = [torch.randn(3, 128, 160, generator=torch.Generator().manual_seed(0)) for _ in counts]
    targets = [Target(BOXES[:count], torch.arange(3)[:count]) for count in counts]
    return Batch(torch.stack(images), torch.tensor([[128, 160]] * len(counts)), targets)


def losses(detector, images):
    return {name: value for name, value in detector.train()(images).items() if "loss" in name}


@pytest.mark.parametrize("recipe", ["retinanet", "atss", "fcos", "fcos_tricks"])
def test_an_image_twice_has_the_losses_of_one(recipe):
    detector = model(recipe)
    once, twice = losses(detector, batch(3)), losses(detector, batch(3, 3))
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_images_without_objects_train_no_boxes_and_stay_finite(recipe):
    detector = model(recipe)
    for name, parameter in detector.bbox_head.named_parameters():
        if name in ("retina_reg.bias", "atss_reg.bias", "conv_reg.bias"):
            torch.nn.init.constant_(parameter, 200.0)  # the exponential of which is no float32
    values = losses(detector, batch(0, 0))
    assert values["loss_cls"] > 0
    assert all(value == 0 for name, value in values.items() if name != "loss_cls")
    sum(values.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_step_reads_no_value_back_from_the_device(recipe):
    # Tensors of the meta device have no values: what needs one (item, nonzero, a mask as an index) raises.
    with torch.device("meta"):
        detector = model(recipe)
    images = batch(3, 0).to("meta")
    sum(losses(detector, images).values()).backward()


@pytest.mark.parametrize("recipe", RECIPES)
def test_detections_are_sorted_and_inside_their_image(recipe):
    detector = model(recipe, "model.score_threshold=0.0", "model.max_per_image=7").eval()
    images = batch(3, 3)
    images.sizes[1] = torch.tensor([90, 100])
    with torch.no_grad():
        found = detector(images)
    for detections, (height, width) in zip(found, images.sizes.tolist(), strict=True):
        assert 0 < len(detections) <= 7
        assert torch.equal(detections.scores, detections.scores.sort(descending=True).values)
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= torch.tensor([width, height, width, height])).all()
        assert set(detections.labels.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("recipe", ["retinanet", "atss", "fcos"])
def test_a_model_that_has_predicted_can_be_trained(recipe):
    detector = model(recipe).eval()
    with torch.inference_mode():
        detector(batch(0))
    sum(losses(detector, batch(3)).values()).backward()


def test_a_head_is_as_wide_as_its_neck_unless_told_otherwise():
    assert model("atss").bbox_head.atss_cls.in_channels == 32
    assert model("atss", "model.feat_channels=64").bbox_head.atss_cls.in_channels == 64


def test_maps_are_flattened_in_the_order_of_anchors():
    anchors, channels, height, width = 2, 3, 4, 5
    maps = torch.arange(anchors * channels * height * width).reshape(1, anchors * channels, height, width)
    flat = flatten_maps([maps], channels)
    assert flat.shape == (1, height * width * anchors, channels)
    row, column, anchor = 2, 3, 1
    expected = maps[0, anchor * channels : (anchor + 1) * channels, row, column]
    assert torch.equal(flat[0, (row * width + column) * anchors + anchor], expected)


def test_candidates_are_the_best_pairs_of_each_level():
    torch.manual_seed(0)
    logits, counts = torch.randn(2, 30, 4), [20, 8, 2]
    selection = Selection(score_threshold=0.6, nms_pre=10)
    scores, index, labels = select_candidates(logits, counts, selection)
    probabilities, start = logits.sigmoid(), 0
    for image in range(2):
        expected = []
        for level in probabilities[image].split(counts):
            pairs = [
                (float(level[a, c]), a + start, c) for a in range(len(level)) for c in range(4) if level[a, c] > 0.6
            ]
            expected += sorted(pairs, reverse=True)[:10]
            start += len(level)
        start = 0
        kept = scores[image] > 0
        ours = zip(
            scores[image][kept].tolist(),
            index[image][kept].tolist(),
            labels[image][kept].tolist(),
            strict=True,
        )
        assert [pair[1:] for pair in ours] == [pair[1:] for pair in expected]


def test_nms_sees_boxes_before_or_after_they_are_cut():
    # Two boxes that only differ outside the image.
    boxes = torch.tensor([[[50.0, 50.0, 90.0, 90.0], [50.0, 50.0, 150.0, 150.0], [120.0, 0.0, 130.0, 10.0]]])
    scores, labels = torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3).long()
    size = torch.tensor([[90, 90]])
    (before,) = select_detections(boxes, scores, labels, size, Selection(clip="before_nms"))
    assert before.boxes.tolist() == [[50, 50, 90, 90], [90, 0, 90, 10]]
    (after,) = select_detections(boxes, scores, labels, size, Selection(clip="after_nms"))
    assert after.boxes.tolist() == [[50, 50, 90, 90]] * 2


def test_anchors_on_the_padding_of_a_smaller_image_are_trained_only_if_asked():
    sizes = [(16, 20), (8, 10)]
    images = batch(1, 1)
    images.sizes[1] = torch.tensor([64, 96])
    generator = AnchorGenerator((8, 16), ratios=(1.0,))
    anchors, targets = assign_anchors(max_iou(), generator, sizes, images, 3)
    assert len(anchors) == 16 * 20 + 8 * 10
    outside = ((anchors[:, :2] + anchors[:, 2:]) / 2 >= torch.tensor([96, 64])).any(1)
    assert not targets.trained[1][outside].any()
    assert torch.equal(targets.trained[0] & ~outside, targets.trained[1])
    _, everywhere = assign_anchors(max_iou(), generator, sizes, images, 3, train_padding=True)
    assert torch.equal(everywhere.trained[0], everywhere.trained[1])


def test_targets_are_those_of_the_assigned_object():
    images = batch(3, 0)
    anchors, targets = assign_anchors(max_iou(), AnchorGenerator((8, 16), scales=(4,)), [(16, 20), (8, 10)], images, 3)
    assert targets.positive[0].any()
    assert not targets.positive[1].any()
    assert (targets.labels[~targets.positive] == 3).all()
    assert torch.equal(targets.boxes[1], anchors)
    assert torch.equal(targets.boxes[0][targets.positive[0]], BOXES[targets.labels[0][targets.positive[0]]])
    assert targets.num_positive() == targets.positive[0].sum() + 1


def test_centerness_is_one_in_the_middle_and_falls_to_the_sides():
    distances = torch.tensor([[10.0, 5, 10, 5], [1, 5, 19, 5], [4, 1, 16, 9]])
    expected = [1, (1 / 19) ** 0.5, (1 / 4 * 1 / 9) ** 0.5]
    torch.testing.assert_close(centerness(distances), torch.tensor(expected))
