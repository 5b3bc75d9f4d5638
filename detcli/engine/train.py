"""The one training loop."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from detcli.config import RunConfig
from detcli.data import make_loader, open_dataset
from detcli.engine.checkpoint import Checkpoint, save_checkpoint
from detcli.engine.device import autocast, find_device, memory_in_use
from detcli.engine.ema import MovingAverage
from detcli.engine.evaluate import Evaluation, evaluate_model, primary_metric
from detcli.engine.model import Normalizer, build_model, initialise
from detcli.engine.optimizer import LearningRate, build_optimizer, scaled_lr
from detcli.engine.outputs import write_evaluation
from detcli.engine.plots import plot_run
from detcli.engine.progress import Reporter
from detcli.errors import DetcliError
from detcli.nn.weights import load_weights
from detcli.structures import Batch

LOG_EVERY = 20
SAVE_SECONDS = 600


@dataclass(slots=True)
class State:
    """Where a run is: optimiser steps done, the best figure so far, evaluations since then."""

    step: int = 0
    best: float = -math.inf
    stale: int = 0


def train(config: RunConfig, folder: Path, console: Console, resume: Checkpoint | None = None) -> Evaluation:
    """Train the model of `config` and leave checkpoints, figures, plots and pictures in `folder`.

    `resume` is a checkpoint with a training state, from which the run continues exactly. Returns the last evaluation.
    Raises `DetcliError` when data, weights or device are not what they should be, or when the loss is not finite.
    """
    options = config.train
    if options.batch % options.accumulate:
        raise DetcliError(f"a batch of {options.batch} images can't be split into {options.accumulate} equal parts.")
    device = find_device(options.device)
    with torch.device("meta"):
        needs_masks = "mask" in build_model(config, 1).tasks
    dataset = open_dataset(config.data, "train", config.input, masks=needs_masks)
    val = open_dataset(config.data, "val", config.input, classes=dataset.classes)
    torch.manual_seed(options.seed)
    model = build_model(config, len(dataset.classes))
    if resume:
        origin = f"{resume.path}, iteration {(resume.training or {})['step']}"
    else:
        origin = initialise(model, config, dataset.classes)
    model.to(device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    loader = make_loader(
        dataset,
        batch=options.batch // options.accumulate,
        train=True,
        seed=options.seed,
        workers=config.data.workers,
        pad_divisor=config.input.pad_divisor,
        group_aspect=config.data.group_aspect,
    )
    steps_per_epoch = max(len(loader) // options.accumulate, 1)
    rate = LearningRate(config.sched, steps_per_epoch)
    lr = scaled_lr(config.optim, options.batch)
    optimizer = build_optimizer(model, config.optim, lr)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    average = MovingAverage(model, options.ema) if options.ema else None
    state = State()
    if resume:
        state = _restore(resume, model, average, optimizer, scaler)
        if state.step >= rate.total:
            raise DetcliError(
                f"{resume.path} has already done {state.step} of {rate.total} steps. "
                "Give more with --epochs or --iters."
            )
    if options.compile:
        _compile(model, device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    console.print(
        f"[bold]{config.recipe}[/] on {len(dataset)} pictures of {len(dataset.classes)} classes, "
        f"evaluated on {len(val)}; {origin}; {trained / 1e6:.1f} M trained parameters; {device}, {options.precision}"
    )
    scaling = (
        f"{config.optim.lr:g} for {config.optim.batch} images, scaled linearly" if config.optim.batch else "as given"
    )
    console.print(
        f"learning rate {lr:g} for {options.batch} images a step ({scaling}); "
        f"{rate.total} steps, {steps_per_epoch} an epoch"
    )

    normalize = Normalizer(config.input, device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    evaluation = Evaluation()
    evaluated = average.model if average else model

    def save(name: str, with_training: bool) -> None:
        training, tensors = None, None
        if with_training:
            training, tensors = _training_state(state, optimizer, scaler, model if average else None, average)
        weights = evaluated.state_dict()
        save_checkpoint(folder / name, weights, config, dataset.classes, evaluation.metrics, training, tensors)

    saved_at = time.monotonic()
    model.train()
    batches = _batches(loader, state.step, steps_per_epoch, options.accumulate)
    with Reporter(folder, console, rate.total, start=state.step, tensorboard=options.tensorboard) as report:
        meter = Meter(device)
        while state.step < rate.total:
            current_lr = rate.apply(optimizer, state.step)
            optimizer.zero_grad(set_to_none=True)
            for _ in range(options.accumulate):
                batch = meter.timed(batches)
                with autocast(device, options.precision):
                    losses = model(normalize(batch, options.channels_last))
                total = torch.stack([value for name, value in losses.items() if "loss" in name]).sum()
                scaler.scale(total / options.accumulate).backward()  # type: ignore[no-untyped-call]
                meter.add(losses, total, len(batch))
            if config.optim.clip_norm:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            if average:
                average.update(model)
            state.step += 1
            ends_epoch = state.step % steps_per_epoch == 0
            finished = state.step == rate.total
            position = state.step // steps_per_epoch if config.sched.unit == "epoch" else state.step
            counts = ends_epoch or config.sched.unit == "iter"
            evaluates = finished or bool(options.eval_every and counts and position % options.eval_every == 0)
            saves = evaluates or ends_epoch or time.monotonic() - saved_at > SAVE_SECONDS
            # The loss is looked at before each save, so that no checkpoint holds what is not finite.
            if state.step % LOG_EVERY == 0 or saves:
                epoch = state.step / steps_per_epoch
                figures = {"epoch": round(epoch, 3), "lr": current_lr, **meter.read()}
                report.training(
                    state.step, f"epoch {math.ceil(epoch)}/{math.ceil(rate.total / steps_per_epoch)}", figures
                )
                if not math.isfinite(figures["loss"]):
                    raise DetcliError(
                        f"the loss is {figures['loss']} at iteration {state.step}; "
                        "nothing after the last checkpoint was saved. Try a lower --lr, --clip 10, or --precision fp32."
                    )
            if evaluates:
                evaluation = evaluate_model(
                    evaluated,
                    val,
                    config,
                    device,
                    precision=options.precision,
                    show=config.eval.show,
                    advance=report.evaluating,
                )
                report.evaluation(state.step, evaluation.metrics)
                meter.restart()
                value = evaluation.metrics.get(primary_metric(model), -1.0)
                state.stale = 0 if value > state.best else state.stale + 1
                if value > state.best:
                    state.best = value
                    save("best.safetensors", with_training=False)
            if saves:
                save("last.safetensors", with_training=True)
                saved_at = time.monotonic()
            if evaluates and options.early_stop and state.stale >= options.early_stop and not finished:
                console.print(f"stopped: no better {primary_metric(model)} in {state.stale} evaluations")
                break
    write_evaluation(folder, evaluation, val)
    plot_run(folder)
    return evaluation


class Meter:
    """Adds up losses on the device, so that the run waits for it only when the figures are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was added and start the clock again."""
        self.sums: dict[str, Tensor] = {}
        self.parts = 0
        self.images = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Batch:
        """Take the next batch and remember how long it let us wait."""
        started = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - started
        return batch

    def add(self, losses: dict[str, Tensor], total: Tensor, images: int) -> None:
        """Add the losses of one forward pass."""
        for name, value in {"loss": total, **losses}.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.parts += 1
        self.images += images

    def read(self) -> dict[str, float]:
        """Return mean losses, images/s, the share of time waiting for data and peak memory in GB; then restart."""
        values = torch.stack(list(self.sums.values())).div(self.parts).tolist()
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        figures = {
            **dict(zip(self.sums, values, strict=True)),
            "images_per_second": self.images / elapsed,
            "data_share": self.waited / elapsed,
            "memory_gb": memory_in_use(self.device) / 1e9,
        }
        self.restart()
        return figures


def free_folder(folder: Path, overwrite: bool) -> None:
    """Make sure that `folder` holds no other run; with `overwrite`, remove what a run left there.

    Raises `DetcliError` when it holds a run and `overwrite` is not set.
    """
    if not (folder / "config.json").exists() and not list(folder.glob("*.safetensors")):
        return
    if not overwrite:
        raise DetcliError(
            f"{folder} already holds a run. Continue it with `detcli train --resume {folder}`, "
            "choose another --out, or replace it with --overwrite."
        )
    for name in ("config.json", "metrics.json", "metrics.jsonl", "results.json", "losses.png", "ap.png"):
        (folder / name).unlink(missing_ok=True)
    for name in ("best.safetensors", "last.safetensors"):
        (folder / name).unlink(missing_ok=True)
    for name in ("pictures", "tensorboard"):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder / name)


def _batches(loader: Any, step: int, steps_per_epoch: int, accumulate: int) -> Iterator[Batch]:
    """Yield batches for ever, from optimiser step `step` on, `steps_per_epoch` steps of each epoch."""
    epoch, first = divmod(step, steps_per_epoch)
    while True:
        loader.set_epoch(epoch, start=first * accumulate)
        parts = (steps_per_epoch - first) * accumulate
        for _, batch in zip(range(parts), loader, strict=False):
            yield batch
        epoch, first = epoch + 1, 0


def _compile(model: torch.nn.Module, device: torch.device) -> None:
    """Compile what has static control flow: backbone and neck."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        raise DetcliError("--compile on a CPU needs a C++ compiler, and none was found. Leave out --compile.")
    for name in ("backbone", "neck"):
        part = getattr(model, name, None)
        if part is not None:
            part.compile(dynamic=False if device.type == "cpu" else None)


def _training_state(
    state: State,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    raw: torch.nn.Module | None,
    average: MovingAverage[Any] | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = {
        "step": state.step,
        "best": None if math.isinf(state.best) else state.best,
        "stale": state.stale,
        "scaler": scaler.state_dict(),
        "ema_updates": average.updates if average else 0,
    }
    tensors: dict[str, Tensor] = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
    if raw is not None:
        tensors |= {f"model.{name}": value for name, value in raw.state_dict().items()}
    return header, tensors


def _restore(
    checkpoint: Checkpoint,
    model: torch.nn.Module,
    average: MovingAverage[Any] | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> State:
    header = checkpoint.training
    assert header is not None
    tensors = checkpoint.training_tensors()
    weights = checkpoint.weights()
    if average:
        load_weights(average.model, weights, str(checkpoint.path))
        average.updates = header["ema_updates"]
        raw = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        weights = raw or weights
    load_weights(model, weights, str(checkpoint.path))
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    if header["scaler"]:
        scaler.load_state_dict(header["scaler"])
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return State(header["step"], -math.inf if header["best"] is None else header["best"], header["stale"])
