import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import max_iou
from detcli.nn.box_coders import DeltaBoxCoder
from detcli.nn.losses import cross_entropy, l1
from detcli.nn.rpn_head import ProposalLimits, RPNHead, RPNOutputs
from detcli.nn.samplers import RandomSampler
from detcli.structures import Batch, Target

STRIDES = (8, 16)


def make_head(border=None, divisor="sampled", num=64):
    torch.manual_seed(0)
    return RPNHead(
        16,
        16,
        AnchorGenerator(STRIDES, scales=[4]),
        DeltaBoxCoder(),
        max_iou(positive=0.7, negative=0.3, min_positive=0.3),
        RandomSampler(num, 0.5),
        cross_entropy(sigmoid=True),
        l1(),
        border=border,
        divisor=divisor,
        train_limits=ProposalLimits(nms_pre=50, max_per_image=20),
        test_limits=ProposalLimits(nms_pre=30, max_per_image=10),
        nms_threshold=0.7,
    )


def make_features(count=2, side=96):
    torch.manual_seed(1)
    return [torch.randn(count, 16, side // stride, side // stride) for stride in STRIDES]


def make_batch(boxes, sizes=((96, 96), (96, 96))):
    targets = [Target(torch.tensor(image).view(-1, 4), torch.zeros(len(image), dtype=torch.long)) for image in boxes]
    return Batch(torch.zeros(len(sizes), 3, 96, 96), torch.tensor(sizes), targets)


OBJECTS = [[[10.0, 10.0, 44.0, 40.0], [50.0, 48.0, 80.0, 90.0]], [[20.0, 20.0, 60.0, 60.0]]]


def logit_gradients(head, batch):
    """Return which anchors [N,A] the objectness loss looks at."""
    outputs = head(make_features())
    for level in outputs.logits:
        level.retain_grad()
    head.losses(outputs, batch)["loss_rpn_cls"].backward()
    return torch.cat([level.grad for level in outputs.logits], dim=1) != 0, torch.cat(outputs.anchors)


def test_proposals_are_best_first_inside_their_own_image_and_limited():
    head = make_head()
    sizes = torch.tensor([[96, 96], [50, 70]])
    for train, limit in ((True, 20), (False, 10)):
        proposals = head.train(train).propose(head(make_features()), sizes)
        for image, (height, width) in zip(proposals, sizes.tolist(), strict=True):
            assert 0 < len(image) <= limit
            assert (image.scores.diff() <= 0).all()
            assert image.boxes.min() >= 0
            assert image.boxes[:, 2].max() <= width
            assert image.boxes[:, 3].max() <= height
            assert (image.boxes[:, 2:] > image.boxes[:, :2]).all()
            assert (image.labels == 0).all()
        assert len(proposals[0]) == limit


def test_one_image_does_not_change_the_proposals_of_another():
    head = make_head().eval()
    features = make_features()
    sizes = torch.tensor([[96, 96], [50, 70]])
    both = head.propose(head(features), sizes)
    for index, image in enumerate(both):
        alone = head.propose(head([level[index : index + 1] for level in features]), sizes[index : index + 1])[0]
        assert torch.allclose(alone.boxes, image.boxes, atol=1e-4)


@pytest.mark.parametrize("border", [None, 0, 8])
def test_anchors_beyond_the_border_are_not_trained(border):
    trained, anchors = logit_gradients(make_head(border, num=10000), make_batch(OBJECTS))
    reach = torch.cat([-anchors[:, :2], anchors[:, 2:] - 96], dim=1).amax(1)
    if border is None:
        assert trained[:, reach > 0].float().mean() > 0.9  # all but those between the thresholds
    else:
        assert not trained[:, reach > border].any()
        assert trained[:, reach < border].any()


@pytest.mark.parametrize("train_padding", [False, True])
def test_anchors_on_the_padding_of_a_smaller_image_are_trained_where_asked(train_padding):
    head = make_head(num=10000)
    head.train_padding = train_padding
    trained, _ = logit_gradients(head, make_batch(OBJECTS, ((96, 96), (64, 64))))
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    padding = ((rows >= 8) | (columns >= 8)).flatten().repeat_interleave(3)
    assert trained[0, :432][padding].any()
    assert trained[1, :432][padding].any() == train_padding


def test_anchors_of_detectron_may_end_at_the_border():
    head = make_head(border=0, num=10000)
    head.anchors = AnchorGenerator((16,), ratios=(1.0,), scales=(2,), style="detectron")
    anchors = head.anchors([(4, 6)], "cpu")[0]  # 32 x 32 pixels, the first from -8 to 24
    trained = head._trained(anchors, [(4, 6)], torch.tensor([[64, 88]]))[0].view(4, 6)
    assert trained.nonzero().tolist() == [[row, column] for row in (1, 2) for column in (1, 2, 3, 4)]


def test_divisor_is_the_number_of_samples_or_the_capacity():
    outputs = make_head()(make_features())
    batch = make_batch(OBJECTS)
    torch.manual_seed(0)
    sampled = make_head(divisor="sampled").losses(outputs, batch)
    torch.manual_seed(0)
    capacity = make_head(divisor="capacity", num=64).losses(outputs, batch)
    for name, loss in sampled.items():  # 64 anchors of both images are sampled
        assert float(loss) == pytest.approx(float(capacity[name]), rel=1e-5)
    everything = make_head(divisor="capacity", num=10000).losses(outputs, batch)
    assert float(everything["loss_rpn_cls"]) < 0.2 * float(sampled["loss_rpn_cls"])


def test_images_without_objects_teach_background():
    losses = make_head().losses(make_head()(make_features()), make_batch([[], []]))
    assert float(losses["loss_rpn_bbox"]) == 0
    assert 0.6 < float(losses["loss_rpn_cls"]) < 0.8  # of logits near 0


def test_losses_do_not_wait_for_the_device():
    """Fake tensors have no values: whatever depends on one raises."""
    head = make_head()
    with FakeTensorMode(allow_non_fake_inputs=True):
        sizes = [(12, 12), (6, 6)]
        anchors = head.anchors(sizes, "cuda")
        outputs = RPNOutputs(
            [torch.randn(2, len(level), device="cuda") for level in anchors],
            [torch.randn(2, len(level), 4, device="cuda") for level in anchors],
            anchors,
            sizes,
        )
        losses = head.losses(outputs, make_batch(OBJECTS).to("cuda"))
        assert {name: loss.shape for name, loss in losses.items()} == {
            "loss_rpn_cls": (),
            "loss_rpn_bbox": (),
        }
