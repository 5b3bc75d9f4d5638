from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from detcli.errors import UsageError
from detcli.nn.cascade_roi_head import EVERYTHING, CascadeRoIHead, Refined, cascade_stages, stage_extractors
from detcli.nn.detector import Trunk
from detcli.nn.fold import prepare_on_cpu
from detcli.nn.roi_head import MaskHead
from detcli.structures import Batch, Target

STRIDES = (4, 8)
CLASSES = 3
SIZE = torch.tensor([[64, 64]])
TRUNK = Trunk(nn.Identity(), None, None, 8, STRIDES, 8)
BOX = [8.0, 8.0, 40.0, 40.0]


def make_stages(**changes):
    settings = {
        "trunk": TRUNK,
        "num_classes": CLASSES,
        "roi_extractor": "roi_align",
        "bbox_head": {"name": "conv_fc", "channels": 16},
        "ious": (0.5, 0.7),
        "stds": ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1)),
        "loss_weights": (1.0, 0.25),
        "num_masks": 0,
        "match_low_quality": False,
        "sampler": {"name": "random", "num": 32, "positive_fraction": 0.25, "add_gt": True},
        "resample": True,
    }
    return cascade_stages(**{**settings, **changes})


def make_head(
    masks=0, resample=True, weights=(1.0, 0.25), score_average="logits", roi_gradient=1.0, extractor="roi_align"
):
    torch.manual_seed(0)
    head = CascadeRoIHead(
        make_stages(num_masks=masks, resample=resample, loss_weights=weights, roi_extractor=extractor),
        resample=resample,
        score_average=score_average,
        roi_gradient=roi_gradient,
        score_threshold=0.05,
        nms_threshold=0.5,
        max_per_image=10,
        mask_roi_extractors=stage_extractors(TRUNK, {"name": extractor, "output_size": 14}, masks),
        mask_heads=[MaskHead(8, CLASSES, channels=8, num_convs=1) for _ in range(masks)],
    )
    for stage in head.bbox_head:
        nn.init.normal_(stage.fc_cls.weight, std=0.3)
    return head


