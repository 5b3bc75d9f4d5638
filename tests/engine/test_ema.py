import torch
from torch import nn

from detcli.engine.ema import MovingAverage


def test_average_follows_weights_and_copies_counters():
    model = nn.BatchNorm1d(2)
    average = MovingAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.num_batches_tracked.fill_(7)
    average.update(model)  # decay is min(0.5, 1/10)
    torch.testing.assert_close(average.model.weight, torch.full((2,), 1 * 0.1 + 3 * 0.9))
    assert average.model.num_batches_tracked == 7
    for _ in range(20):
        average.updates += 1
    average.update(model)  # decay has reached 0.5
    torch.testing.assert_close(average.model.weight, torch.full((2,), (2.8 + 3.0) / 2))


def test_average_has_no_gradients_and_leaves_the_model_alone():
    model = nn.Linear(2, 2)
    average = MovingAverage(model, decay=0.9)
    before = model.weight.detach().clone()
    average.update(model)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert torch.equal(model.weight, before)
