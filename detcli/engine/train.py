"""The one training loop."""

from __future__ import annotations

import errno
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from detcli.config import RunConfig, load, without_tta
from detcli.data import make_loader, open_dataset
from detcli.engine import distributed
from detcli.engine.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from detcli.engine.device import autocast, find_device, make_current, memory_in_use
from detcli.engine.ema import MovingAverage
from detcli.engine.evaluate import Evaluation, evaluate_model, primary_metric, unmeasured
from detcli.engine.interrupts import Interrupted, Interrupts
from detcli.engine.model import Normalizer, build_model, fitted, initialise
from detcli.engine.optimizer import LearningRate, build_optimizer, scaled_lr
from detcli.engine.outputs import write_batch, write_config, write_evaluation
from detcli.engine.plots import plot_run
from detcli.engine.progress import Reporter
from detcli.engine.tta import check as check_tta
from detcli.errors import DetcliError, UsageError
from detcli.eval.evaluator import check as check_evaluator
from detcli.files import remove_temporaries
from detcli.nn.processes import reduce_mean
from detcli.nn.weights import load_weights
from detcli.structures import Batch, ImageInfo

LOG_EVERY = 20
SAVE_SECONDS = 600
CANT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
FILES = ("config.json", "metrics.json", "metrics.jsonl", "results.json", "panoptic.json", "losses.png", "ap.png")
CHECKPOINTS = ("best.safetensors", "last.safetensors")
FOLDERS = ("pictures", "panoptic", "not_finite", "tensorboard")


@dataclass(slots=True)
class State:
    """Where a run is: optimiser steps done, whether the last of them is still to be evaluated, the best figure so far,
    evaluations since then.
    """

    step: int = 0
    pending: bool = False
    best: float = -math.inf
    stale: int = 0


def train(config: RunConfig, folder: Path, console: Console, resume: Checkpoint | None = None) -> Evaluation:
    """Train the model of `config` and leave checkpoints, figures, plots and pictures in `folder`.

    `resume` is a checkpoint with a training state, from which the run continues exactly. In a process that a launcher
    started, the run is shared with the others; only the main one writes. Returns the last evaluation, the main process
    with its COCO results.

    Raises `DetcliError` when data, weights or device are not what they should be, or when loss or gradient are not
    finite, and `Interrupted` after a SIGINT or SIGTERM, when the step is finished and saved.
    """
    device = find_device(config.train.device, distributed.local_rank() if distributed.world_size() > 1 else None)
    make_current(device)
    try:
        with distributed.joined(device):
            run = Run(config, folder, console, device, resume)
            with Interrupts() as interrupts:
                return run.finish(interrupts)
    except OSError as error:
        if error.errno not in CANT_WRITE:
            raise
        raise DetcliError(
            f"can't write to {folder}: {error.strerror}. What was saved before is untouched. Make room, then continue "
            f"with `detcli train --resume {folder}`, or choose another --out."
        ) from error