def make_features():
    torch.manual_seed(1)
    return [torch.randn(1, 8, 64 // stride, 64 // stride) for stride in STRIDES]


def make_batch(boxes=(BOX,)):
    masks = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
    masks[:, 16:32, 16:32] = 1
    target = Target(torch.tensor(boxes).view(-1, 4), torch.ones(len(boxes), dtype=torch.long), masks)
    return Batch(torch.zeros(1, 3, 64, 64), SIZE, [target])


def make_proposals(count=20):
    torch.manual_seed(2)
    corners = torch.rand(count, 2) * 30
    return torch.cat([corners, corners + 10 + torch.rand(count, 2) * 20], dim=1)


def all_usable(boxes):
    return Refined([boxes], [torch.ones(len(boxes), dtype=torch.bool)])


def shift(count, dx):
    """Return deltas that move boxes of a side of 32 by `dx` pixels in the first stage."""
    deltas = torch.zeros(count, 1, 4)
    deltas[..., 0] = dx / 32 / 0.1
    return deltas


def test_boxes_are_refined_and_objects_that_were_added_are_left_out():
    head, batch = make_head(), make_batch()
    beside = torch.tensor([[10.0, 8.0, 42.0, 40.0]])
    samples = head.sample(0, all_usable(beside), batch)
    assert samples[0].boxes.tolist() == [BOX, beside[0].tolist()]
    refined = head.refine(0, samples, shift(2, -2), batch)
    torch.testing.assert_close(refined.boxes[0], torch.tensor([[6.0, 8.0, 38.0, 40.0], BOX]))
    assert refined.usable[0].tolist() == [False, True]
    # The next stage adds the object anew, and has no use for what was left out.
    again = head.sample(1, refined, batch)[0]
    assert again.boxes[again.valid].tolist() == [BOX, pytest.approx(BOX)]


def test_without_resampling_all_boxes_are_passed_on_that_have_an_area():
    head, batch = make_head(resample=False), make_batch()
    proposals = torch.tensor([[10.0, 8.0, 42.0, 40.0], [40.0, 8.0, 63.0, 40.0]])
    samples = head.sample(0, all_usable(proposals), batch)
    deltas = shift(3, 0)
    deltas[samples[0].boxes[:, 0] == 40, 0, 0] = 1000.0  # beyond the border, where boxes are cut to nothing
    refined = head.refine(0, samples, deltas, batch)
    assert refined.usable[0].sum() == 2
    again = head.sample(1, refined, batch)[0]
    assert len(again.boxes) == 3  # none is added
    assert sorted(again.boxes[again.valid].tolist()) == [BOX, proposals[0].tolist()]
    assert head.samplers[1] is EVERYTHING


def test_each_stage_asks_for_its_own_overlap():
    head, batch = make_head(), make_batch()
    beside = torch.tensor([[18.0, 8.0, 50.0, 40.0]])  # an IoU of 22 / 42
    counts = [int(head.sample(number, all_usable(beside), batch)[0].positive.sum()) for number in (0, 1)]
    assert counts == [2, 1]  # in the second, only the object itself


def test_losses_of_stages_have_their_names_and_weights():
    found = make_head(masks=1).losses(make_features(), [make_proposals()], make_batch())
    plain = make_head(masks=1, weights=(1.0, 1.0)).losses(make_features(), [make_proposals()], make_batch())
    assert list(found) == ["s0.loss_cls", "s0.loss_bbox", "s0.loss_mask", "s1.loss_cls", "s1.loss_bbox"]
    for name, value in found.items():
        torch.testing.assert_close(value, plain[name] * (0.25 if name.startswith("s1") else 1))


def test_the_gradient_of_boxes_is_scaled_and_that_of_masks_is_not():
    def gradients(name, factor):
        features = [level.requires_grad_() for level in make_features()]
        head = make_head(masks=1, roi_gradient=factor)
        head.losses(features, [make_proposals()], make_batch())[name].backward()
        return features[0].grad, head.bbox_head[0].fc_cls.weight.grad

    whole, third = gradients("s0.loss_cls", 1.0), gradients("s0.loss_cls", 1 / 3)
    torch.testing.assert_close(third[0], whole[0] / 3)
    torch.testing.assert_close(third[1], whole[1])
    torch.testing.assert_close(gradients("s0.loss_mask", 1 / 3)[0], gradients("s0.loss_mask", 1.0)[0])


@pytest.mark.parametrize("boxes", [(), (BOX,)])
def test_losses_without_objects_or_proposals_are_finite(boxes):
    for resample in (True, False):
        for proposals in (make_proposals(), torch.zeros(0, 4)):
            losses = make_head(masks=2, resample=resample).losses(make_features(), [proposals], make_batch(boxes))
            assert all(torch.isfinite(loss) for loss in losses.values())
            sum(losses.values()).backward()


@pytest.mark.parametrize("score_average", ["logits", "probabilities"])
def test_scores_are_the_mean_of_all_stages_and_boxes_the_last(score_average):
    head, features = make_head(score_average=score_average).eval(), make_features()
    proposals = make_proposals(1)
    with torch.no_grad():
        found = head.detect(features, [proposals], make_batch())[0]
        boxes, logits = proposals, []
        for stage in head.bbox_head:
            rois = head.bbox_roi_extractor[0](features, torch.cat([torch.zeros(1, 1), boxes], dim=1))
            stage_logits, deltas = stage(rois)
            logits.append(stage_logits)
            boxes = stage.box_coder.decode(boxes, deltas[:, 0], SIZE)
    first, second = logits
    if score_average == "logits":
        scores = ((first + second) / 2).softmax(-1)
    else:
        scores = (first.softmax(-1) + second.softmax(-1)) / 2
    expected = scores[0, :-1].sort(descending=True)
    torch.testing.assert_close(found.scores, expected.values[: len(found)])
    assert found.labels.tolist() == expected.indices[: len(found)].tolist()
    torch.testing.assert_close(found.boxes, boxes.expand(len(found), 4))


def test_masks_are_the_mean_of_all_heads():
    head, features = make_head(masks=2).eval(), make_features()
    with torch.no_grad():
        found = head.detect(features, [make_proposals()], make_batch())[0]
        rois = head.mask_roi_extractor[0](features, torch.cat([torch.zeros(len(found), 1), found.boxes], dim=1))
        one, other = (mask(rois, found.labels).sigmoid() for mask in head.mask_head)
    assert len(found) > 1
    torch.testing.assert_close(found.mask_crops, (one + other) / 2)


def test_stages_have_an_extractor_each_where_it_learns():
    shared, head = make_head(masks=2), make_head(masks=2, extractor="deform_roi_pool")
    assert shared.bbox_roi_extractor[0] is shared.bbox_roi_extractor[1]
    names = {".".join(name.split(".")[:3]) for name in head.state_dict() if "extractor" in name}
    assert names == {f"{part}_roi_extractor.{number}.roi_layers" for part in ("bbox", "mask") for number in (0, 1)}
    assert not any(name.startswith("mask") for name in make_head(extractor="deform_roi_pool").state_dict())
    losses = head.losses(make_features(), [make_proposals()], make_batch())
    for name, number in (("s0.loss_cls", 0), ("s1.loss_cls", 1), ("s1.loss_mask", 1)):
        head.zero_grad()
        losses[name].backward(retain_graph=True)
        extractors = head.mask_roi_extractor if "mask" in name else head.bbox_roi_extractor
        trained = [any(p.grad is not None and p.grad.any() for p in one.parameters()) for one in extractors]
        assert trained == [number == 0, number == 1]


def test_each_stage_detects_with_its_own_extractor():
    head, features = make_head(masks=2, extractor="deform_roi_pool").eval(), make_features()
    with torch.no_grad():
        for extractor, offset in zip([*head.bbox_roi_extractor, *head.mask_roi_extractor], (1, -1, 2, -2), strict=True):
            for layers in extractor.roi_layers:
                layers.offset_fc[-1].bias.fill_(offset)
        found = head.detect(features, [make_proposals(1)], make_batch())[0]
        boxes, logits = make_proposals(1), []
        for extractor, stage in zip(head.bbox_roi_extractor, head.bbox_head, strict=True):
            stage_logits, deltas = stage(head.pool(extractor, features, [boxes]))
            logits.append(stage_logits)
            boxes = stage.box_coder.decode(boxes, deltas[:, 0], SIZE)
        crops = [
            mask(head.pool(extractor, features, [found.boxes]), found.labels).sigmoid()
            for extractor, mask in zip(head.mask_roi_extractor, head.mask_head, strict=True)
        ]
    torch.testing.assert_close(found.boxes, boxes.expand(len(found), 4))
    torch.testing.assert_close(found.scores[0], torch.stack(logits).mean(0).softmax(-1)[0, :-1].max())
    torch.testing.assert_close(found.mask_crops, torch.stack(crops).mean(0))


def test_no_proposals_are_no_detections():
    with torch.no_grad():
        (found,) = make_head(masks=2).eval().detect(make_features(), [torch.zeros(0, 4)], make_batch())
    assert len(found) == 0
    assert found.mask_crops.shape == (0, 28, 28)


@pytest.mark.parametrize("resample", [True, False])
def test_stages_do_not_wait_for_the_device(resample):
    """Fake tensors have no values: whatever depends on one raises."""
    head = make_head(resample=resample)
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = make_batch().to("cuda")
        boxes = all_usable(torch.rand(40, 4, device="cuda"))
        boxes.usable = [boxes.usable[0].to("cuda")]
        samples = head.sample(0, boxes, batch)
        again = head.sample(1, head.refine(0, samples, torch.rand(32, 1, 4, device="cuda"), batch), batch)
        assert again[0].boxes.shape == (32, 4)


def test_stages_as_a_cpu_takes_them_detect_the_same():
    head, features = make_head().eval(), make_features()
    with torch.inference_mode():
        before = head.detect(features, [make_proposals()], make_batch())[0]
        after = prepare_on_cpu(head).detect(features, [make_proposals()], make_batch())[0]
    assert all(isinstance(stage.shared_fcs[0], nn.Conv2d) for stage in head.bbox_head)
    torch.testing.assert_close(after.boxes, before.boxes, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(after.scores, before.scores, rtol=1e-3, atol=1e-4)


def test_stages_are_as_many_in_every_argument():
    with pytest.raises(UsageError, match=r"2 stages \(stage_ious\) has 2 stage_stds, 3 stage_weights"):
        make_stages(loss_weights=(1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="3 mask_stages"):
        make_stages(num_masks=3)


def test_heads_of_other_second_stages_are_refused():
    with pytest.raises(UsageError, match="bbox_head=conv_fc`"):
        make_stages(bbox_head="conv_fc_cls")
    with pytest.raises(UsageError, match="shared_head=false"):
        make_stages(trunk=replace(TRUNK, shared_head=nn.Identity()))
