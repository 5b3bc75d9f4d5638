import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from detcli.config import OptimConfig, ScheduleConfig
from detcli.engine.optimizer import LearningRate, build_optimizer, parameter_groups, scaled_lr

RATES = json.loads(gzip.decompress((Path(__file__).parent / "data/detectron2_learning_rates.json.gz").read_bytes()))


@pytest.mark.parametrize("name", sorted(RATES))
def test_step_schedule_gives_detectron2_learning_rates(name):
    _, lr, drops, length, warmup, ratio, gamma, _ = RATES[name]["settings"]
    sched = ScheduleConfig(
        unit="iter",
        length=length,
        drops=drops,
        gamma=gamma,
        warmup="linear",
        warmup_iters=warmup,
        warmup_ratio=ratio,
    )
    rate = LearningRate(sched, steps_per_epoch=7)
    expected = RATES[name]["lr_at_iteration"]
    assert {step: lr * rate.factor(int(step)) for step in expected} == pytest.approx(expected, rel=1e-9)


def test_epochs_count_in_steps_of_the_data():
    rate = LearningRate(ScheduleConfig(length=12, drops=[8, 11], warmup="none"), steps_per_epoch=100)
    assert rate.total == 1200
    factors = [rate.factor(step) for step in (0, 799, 800, 1099, 1100, 1199)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_warmup_ends_at_once():
    rate = LearningRate(ScheduleConfig(warmup="constant", warmup_iters=5, warmup_ratio=0.25, drops=[]), 100)
    assert [rate.factor(step) for step in (0, 4, 5)] == [0.25, 0.25, 1.0]


def test_cosine_falls_to_its_floor():
    sched = ScheduleConfig(unit="iter", length=100, policy="cosine", min_lr_ratio=0.1, warmup="none")
    rate = LearningRate(sched, 1)
    assert [rate.factor(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.55, 0.1])


def test_learning_rate_is_linear_in_the_batch():
    assert scaled_lr(OptimConfig(lr=0.02, batch=16), 4) == pytest.approx(0.005)
    assert scaled_lr(OptimConfig(lr=0.02, batch=0), 4) == 0.02


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_groups_follow_backbone_norm_and_bias_settings():
    model = Tiny()
    optim = OptimConfig(weight_decay=0.1, norm_decay=0.0, bias_decay=0.01, bias_lr=2.0, backbone_lr=0.5)
    groups = parameter_groups(model, optim, lr=1.0)
    found = {id(p): (group["base_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    expected = {
        "backbone.0.weight": (0.5, 0.1),
        "backbone.0.bias": (1.0, 0.01),
        "backbone.1.weight": (0.5, 0.0),
        "backbone.1.bias": (0.5, 0.0),
        "head.0.weight": (1.0, 0.1),
        "head.0.bias": (2.0, 0.01),
        "head.1.weight": (1.0, 0.0),
        "head.1.bias": (1.0, 0.0),
    }
    names = {name: found.get(id(p)) for name, p in model.named_parameters() if p.requires_grad}
    assert names == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizer_takes_the_rate_of_the_step(name, kind):
    optimizer = build_optimizer(Tiny(), OptimConfig(name=name, backbone_lr=0.1), lr=1.0)
    assert isinstance(optimizer, kind)
    LearningRate(ScheduleConfig(warmup="constant", warmup_iters=5, warmup_ratio=0.5), 10).apply(optimizer, 0)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.05, 0.5])
