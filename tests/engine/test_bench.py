import json
import re
import time

import pytest
import torch

from detcli.cli.bench import bench as command
from detcli.config import resolve
from detcli.data.proposals import write_proposals
from detcli.data.shapes import shapes
from detcli.engine import bench as module
from detcli.engine.bench import DRAWN, bench, warm_up
from detcli.engine.checkpoint import open_checkpoint, save_checkpoint
from detcli.engine.model import build_model
from detcli.engine.train import Run
from detcli.errors import DetcliError, UsageError
from detcli.structures import ClassMap

SMALL = {
    "data.source": "shapes",
    "data.args": DRAWN,
    "data.resize": [(96, 64)],
    "data.test_resize": (96, 64),
    "data.workers": 0,
    "train.batch": 2,
    "train.device": "cpu",
}


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config():
    return resolve("atss", backbone="r18", flags=SMALL).config


def test_it_measures_training_inference_and_memory_and_writes_a_run(config, tmp_path):
    calls = []
    measured = bench(config, tmp_path, iters=2, images=1, advance=lambda: calls.append(1))
    assert len(calls) == warm_up(2) + 2 + warm_up(1) + 1
    assert measured.train_speed > 0
    assert measured.inference_speed > 0
    assert measured.inference_fps == 1 / measured.inference_speed
    assert 0 < measured.data_share < 1
    assert 0.1 < measured.mem < 100
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert measured.figures().items() <= metrics.items()
    assert set(measured.figures()) == {"train_speed", "inference_speed", "inference_fps", "mem"}
    details = json.loads((tmp_path / "bench.json").read_text())
    assert (details["batch"], details["precision"], details["iters"], details["images"]) == (2, "fp32", 2, 1)
    assert details["machine"]
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["weights"] == "none"
    assert written["model"]["backbone"]["frozen_stages"] == 1, "what the recipe freezes stays frozen"


def test_steps_for_warming_up_do_not_count_and_waiting_for_data_does(config, tmp_path, monkeypatch):
    run = Run(config.model_copy(update={"weights": "none"}), tmp_path, module.Console(quiet=True), CPU, None)
    now = 0.0
    computing = iter([*[100.0] * warm_up(4), *[2.0] * 4])

    def pass_time(seconds):
        nonlocal now
        now += seconds

    def step(run, batches, meter):
        meter.timed(pass_time(seconds) for seconds in [1.0])
        pass_time(next(computing))

    monkeypatch.setattr(Run, "_step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert module._train(run, 4, lambda: None) == (3.0, 1 / 3)


def test_the_model_is_as_large_as_for_coco():
    assert [category.name for category in shapes(split="val", unused_classes=2).categories[3:]] == [
        "star",
        "unused 1",
        "unused 2",
    ]
    assert len(shapes(split="val", **{key: DRAWN[key] for key in ("size", "unused_classes")}).categories) == 80


def test_a_checkpoint_is_measured_with_its_own_weights_and_keeps_its_ap(config, tmp_path, monkeypatch):
    classes = ClassMap(("circle", "square", "triangle", "star"), (1, 2, 3, 4))
    own = config.model_copy(update={"data": config.data.model_copy(update={"args": {}})})
    path = tmp_path / "run" / "best.safetensors"
    path.parent.mkdir()
    save_checkpoint(path, build_model(own, 4).state_dict(), own, classes, {"box_AP": 12.5})
    used = []
    load = module.load_model
    monkeypatch.setattr(
        module, "load_model", lambda checkpoint, *rest: used.append(checkpoint) or load(checkpoint, *rest)
    )
    bench(own, tmp_path / "out", iters=1, images=1, checkpoint=open_checkpoint(path))
    assert [checkpoint.path for checkpoint in used] == [path]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["box_AP"] == 12.5


def test_a_model_that_takes_proposals_has_those_of_its_file(tmp_path):
    path = str(tmp_path / "proposals.safetensors")
    boxes = torch.tensor([[10.0, 10.0, 200.0, 150.0], [50.0, 60.0, 300.0, 400.0]])
    write_proposals(path, ((image_id, boxes, torch.tensor([0.9, 0.8])) for image_id in (1, 2)))
    flags = {
        **SMALL,
        "data.args": {**DRAWN, "train_images": 2, "val_images": 2},
        "data.proposals": path,
        "data.val_proposals": path,
        "model.roi_head.score_threshold": 0.0,
    }
    config = resolve("fast_rcnn", backbone="r18", flags=flags).config
    calls = []
    measured = bench(config, tmp_path / "out", iters=1, images=5, advance=lambda: calls.append(1))
    assert len(calls) == warm_up(1) + 1 + warm_up(5) + 5
    assert measured.detections > 0


def test_the_command_prints_what_was_measured_on_what(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command("atss", backbone="r18", size=64, iters=1, images=1, batch=2, workers=0, device="cpu", precision="bf16")
    text = capsys.readouterr().out
    assert "atss, random weights" in text
    assert "; bf16; torch " in text
    assert "mean of 1 steps of 2 images" in text
    assert "one at a time within 107x64" in text
    assert re.search(r"\d s/iter.*\n.*\d s/im, .*\d img/s.*\n.*\d GB: peak of training\n", text)
    with pytest.raises(DetcliError, match="runs/bench_atss already holds figures"):
        command("atss", backbone="r18", size=64)


def test_a_training_run_is_never_replaced(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(DetcliError, match="holds a training run"):
        command("atss", out=tmp_path, overwrite=True)


def test_what_is_neither_recipe_nor_checkpoint_gives_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'atss'"):
        command("atts")
    with pytest.raises(DetcliError, match="there is no checkpoint"):
        command(str(tmp_path / "missing.safetensors"))
