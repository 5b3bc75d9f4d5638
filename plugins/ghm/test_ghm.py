"""The counts of gradients that GHM's losses keep, and what they need of heads."""

import pytest
import torch

from detcli.config import resolve
from detcli.errors import UsageError
from detcli.nn.dense_heads import loss_of_levels
from detcli.registry import build
from detcli.testing import random_batch


def shares_one_by_one(lengths, counted, bins, momentum, average):
    """Return each sample's share in the loss, by one bin after the other; `average` of the counts is moved on."""
    which = [
        [at for at, length in enumerate(lengths) if counted[at] and int(length * bins) == bin] for bin in range(bins)
    ]
    filled = sum(bool(members) for members in which)
    shares = [0.0] * len(lengths)
    for bin, members in enumerate(which):
        if members:
            average[bin] = momentum * average[bin] + (1 - momentum) * len(members)
        for at in members:
            shares[at] = 1 / average[bin] / filled
    return shares


def test_counts_move_from_call_to_call():
    loss = build("losses", {"name": "ghm_c", "bins": 10, "momentum": 0.75, "weight": 2.0})
    random = torch.Generator().manual_seed(0)
    average = [0.0] * 10
    for _ in range(3):
        logits = torch.randn(20, 3, generator=random) * 2
        labels = torch.randint(0, 4, (20,), generator=random)
        weight = (torch.rand(20, generator=random) < 0.8).float()
        goals = torch.nn.functional.one_hot(labels, 4)[:, :3].float()
        lengths = (logits.sigmoid() - goals).abs().flatten().tolist()
        shares = shares_one_by_one(lengths, weight.repeat_interleave(3).bool().tolist(), 10, 0.75, average)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, goals, reduction="none").flatten()
        expected = 2.0 * (entropy * torch.tensor(shares)).sum()
        torch.testing.assert_close(loss(logits, labels, weight, 7.0), expected, rtol=1e-5, atol=0)
        assert loss.acc_sum.tolist() == pytest.approx(average, rel=1e-6)


def test_counts_are_in_the_checkpoint_where_they_move():
    head = build("models", resolve("ghm", backbone="r18").config.model, num_classes=3).bbox_head
    names = {name for name in head.state_dict() if name.startswith("loss_")}
    assert names == {f"{loss}.{name}" for loss in ("loss_cls", "loss_bbox") for name in ("edges", "acc_sum")}
    assert set(build("losses", {"name": "ghm_r", "momentum": 0.0}).state_dict()) == {"edges"}


def test_levels_are_counted_one_after_another():
    random = torch.Generator().manual_seed(0)
    pred, target, weight = torch.randn(2, 30, 4, generator=random), torch.zeros(2, 30, 4), torch.ones(2, 30)
    config = {"name": "ghm_r", "momentum": 0.7}
    together, apart, levels = (build("losses", config) for _ in range(3))
    value = loss_of_levels(levels, [20, 10], pred, target, weight, 1.0)
    expected = sum(
        apart(pred[:, level].flatten(0, 1), target[:, level].flatten(0, 1), weight[:, level].flatten())
        for level in (slice(0, 20), slice(20, 30))
    )
    torch.testing.assert_close(value, expected)
    assert torch.equal(levels.acc_sum, apart.acc_sum)
    assert value > 1.1 * together(pred.flatten(0, 1), target.flatten(0, 1), weight.flatten())


def test_many_samples_are_counted_exactly():
    """A float32 that is counted up by ones stays at 2**24."""
    loss = build("losses", {"name": "ghm_r", "momentum": 0.5})
    loss.harmonised(torch.zeros(2**24 + 64), torch.ones(1, dtype=torch.bool))
    assert loss.acc_sum[0] == 2**23 + 32


def test_what_is_not_finite_gives_a_loss_that_is_not():
    """Training stops at such a loss and says at which batch."""
    logits = torch.tensor([[0.0, torch.nan]])
    assert build("losses", "ghm_c")(logits, torch.tensor([0])).isnan()
    assert build("losses", "ghm_r")(logits, torch.zeros(1, 2)).isnan()


def test_of_no_samples_the_loss_is_0():
    pred = torch.randn(5, 4, requires_grad=True)
    loss = build("losses", "ghm_r")(pred, torch.zeros(5, 4), torch.zeros(5))
    loss.backward()
    assert loss == 0
    assert not pred.grad.any()


def test_the_overlay_trains_retinanet():
    torch.manual_seed(0)
    config = resolve("ghm", backbone="r18", settings=["model.neck.out_channels=32", "weights=none"]).config
    assert config.optim.clip_norm == 35.0
    model = build("models", config.model, num_classes=3)
    losses = model(random_batch())
    assert all(losses[name] > 0 for name in ("loss_cls", "loss_bbox"))
    assert model.bbox_head.loss_cls.acc_sum.sum() > 0


def test_an_rpn_refuses_them():
    with pytest.raises(UsageError, match="the RPN's loss of classes must be a loss of single elements"):
        build("models", resolve("rpn", settings=["model.rpn_head.loss_cls=ghm_c"]).config.model, num_classes=1)
