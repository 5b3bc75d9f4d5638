import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from detcli.errors import DetcliError
from detcli.nn.assigners import max_iou
from detcli.nn.box_coders import DeltaBoxCoder
from detcli.nn.losses import cross_entropy, giou, l1
from detcli.nn.roi_extractor import single_level
from detcli.nn.roi_head import BBoxHead, MaskHead, RoIHead, RoISample, to_rois
from detcli.nn.samplers import RandomSampler
from detcli.structures import Batch, Target

STRIDES = (4, 8)
CLASSES = 3


def make_head(masks=False, decode=False, num=32):
    torch.manual_seed(0)
    boxes = BBoxHead(
        8,
        7,
        CLASSES,
        DeltaBoxCoder(stds=(0.1, 0.1, 0.2, 0.2)),
        cross_entropy(),
        giou() if decode else l1(),
        channels=16,
        decode_before_loss=decode,
    )
    torch.nn.init.normal_(boxes.fc_cls.weight)
    return RoIHead(
        single_level(strides=STRIDES),
        boxes,
        max_iou(positive=0.5, negative=0.5, min_positive=0.5),
        RandomSampler(num, 0.25, add_gt=True),
        mask_roi_extractor=single_level(strides=STRIDES, output_size=14),
        mask_head=MaskHead(8, CLASSES, channels=8, num_convs=2) if masks else None,
        score_threshold=0.05,
        nms_threshold=0.5,
        max_per_image=10,
    )


def make_features(count=2, side=64):
    torch.manual_seed(1)
    return [torch.randn(count, 8, side // stride, side // stride) for stride in STRIDES]


def make_target(boxes, labels, masks=True):
    boxes = torch.tensor(boxes).view(-1, 4)
    bitmaps = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
    for bitmap, (left, top, right, bottom) in zip(bitmaps, boxes.long().tolist(), strict=True):
        bitmap[top:bottom, left : (left + right) // 2] = 1
    return Target(boxes, torch.tensor(labels, dtype=torch.long), bitmaps if masks else None)


def make_batch(masks=True):
    targets = [
        make_target([[4.0, 4.0, 30.0, 34.0], [30.0, 20.0, 60.0, 60.0]], [0, 2], masks),
        make_target([], [], masks),
    ]
    return Batch(torch.zeros(2, 3, 64, 64), torch.tensor([[64, 64], [48, 64]]), targets)


def make_proposals(count=40):
    torch.manual_seed(2)
    corners = torch.rand(2, count, 2) * 40
    return list(torch.cat([corners, corners + 4 + torch.rand(2, count, 2) * 16], dim=-1))


def mask_loss(head, features, samples, batch):
    positives = [sample.possible_positives() for sample in samples]
    rois = head._pool(head.mask_roi_extractor, features, [sample.boxes for sample in positives])
    return head.mask_head.losses(rois, positives, batch.targets)["loss_mask"]


def test_rois_carry_the_index_of_their_image():
    rois = to_rois([torch.ones(2, 4), torch.zeros(0, 4), torch.full((1, 4), 7.0)])
    assert rois.tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [2, 7, 7, 7, 7]]


def test_ground_truth_is_among_the_sampled_rois():
    head, batch = make_head(), make_batch()
    sample = head._sample(make_proposals()[1], batch.targets[0])  # far from any object
    assert len(sample.boxes) == 32
    chosen = sample.boxes[sample.positive]
    assert {tuple(box) for box in batch.targets[0].boxes.tolist()} <= {tuple(box) for box in chosen.tolist()}
    assert set(sample.labels[sample.positive].tolist()) == {0, 2}
    assert (sample.labels[~sample.positive] == CLASSES).all()
    assert torch.equal(sample.objects[~sample.positive], sample.boxes[~sample.positive])


def test_losses_of_images_without_objects_or_proposals_are_finite():
    head, features = make_head(masks=True), make_features()
    no_objects = Batch(torch.zeros(2, 3, 64, 64), torch.tensor([[64, 64]] * 2), [make_target([], [])] * 2)
    for proposals in (make_proposals(), [torch.zeros(0, 4)] * 2):
        losses = head.losses(features, proposals, no_objects)
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert float(losses["loss_bbox"]) == float(losses["loss_mask"]) == 0
    losses = head.losses(features, [torch.zeros(0, 4)] * 2, make_batch())
    assert all(float(loss) > 0 for loss in losses.values())  # the ground truth itself is trained on


def test_decoded_boxes_lose_nothing_where_they_are_the_objects():
    head = make_head(decode=True)
    target = make_target([[8.0, 8.0, 40.0, 40.0]], [1])
    batch = Batch(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]), [target])
    with torch.no_grad():
        head.bbox_head.fc_reg.weight.zero_()  # no shift: boxes stay their RoIs
    features = [level[:1] for level in make_features()]
    assert float(head.losses(features, [target.boxes], batch)["loss_bbox"]) == pytest.approx(0, abs=1e-6)
    beside = target.boxes + torch.tensor([4.0, 0.0, 4.0, 0.0])
    # 1 - GIoU of one of two positives, over two RoIs
    assert float(head.losses(features, [beside], batch)["loss_bbox"]) == pytest.approx((1 - 28 / 36) / 2)


