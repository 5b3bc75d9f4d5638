import copy
import json
import resource
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from rich.console import Console

from detcli.config import resolve
from detcli.data import open_dataset
from detcli.engine.checkpoint import open_checkpoint, save_checkpoint
from detcli.engine.model import build_model, initialise
from detcli.engine.optimizer import LearningRate
from detcli.engine.train import Run, free_folder, starting_point, train
from detcli.errors import DetcliError, UsageError
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
]
SHOWS_MUCH = {"atss": "model.score_threshold=0.001", "mask_rcnn": "model.roi_head.score_threshold=0.001"}


def config_of(*settings, target="atss"):
    flags = {"data.source": "shapes"}
    return resolve(
        target, backbone="r18", sched="demo", settings=[*SMALL, SHOWS_MUCH[target], *settings], flags=flags
    ).config


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
        "grad_norm",
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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_in_float32_weights(tmp_path, console, precision):
    # Three levels only: oneDNN leaves gradients in bf16 undefined where a kernel sees nothing but padding.
    sizes = ("data.resize=[[64,64]]", "data.test_resize=[64,64]", "sched.length=1", "model.neck.num_outs=3")
    evaluation = train(config_of(f"train.precision={precision}", *sizes), tmp_path / "run", console)
    assert "box_AP" in evaluation.metrics
    said = (tmp_path / "console.txt").read_text()
    assert ("--precision bf16 is sooner" in said) == (precision == "fp16")
    weights = open_checkpoint(tmp_path / "run" / "last.safetensors").weights()
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


HALF = ("train.precision=fp16", "data.resize=[[64,64]]", "data.test_resize=[64,64]", "sched.length=2")


def scaled(monkeypatch, scale):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=scale))


def test_gradients_may_overflow_while_the_scale_of_float16_settles(tmp_path, console, monkeypatch):
    scaled(monkeypatch, 2.0**60)
    train(config_of(*HALF), tmp_path / "run", console)
    assert not [line for line in lines(tmp_path / "run") if "grad_norm" in line]


def test_gradients_that_overflow_at_any_scale_stop_the_run(tmp_path, console, monkeypatch):
    scaled(monkeypatch, 1.0)
    huge = "model.loss_cls={name='focal',weight=1e30}"
    with pytest.raises(DetcliError, match="the gradient is not finite at iteration 1"):
        train(config_of(*HALF, huge), tmp_path / "run", console)


def test_a_loss_that_is_not_finite_stops_the_run_and_shows_its_pictures(tmp_path, console):
    folder = tmp_path / "run"
    with pytest.raises(
        DetcliError, match=r"the loss is not finite at iteration 2, in the batch of (\d+)\.png, "
    ) as error:
        train(config_of("optim.name=sgd", "optim.lr=1e20", "optim.clip_norm=null"), folder, console)
    assert "nothing was saved yet" in str(error.value)
    assert not (folder / "last.safetensors").exists()
    shown = sorted((folder / "not_finite").glob("*.png"))
    assert len(shown) == 2
    assert all(f"{path.stem[3:]}.png" in str(error.value) for path in shown)
    assert cv2.imread(str(shown[0])).std() > 10


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, console, monkeypatch):
    steps = iter(range(100))

    def broken(gradient):
        return gradient * (float("inf") if next(steps) == 4 else 1)

    def with_hook(config, classes):
        model = build_model(config, classes)
        model.backbone.conv1.weight.register_hook(broken)
        return model

    monkeypatch.setattr("detcli.engine.train.build_model", with_hook)
    folder = tmp_path / "run"
    with pytest.raises(
        DetcliError, match=r"the gradient is not finite at iteration 5, .*last.safetensors of iteration 3"
    ):
        train(config_of("train.eval_every=3"), folder, console)
    checkpoint = open_checkpoint(folder / "last.safetensors")
    assert checkpoint.training["step"] == 3
    assert all(value.isfinite().all() for value in checkpoint.weights().values())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, console, monkeypatch):
    folder = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, optimizer, step, apply=LearningRate.apply):
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        return apply(self, optimizer, step)

    monkeypatch.setattr(LearningRate, "apply", fill)
    try:
        with pytest.raises(DetcliError, match=r"can't write .*last.safetensors: .*Make room, then continue"):
            train(config_of("train.eval_every=3"), folder, console)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_checkpoint(folder / "last.safetensors").training["step"] == 3
    assert list(folder.glob(".*")) == []


def test_a_folder_that_cant_be_written_is_named(console):
    with pytest.raises(DetcliError, match=r"can't write to /sys/detcli: .*choose another --out"):
        train(config_of(), Path("/sys/detcli"), console)