class Run:
    """One training run, from its config and starting point to its last evaluation."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        console: Console,
        device: torch.device,
        resume: Checkpoint | None,
    ) -> None:
        options = config.train
        processes = distributed.world_size()
        parts = options.accumulate * processes
        if options.batch % parts:
            raise DetcliError(
                f"a batch of {options.batch} images can't be split into {parts} equal parts ({processes} devices "
                f"x --accumulate {options.accumulate}). Try --batch {-(-options.batch // parts) * parts}."
            )
        self.options, self.folder, self.console = options, folder, console
        self.device = device
        with torch.device("meta"):
            needs = build_model(config, 1).needs
        self.dataset = open_dataset(
            config.data,
            "train",
            config.input,
            masks="masks" in needs,
            keypoints="keypoints" in needs,
            semantic="semantic" in needs,
        )
        self.classes = self.dataset.classes
        self.config = config = fitted(config, self.classes)
        self.val = open_dataset(
            config.data,
            "val",
            config.input,
            classes=self.classes,
            keypoints="keypoints" in needs,
            semantic="semantic" in needs,
        )
        torch.manual_seed(options.seed)
        self.model = build_model(config, len(self.classes))
        if config.eval.tta.active:
            check_tta(self.model, config, self.classes)
        if resume:
            origin = f"{resume.path}, iteration {(resume.training or {})['step']}"
        else:
            origin = initialise(self.model, config, self.classes)
        self.model.to(device)
        if options.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.loader = make_loader(
            self.dataset,
            batch=options.batch // parts,
            train=True,
            seed=options.seed,
            workers=config.data.workers,
            pad_divisor=config.input.pad_divisor,
            group_aspect=config.data.group_aspect,
            repeats=self.dataset.repeats(config.data),
            rank=distributed.rank(),
            world_size=processes,
        )
        self.steps_per_epoch = max(len(self.loader) // options.accumulate, 1)
        self.rate = LearningRate(config.sched, self.steps_per_epoch)
        lr = scaled_lr(config.optim, options.batch)
        self.optimizer = build_optimizer(self.model, config.optim, lr)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
        self.average = MovingAverage(self.model, options.ema) if options.ema else None
        self.evaluated = self.average.model if self.average else self.model
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.normalize = Normalizer(config.input, device)
        self.evaluation = Evaluation()
        self._check_evaluator()
        self.state = State()
        torch.manual_seed(options.seed + distributed.rank())
        if resume:
            self._restore(resume)
            if self.state.step >= self.rate.total and not self.state.pending:
                raise DetcliError(
                    f"{resume.path} has already done {self.state.step} of {self.rate.total} steps. "
                    "Give more with --epochs or --iters."
                )
        if options.compile:
            _compile(self.model, device)
        self.trained: torch.nn.Module = self.model
        if processes > 1:
            self.trained = distributed.parallel(self.model, device)
        if distributed.is_main():
            self._prepare_folder()
            self._announce(origin, lr)

    def finish(self, interrupts: Interrupts) -> Evaluation:
        """Train to the end, evaluate and write what was found; return the last evaluation.

        Raises `Interrupted` at the end of a step in which `interrupts` received a signal.
        """
        self.model.train()
        self.interrupts = interrupts
        self.saved_at, self.saved_step = time.monotonic(), self.state.step
        agreement = distributed.Agreement()
        meter = Meter(self.device)
        batches = _batches(self.loader, self.state.step, self.steps_per_epoch, self.options.accumulate)
        with Reporter(
            self.folder,
            self.console,
            self.rate.total,
            start=self.state.step,
            evaluated=not self.state.pending,
            tensorboard=self.options.tensorboard,
            silent=not distributed.is_main(),
        ) as report:
            while True:
                if self.state.pending:
                    if self._evaluate(report):
                        return self.evaluation
                    meter.restart()
                agreement.say(self.interrupts.received, time.monotonic() - self.saved_at > SAVE_SECONDS)
                current_lr = self._step(batches, meter)
                signal_number, time_to_save = agreement.hear()
                ends_epoch = self.state.step % self.steps_per_epoch == 0
                self.state.pending = self._evaluates(ends_epoch)
                saves = bool(self.state.pending or ends_epoch or time_to_save or signal_number)
                # The loss is looked at before each save, so that no checkpoint holds what is not finite.
                if self.state.step % LOG_EVERY == 0 or saves:
                    self._report(report, meter, current_lr)
                if saves:
                    self._save_training()
                if signal_number:
                    raise self._interrupted(signal_number, f"after iteration {self.state.step}")

    def steps(self) -> Iterator[Meter]:
        """Do one step of the optimiser after another, without looking at the losses, evaluating or saving.

        After each, yield what counts pictures, losses and the time that loading let the step wait.
        """
        self.model.train()
        meter = Meter(self.device)
        batches = _batches(self.loader, self.state.step, self.steps_per_epoch, self.options.accumulate)
        while True:
            self._step(batches, meter)
            yield meter

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (*FILES, *CHECKPOINTS):
            remove_temporaries(self.folder, name)
        write_config(self.folder, self.config)

    def _announce(self, origin: str, lr: float) -> None:
        options, optim = self.options, self.config.optim
        processes = distributed.world_size()
        trained = sum(parameter.numel() for parameter in self.parameters)
        where = f"{processes} processes on {self.device.type}" if processes > 1 else str(self.device)
        if distributed.restarts():
            origin = f"restart {distributed.restarts()} from {origin}"
        self.console.print(
            f"[bold]{self.config.recipe}[/] on {len(self.dataset)} pictures of {len(self.classes)} classes, "
            f"evaluated on {len(self.val)}; {escape(origin)}; {trained / 1e6:.1f} M trained parameters; "
            f"{where}, {options.precision}",
            soft_wrap=True,
        )
        scaling = f"{optim.lr:g} for {optim.batch} images, scaled linearly" if optim.batch else "as given"
        self.console.print(
            f"learning rate {lr:g} for {options.batch} images a step ({scaling}); "
            f"{self.rate.total} steps, {self.steps_per_epoch} an epoch",
            soft_wrap=True,
        )
        if options.precision == "fp16" and self.device.type == "cpu":
            self.console.print("note: processors compute float16 slowly; --precision bf16 is sooner.", soft_wrap=True)

    def _check_evaluator(self) -> None:
        """Say what will not be measured; raise `DetcliError` when the evaluator can't measure the rest."""
        wrong = ""
        if distributed.is_main():
            lacking = unmeasured(self.val)
            for task in self.model.tasks:
                if task in lacking:
                    self.console.print(f"note: {lacking[task].replace(' was not ', ' will not be ')}", soft_wrap=True)
            # Segments are files of their own, which are not read for this.
            tasks = [task for task in self.model.tasks if task not in lacking and task != "panoptic"]
            try:
                check_evaluator(self.config.eval.evaluator, tasks, self.val.ground_truth())
            except DetcliError as error:
                wrong = str(error)
        if wrong := distributed.of_main(wrong):
            raise DetcliError(wrong)

    def _step(self, batches: Iterator[Batch], meter: Meter) -> float:
        """Do one step of the optimiser; return its learning rate."""
        options = self.options
        current_lr = self.rate.apply(self.optimizer, self.state.step)
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(options.accumulate):
            batch = meter.timed(batches)
            with self._synchronised(part == options.accumulate - 1):
                with autocast(self.device, options.precision):
                    losses = self.trained(self.normalize(batch, options.channels_last))
                total = torch.stack([value for name, value in losses.items() if "loss" in name]).sum()
                self.scaler.scale(total / options.accumulate).backward()  # type: ignore[no-untyped-call]
            meter.add(losses, total, batch.infos)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.config.optim.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.optim.clip_norm, norm)
        meter.add_norm(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.model)
        self.state.step += 1
        return current_lr

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a part of a step: gradients are averaged over processes in the `last` only."""
        if last or not isinstance(self.trained, DistributedDataParallel):
            return nullcontext()
        context: AbstractContextManager[None] = self.trained.no_sync()
        return context

    def _evaluates(self, ends_epoch: bool) -> bool:
        every, step = self.options.eval_every, self.state.step
        by_epoch = self.config.sched.unit == "epoch"
        position = step // self.steps_per_epoch if by_epoch else step
        due = bool(every and (ends_epoch or not by_epoch) and position % every == 0)
        return due or step >= self.rate.total

    def _report(self, report: Reporter, meter: Meter, current_lr: float) -> None:
        step = self.state.step
        epoch = step / self.steps_per_epoch
        figures = {"epoch": round(epoch, 3), "lr": current_lr, **meter.read(self.options.precision == "fp16")}
        epochs = math.ceil(self.rate.total / self.steps_per_epoch)
        report.training(step, f"epoch {math.ceil(epoch)}/{epochs}", figures)
        # The scale of a loss begins so large that gradients of the first steps overflow: each of them halves it.
        settling = "grad_norm" not in figures and self.scaler.get_scale() >= 1
        if not (math.isfinite(figures["loss"]) and (settling or math.isfinite(figures.get("grad_norm", math.nan)))):
            self._refuse(meter)

    def _refuse(self, meter: Meter) -> NoReturn:
        """Stop for a loss or gradient that is not finite: name the pictures it came from and keep them."""
        found = distributed.everyones(meter.not_finite())
        back = min(steps for steps, _, _ in found)
        guilty = [infos for steps, own, infos in found if steps == back and own]
        infos = [info for part in guilty or [part for steps, _, part in found if steps == back] for info in part]
        what = "loss" if guilty else "gradient"
        place = self.folder / "not_finite"
        if distributed.is_main():
            write_batch(place, self.dataset, infos)
        names = ", ".join(info.name for info in infos[:8]) + (f" and {len(infos) - 8} more" if len(infos) > 8 else "")
        last = self.folder / "last.safetensors"
        kept = f"{last} of iteration {self.saved_step} stays" if last.exists() else "nothing was saved yet"
        raise DetcliError(
            f"the {what} is not finite at iteration {self.state.step - back}, in the batch of {names} "
            f"(drawn in {place}). The run stopped; {kept}. "
            "Look for wrong boxes with `detcli data check`, or try a lower --lr, --clip 10 or --precision fp32."
        )

    def _evaluate(self, report: Reporter) -> bool:
        """Evaluate the last step, save the best checkpoint so far and the training state; tell whether the run ends."""
        distributed.share_buffers(self.evaluated)

        def advance(done: int, total: int) -> None:
            report.evaluating(done, total)
            if self.interrupts.received:
                when = f"in the evaluation after iteration {self.state.step}"
                raise self._interrupted(self.interrupts.received, when)

        def evaluation(config: RunConfig) -> Evaluation:
            return evaluate_model(
                self.evaluated,
                self.val,
                config,
                self.device,
                precision=self.options.precision,
                show=config.eval.show,
                advance=advance,
            )

        # Evaluations of a run are compared with each other, and many: only the last is done again with augmentation.
        self.evaluation = evaluation(without_tta(self.config))
        report.evaluation(self.state.step, self.evaluation.metrics)
        value = self.evaluation.metrics.get(primary_metric(self.model), -1.0)
        self.state.pending = False
        self.state.stale = 0 if value > self.state.best else self.state.stale + 1
        if value > self.state.best:
            self.state.best = value
            if distributed.is_main():
                self._save("best.safetensors", None, None)
        ends = self._stops_early() or self.state.step >= self.rate.total
        if ends and self.config.eval.tta.active:
            self.evaluation = evaluation(self.config)
        # Before the checkpoint says that nothing is pending: a run that is killed here is to write them when resumed.
        if ends and distributed.is_main():
            write_evaluation(self.folder, self.evaluation, self.val)
            plot_run(self.folder)
        self._save_training()
        return ends

    def _stops_early(self) -> bool:
        patience = self.options.early_stop
        stops = bool(patience and self.state.stale >= patience and self.state.step < self.rate.total)
        if stops:
            metric = primary_metric(self.model)
            self.console.print(f"stopped: no better {metric} in {self.state.stale} evaluations")
        return stops

    def _interrupted(self, number: int, when: str) -> Interrupted:
        devices = distributed.world_size()
        again = f"detcli train --resume {self.folder}" + (f" --devices {devices}" if devices > 1 else "")
        return Interrupted(number, f"{when}; all of it is saved. Continue with `{again}`.")

    def _save_training(self) -> None:
        """Save all that the run needs to continue exactly; what is not the same in all processes is gathered."""
        randoms = distributed.gathered(distributed.random_state())
        if distributed.is_main():
            header = {
                "step": self.state.step,
                "pending": self.state.pending,
                "best": None if math.isinf(self.state.best) else self.state.best,
                "stale": self.state.stale,
                "scaler": self.scaler.state_dict(),
                "ema_updates": self.average.updates if self.average else 0,
            }
            tensors: dict[str, Tensor] = {}
            for rank, states in enumerate(randoms):
                tensors |= {f"random.{rank}.{name}": value for name, value in states.items()}
            for index, values in self.optimizer.state_dict()["state"].items():
                for name, value in values.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimizer.{index}.{name}"] = value
            tensors |= {f"buffer.{name}": value for name, value in _unsaved_buffers(self.model).items()}
            if self.average:
                tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
            self._save("last.safetensors", header, tensors)
        self.saved_at, self.saved_step = time.monotonic(), self.state.step

    def _save(self, name: str, training: dict[str, Any] | None, tensors: dict[str, Tensor] | None) -> None:
        weights = self.evaluated.state_dict()
        save_checkpoint(
            self.folder / name, weights, self.config, self.classes, self.evaluation.metrics, training, tensors
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Continue from what `_save_training` wrote."""
        header = checkpoint.training
        assert header is not None
        tensors = checkpoint.training_tensors()
        weights = checkpoint.weights()
        if self.average:
            load_weights(self.average.model, weights, str(checkpoint.path))
            self.average.updates = header["ema_updates"]
            weights = _below("model.", tensors) or weights
        load_weights(self.model, weights, str(checkpoint.path))
        buffers = dict(self.model.named_buffers())
        for name, value in _below("buffer.", tensors).items():
            buffers[name].copy_(value)
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer.", tensors).items():
            index, key = name.split(".", 1)
            states.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        if header["scaler"]:
            self.scaler.load_state_dict(header["scaler"])
        self.state.step, self.state.pending, self.state.stale = header["step"], header["pending"], header["stale"]
        self.state.best = -math.inf if header["best"] is None else header["best"]
        self.evaluation.metrics = dict(checkpoint.metrics)
        states_of_this_rank = _below(f"random.{distributed.rank()}.", tensors)
        if states_of_this_rank:
            distributed.set_random_state(states_of_this_rank)
        else:  # the run had fewer processes
            torch.manual_seed(hash((self.options.seed, self.state.step, distributed.rank())))