@pytest.mark.parametrize("decode", [False, True])
def test_an_roi_without_area_is_background_and_leaves_losses_finite(decode):
    head, features, batch = make_head(decode=decode), make_features(), make_batch(masks=False)
    flat = torch.tensor([[50.0, 10.0, 50.0, 10.0], [8.0, 9.0, 30.0, 9.0]])
    losses = head.losses(features, [flat, flat], batch)
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in head.bbox_head.parameters())


def test_mask_loss_is_the_mean_over_positives():
    head, features, batch = make_head(masks=True), make_features(), make_batch()
    torch.manual_seed(0)
    samples = [head._sample(*pair) for pair in zip(make_proposals(), batch.targets, strict=True)]
    loss = mask_loss(head, features, samples, batch)
    positives = samples[0].possible_positives()
    logits = head.mask_head(head._pool(head.mask_roi_extractor, features, [positives.boxes]), positives.labels)
    values = []
    for box, index, logit in zip(positives.boxes, positives.gt_index, logits, strict=True):
        if not torch.equal(box, batch.targets[0].boxes[index]):
            continue
        goal = torch.zeros(28, 28)  # the left half of an object is its mask
        goal[:, :14] = 1
        values.append(torch.nn.functional.binary_cross_entropy_with_logits(logit, goal))
    assert len(values) == len(positives.boxes) == 2
    assert float(loss) == pytest.approx(float(sum(values) / 2), rel=1e-4)


def test_rows_that_are_no_positives_have_no_weight_in_the_mask_loss(monkeypatch):
    head, features, batch = make_head(masks=True), make_features(), make_batch()
    samples = [head._sample(*pair) for pair in zip(make_proposals(), batch.targets, strict=True)]
    least = mask_loss(head, features, samples, batch)
    monkeypatch.setattr(RoISample, "positive_rows", lambda sample: slice(None))
    most = mask_loss(head, features, samples, batch)
    assert float(most) == pytest.approx(float(least), rel=1e-5)


def test_masks_are_needed_to_learn_masks():
    head = make_head(masks=True)
    with pytest.raises(DetcliError, match="the data have none"):
        head.losses(make_features(), make_proposals(), make_batch(masks=False))


def test_detections_are_those_of_each_image_alone():
    head, features, proposals, batch = (
        make_head(masks=True).eval(),
        make_features(),
        make_proposals(),
        make_batch(),
    )
    with torch.no_grad():
        both = head.detect(features, proposals, batch)
        for index, image in enumerate(both):
            part = slice(index, index + 1)
            one = Batch(batch.images[part], batch.sizes[part])
            alone = head.detect([level[part] for level in features], proposals[part], one)[0]
            assert len(image) > 0
            assert torch.equal(alone.labels, image.labels)
            assert torch.allclose(alone.boxes, image.boxes, atol=1e-4)
            assert torch.allclose(alone.mask_crops, image.mask_crops, atol=1e-5)
            assert image.mask_crops.shape == (len(image), 28, 28)
            assert image.mask_crops.min() >= 0
            assert image.mask_crops.max() <= 1
            assert (image.scores.diff() <= 0).all()
            assert image.boxes[:, 3].max() <= batch.sizes[index, 0]


def test_no_proposals_are_no_detections():
    head = make_head(masks=True).eval()
    for image in head.detect(make_features(), [torch.zeros(0, 4)] * 2, make_batch()):
        assert len(image) == 0
        assert image.mask_crops.shape == (0, 28, 28)


def test_sampling_does_not_wait_for_the_device():
    """Fake tensors have no values: whatever depends on one raises."""
    head, target = make_head(), make_batch().targets[0]
    with FakeTensorMode(allow_non_fake_inputs=True):
        sample = head._sample(torch.rand(40, 4, device="cuda"), target.to("cuda"))
        assert sample.boxes.shape == (32, 4)
        assert sample.possible_positives().boxes.shape == (8, 4)