def test_a_run_that_stopped_before_its_first_checkpoint_starts_again(tmp_path):
    with pytest.raises(UsageError, match=r"holds no run to continue\. Start one with `detcli train MODEL --out"):
        starting_point(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_of().model_dump(mode="json")))
    assert starting_point(tmp_path) == (config_of(), None)


def test_a_checkpoint_without_a_training_state_is_no_starting_point(tmp_path):
    save_checkpoint(tmp_path / "best.safetensors", {}, config_of(), ClassMap(("cat",), (1,)))
    with pytest.raises(UsageError, match="holds no training state"):
        starting_point(tmp_path / "best.safetensors")


def test_early_stop_ends_a_run_that_does_not_improve(tmp_path, console):
    config = config_of("train.eval_every=1", "train.early_stop=2", "sched.length=9", "model.score_threshold=0.999")
    train(config, tmp_path / "run", console)
    evaluations = [line["iter"] for line in lines(tmp_path / "run") if line["kind"] == "eval"]
    assert evaluations == [1, 2, 3]


def test_weights_of_other_classes_are_refused_by_name(tmp_path, console):
    path = tmp_path / "pets.safetensors"
    save_checkpoint(path, {}, config_of(), ClassMap(("cat", "dog"), (1, 2)))
    with pytest.raises(DetcliError, match=r"other classes \(cat, dog\) than .* \(circle, square, .*With --reset-head"):
        train(config_of(f"weights={path}"), tmp_path / "run", console)


@pytest.mark.parametrize(
    ("target", "anew"),
    [
        ("atss", {"bbox_head.atss_cls"}),
        (
            "mask_rcnn",
            {f"roi_head.{name}" for name in ("bbox_head.fc_cls", "bbox_head.fc_reg", "mask_head.conv_logits")},
        ),
    ],
)
def test_reset_head_starts_only_the_layers_anew_that_depend_on_classes(tmp_path, target, anew):
    config = config_of(target=target)
    torch.manual_seed(0)
    pets = ClassMap(("cat", "dog"), (1, 2))
    pretrained = build_model(config, 2)
    path = tmp_path / "pets.safetensors"
    save_checkpoint(path, pretrained.state_dict(), config, pets)

    config = config_of(f"weights={path}", "reset_head=true", target=target)
    model = build_model(config, 4)
    fresh = copy.deepcopy(model.state_dict())
    told = initialise(model, config, ClassMap(("circle", "square", "triangle", "star"), (1, 2, 3, 4)))
    loaded = {}
    for name, value in model.state_dict().items():
        layer = name.rpartition(".")[0]
        theirs = fresh[name] if layer in anew else pretrained.state_dict()[name]
        loaded[layer] = loaded.get(layer, True) and torch.equal(value, theirs)
    assert all(loaded.values())
    assert told.startswith(f"weights of {path}, but random ones for ")
    assert set(told.partition(" for ")[2].split(", ")) == anew


def test_another_normalisation_than_that_of_the_weights_is_pointed_out(tmp_path):
    path = tmp_path / "shapes.safetensors"
    config = config_of("input.mean=[1,2,3]")
    model, classes = build_model(config, 1), ClassMap(("circle",), (1,))
    save_checkpoint(path, model.state_dict(), config, classes)
    with pytest.warns(UserWarning, match=r"was trained with input.mean \(1.0, 2.0, 3.0\), this run has \(123"):
        initialise(model, config_of(f"weights={path}"), classes)


def test_a_folder_with_a_run_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DetcliError, match="already holds a run"):
        free_folder(tmp_path, overwrite=False)
    free_folder(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_evaluator_that_does_not_fit_is_found_before_training(tmp_path, console):
    with pytest.raises(DetcliError, match=r"not LVIS'.*--evaluator faster"):
        train(config_of("eval.evaluator=lvis"), tmp_path / "run", console)
    assert not list(tmp_path.glob("run/*.safetensors"))
    assert not list(tmp_path.glob("run/metrics.jsonl"))


def test_what_will_not_be_measured_is_said_before_training(console):
    config = config_of()
    val, model = open_dataset(config.data, "val", config.input), SimpleNamespace(tasks=("box", "keypoint"))
    Run._check_evaluator(SimpleNamespace(val=val, model=model, config=config, console=console))
    console.file.flush()
    assert Path(console.file.name).read_text() == "note: keypoint AP will not be measured: the data have no keypoints\n"


def test_a_missing_device_is_named(tmp_path, console):
    with pytest.raises(DetcliError, match="device 'cuda:77' is not there"):
        train(config_of("train.device='cuda:77'"), tmp_path / "run", console)
