import json

import cv2
import pytest
import torch
from rich.console import Console

from detcli.config import resolve
from detcli.engine.checkpoint import open_checkpoint, save_checkpoint
from detcli.engine.optimizer import LearningRate
from detcli.engine.train import free_folder, train
from detcli.errors import DetcliError
from detcli.structures import ClassMap

STEPS = 6
SMALL = [
    "data.args.train_images=12",
    "data.args.val_images=4",
    "data.workers=0",
    "train.batch=2",
    "eval.show=2",
    f"sched.length={STEPS}",
    "model.neck.out_channels=32",
    "model.score_threshold=0.001",
]


def config_of(*settings, target="atss"):
    flags = {"data.source": "shapes"}
    return resolve(target, backbone="r18", sched="demo", settings=[*SMALL, *settings], flags=flags).config


@pytest.fixture
def console(tmp_path):
    with (tmp_path / "console.txt").open("w") as file:
        yield Console(file=file, width=200)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_the_readme_says(tmp_path, console):
    folder = tmp_path / "run"
    evaluation = train(config_of("train.eval_every=3"), folder, console)
    written = json.loads((folder / "metrics.json").read_text())
    assert written["box_AP"] == evaluation.metrics["box_AP"]
    assert {"box_AP", "box_AP50", "box_AP75", "per_class", "notes"} <= written.keys()
    assert [line["iter"] for line in lines(folder) if line["kind"] == "eval"] == [3, 6]
    last = [line for line in lines(folder) if line["kind"] == "train"][-1]
    assert last["iter"] == STEPS
    assert {
        "loss",
        "loss_cls",
        "loss_bbox",
        "lr",
        "epoch",
        "images_per_second",
        "data_share",
        "memory_gb",
    } <= last.keys()
    for name in ("losses.png", "ap.png", "pictures/all.png"):
        assert cv2.imread(str(folder / name)) is not None
    assert len(list((folder / "pictures").glob("*.png"))) == 3
    assert all(result["category_id"] in {1, 2, 3, 4} for result in json.loads((folder / "results.json").read_text()))
    checkpoint = open_checkpoint(folder / "last.safetensors")
    assert checkpoint.training["step"] == STEPS
    assert open_checkpoint(folder / "best.safetensors").training is None


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("train.ema=0.9", "optim.name=sgd", "optim.lr=0.01"),
        ("train.accumulate=2", "data.workers=1"),
    ],
    ids=["adamw", "sgd-ema", "accumulate-worker"],
)
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, console, monkeypatch, settings):
    config = config_of("train.eval_every=4", *settings)
    train(config, tmp_path / "straight", console)

    def interrupted(self, optimizer, step, apply=LearningRate.apply):
        if step == 5:
            raise KeyboardInterrupt
        return apply(self, optimizer, step)

    with monkeypatch.context() as patch:
        patch.setattr(LearningRate, "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped", console)
    checkpoint = open_checkpoint(tmp_path / "stopped" / "last.safetensors")
    assert checkpoint.training["step"] == 4
    train(config, tmp_path / "stopped", console, resume=checkpoint)

    straight = open_checkpoint(tmp_path / "straight" / "last.safetensors")
    resumed = open_checkpoint(tmp_path / "stopped" / "last.safetensors")
    for ours, theirs in (
        (straight.weights(), resumed.weights()),
        (straight.training_tensors(), resumed.training_tensors()),
    ):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert [line["iter"] for line in lines(tmp_path / "stopped") if line["kind"] == "eval"] == [4, 6]


def test_bf16_trains_in_float32_weights(tmp_path, console):
    sizes = ("data.resize=[[64,64]]", "data.test_resize=[64,64]", "sched.length=1")
    evaluation = train(config_of("train.precision=bf16", *sizes), tmp_path / "run", console)
    assert "box_AP" in evaluation.metrics
    weights = open_checkpoint(tmp_path / "run" / "last.safetensors").weights()
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, console):
    with pytest.raises(DetcliError, match=r"the loss is (nan|inf) at iteration \d+; .*Try a lower --lr"):
        train(config_of("optim.name=sgd", "optim.lr=1e20", "optim.clip_norm=null"), tmp_path / "run", console)
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_early_stop_ends_a_run_that_does_not_improve(tmp_path, console):
    config = config_of("train.eval_every=1", "train.early_stop=2", "sched.length=9", "model.score_threshold=0.999")
    train(config, tmp_path / "run", console)
    evaluations = [line["iter"] for line in lines(tmp_path / "run") if line["kind"] == "eval"]
    assert evaluations == [1, 2, 3]


def test_weights_of_other_classes_are_refused_by_name(tmp_path, console):
    path = tmp_path / "pets.safetensors"
    save_checkpoint(path, {}, config_of(), ClassMap(("cat", "dog"), (1, 2)))
    with pytest.raises(DetcliError, match=r"other classes \(cat, dog\) than those of the data \(circle, square"):
        train(config_of(f"weights={path}"), tmp_path / "run", console)


def test_a_folder_with_a_run_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DetcliError, match="already holds a run"):
        free_folder(tmp_path, overwrite=False)
    free_folder(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_missing_device_is_named(tmp_path, console):
    with pytest.raises(DetcliError, match="device 'cuda:77' is not there"):
        train(config_of("train.device='cuda:77'"), tmp_path / "run", console)
