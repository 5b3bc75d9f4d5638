"""How fast a model trains and detects on this machine, as model zoos measure it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detcli.config import RunConfig, revise
from detcli.engine.checkpoint import Checkpoint
from detcli.engine.device import find_device, machine, make_current, memory_in_use
from detcli.engine.evaluate import detect_in
from detcli.engine.model import load_model, prepare
from detcli.engine.predictor import Predictor
from detcli.engine.train import Run
from detcli.errors import DetcliError
from detcli.eval.report import write_metrics
from detcli.files import write_text_whole
from detcli.structures import Detections

DRAWN = {"size": (640, 480), "unused_classes": 76}
"""What is drawn where no data are given: pictures of the size that those of COCO have, with as many classes."""

WARM_UP = 0.2
"""Steps and pictures before those that count, as a share of these; two at least."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, and on what.

    `train_speed` is in seconds a step, `inference_speed` in seconds a picture, `inference_fps` in pictures a second,
    `mem` is the peak of training in GB. `batch` is the number of pictures a step, `data_share` the share of a step that
    was spent waiting for data, `detections` their mean number a picture.
    """

    train_speed: float
    inference_speed: float
    inference_fps: float
    mem: float
    batch: int
    iters: int
    images: int
    data_share: float
    detections: float
    machine: str
    precision: str
    torch: str

    def figures(self) -> dict[str, float]:
        """Return what the tables of model zoos have, by their names for it."""
        return {name: getattr(self, name) for name in ("train_speed", "inference_speed", "inference_fps", "mem")}


def bench(
    config: RunConfig,
    folder: Path,
    *,
    iters: int,
    images: int,
    checkpoint: Checkpoint | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Measured:
    """Measure the model of `config` and write config.json, bench.json and metrics.json into `folder`.

    Training: the mean of `iters` steps, loading of data included. Inference: the mean of `images` pictures, one at a
    time, from pixels to boxes and masks in the picture's size. Training starts from random weights, with frozen what
    the recipe freezes; with a `checkpoint`, inference is that of its model. `advance` is called after each step and
    picture, those for warming up included (see `warm_up`).

    Raises `DetcliError` as `detcli.engine.train.train` does.
    """
    device = find_device(config.train.device)
    make_current(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # Only here, not in the layers of the config: a backbone with random weights would be trained whole.
    run = Run(config.model_copy(update={"weights": "none"}), folder, Console(quiet=True), device, None)
    train_speed, data_share = _train(run, iters, advance)
    mem = memory_in_use(device) / 1e9
    precision = config.train.precision
    if checkpoint:
        model, classes = load_model(checkpoint, config, device, precision), checkpoint.classes
    else:
        model, classes = prepare(run.model, device, precision, config.train.channels_last), run.classes
    predictor = Predictor.of(model, config, classes, device, precision)
    inference_speed, detections = _detect(predictor, run, images, advance)
    measured = Measured(
        train_speed=train_speed,
        inference_speed=inference_speed,
        inference_fps=1 / inference_speed,
        mem=mem,
        batch=config.train.batch,
        iters=iters,
        images=images,
        data_share=data_share,
        detections=detections,
        machine=machine(device),
        precision=precision,
        torch=torch.__version__,
    )
    _write(folder, measured, checkpoint)
    return measured


def free_folder(folder: Path, overwrite: bool) -> None:
    """Make sure that `folder` holds no training run and, unless `overwrite`, no figures of this kind.

    Raises `DetcliError` where it does.
    """
    if (folder / "metrics.jsonl").exists() or list(folder.glob("*.safetensors")):
        raise DetcliError(f"{folder} holds a training run, which stays as it is. Choose another --out.")
    if (folder / "bench.json").exists() and not overwrite:
        raise DetcliError(f"{folder} already holds figures. Choose another --out, or replace them with --overwrite.")


def warm_up(count: int) -> int:
    """Return how many steps or pictures go before the `count` that are measured."""
    return max(2, round(WARM_UP * count))


def _train(run: Run, iters: int, advance: Callable[[], None]) -> tuple[float, float]:
    """Return the mean seconds of a step, and the share of it spent waiting for data."""
    steps = run.steps()
    for _ in range(warm_up(iters)):
        meter = next(steps)
        advance()
    _wait_for(run.device)
    meter.restart()
    for _ in range(iters):
        next(steps)
        advance()
    _wait_for(run.device)
    elapsed = time.perf_counter() - meter.started
    return elapsed / iters, meter.waited / elapsed


def _detect(predictor: Predictor, run: Run, images: int, advance: Callable[[], None]) -> tuple[float, float]:
    """Return the mean seconds of a picture, and the mean number of detections in it."""
    before = warm_up(images)
    found = 0
    started = 0.0
    for number, detections in enumerate(_found(predictor, run, before + images), 1):
        advance()
        if number > before:
            found += len(detections)
        elif number == before:
            _wait_for(predictor.device)
            started = time.perf_counter()
    _wait_for(predictor.device)
    return (time.perf_counter() - started) / images, found / images


def _found(predictor: Predictor, run: Run, count: int) -> Iterator[Detections]:
    """Yield what is found in each of `count` pictures, one at a time, those of the data again where they are fewer.

    Pictures are in memory before the first, but those of a model that takes proposals are read one by one.
    """
    config = predictor.config
    if config.data.val_proposals:
        one = revise(config, flags={"data.workers": 0, "eval.batch": 1})
        while count > 0:
            for _, detections in detect_in(predictor.model, run.val, one, predictor.device, predictor.precision):
                yield detections
                count -= 1
                if not count:
                    return
    ids = run.val.image_ids
    for picture in [run.val.picture(ids[number % len(ids)]) for number in range(count)]:
        yield predictor.predict(picture)


def _wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _write(folder: Path, measured: Measured, checkpoint: Checkpoint | None) -> None:
    details: dict[str, Any] = asdict(measured)
    write_text_whole(folder / "bench.json", json.dumps(details, indent=2) + "\n")
    accuracy = checkpoint.metrics if checkpoint else {}
    where = f"speed on {measured.machine}, {measured.precision}, {measured.batch} images a step"
    write_metrics(folder / "metrics.json", {**accuracy, **measured.figures()}, {}, [where])