class Meter:
    """Adds up losses on the device, so that the run waits for it only when the figures are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was added and start the clock again."""
        self.sums: dict[str, Tensor] = {}
        self.totals: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.infos: list[list[ImageInfo]] = []
        self.waited = 0.0
        self.started = time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Batch:
        """Take the next batch and remember how long it let us wait."""
        started = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - started
        return batch

    def add(self, losses: dict[str, Tensor], total: Tensor, infos: list[ImageInfo]) -> None:
        """Add the losses of one forward pass over the pictures `infos`."""
        for name, value in {"loss": total, **losses}.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.totals.append(total.detach().float())
        self.infos.append(infos)

    def add_norm(self, norm: Tensor) -> None:
        """Add the norm of the gradient of a step."""
        self.norms.append(norm.detach())

    def read(self, skips: bool) -> dict[str, float]:
        """Return means since the last `restart`, then restart, though what `not_finite` tells stays.

        The figures are losses and the norm of the gradient, both over all processes, images/s of all, the share of
        time waiting for data and peak memory in GB. With `skips`, steps without a finite gradient were not taken, and
        do not count; without any other, there is no norm.
        """
        sums = reduce_mean(torch.stack(list(self.sums.values())).div(len(self.totals)))
        values = torch.cat([sums, torch.stack(self.totals), torch.stack(self.norms).float()]).tolist()
        means, rest = values[: len(sums)], values[len(sums) :]
        self.read_totals, self.read_norms = rest[: len(self.totals)], rest[len(self.totals) :]
        self.read_infos = self.infos
        norms = [norm for norm in self.read_norms if math.isfinite(norm) or not skips]
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        images = sum(map(len, self.infos)) * distributed.world_size()
        figures = {
            **dict(zip(self.sums, means, strict=True)),
            **({"grad_norm": sum(norms) / len(norms)} if norms else {}),
            "images_per_second": images / elapsed,
            "data_share": self.waited / elapsed,
            "memory_gb": memory_in_use(self.device) / 1e9,
        }
        self.restart()
        return figures

    def not_finite(self) -> tuple[int, bool, list[ImageInfo]]:
        """Return where in the figures that were last read the first number is that is not finite.

        How many steps before the last; whether it is the loss of this process; and the pictures it came from, the
        whole batch of this process where it is the gradient.
        """
        steps, parts = len(self.read_norms), len(self.read_totals) // len(self.read_norms)
        for step, norm in enumerate(self.read_norms):
            own = range(step * parts, (step + 1) * parts)
            bad = [part for part in own if not math.isfinite(self.read_totals[part])]
            if bad or not math.isfinite(norm):
                infos = [info for part in bad or own for info in self.read_infos[part]]
                return steps - 1 - step, bool(bad), infos
        return steps, False, []


def starting_point(place: Path) -> tuple[RunConfig, Checkpoint | None]:
    """Return the config of the run at `place`, a folder or a checkpoint, and the checkpoint it continues from.

    There is none when the run was stopped before it wrote one: it starts again. Raises `UsageError` when there is no
    run or the checkpoint holds no training state.
    """
    last = place / "last.safetensors" if place.is_dir() else place
    if place.is_dir() and not last.exists():
        written = place / "config.json"
        if not written.exists():
            raise UsageError(f"{place} holds no run to continue. Start one with `detcli train MODEL --out {place}`.")
        return load(json.loads(written.read_text())), None
    checkpoint = open_checkpoint(last)
    if checkpoint.training is None:
        raise UsageError(f"{last} holds no training state. Resume from the run's last.safetensors.")
    return checkpoint.config, checkpoint


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
    for name in (*FILES, *CHECKPOINTS):
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
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


def _unsaved_buffers(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are not part of the state dict, such as moving averages that only training needs."""
    saved = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
