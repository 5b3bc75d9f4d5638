"""``detcli train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from detcli.cli import options


def train(
    model: Annotated[
        str, typer.Argument(help="A recipe or an overlay: see `detcli list recipes`.", metavar="MODEL")
    ] = "",
    backbone: options.Backbone = "",
    neck: options.Neck = "",
    sched: options.Sched = "",
    overlays: options.With = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    weights: options.Weights = "",
    reset_head: Annotated[
        bool,
        typer.Option(
            "--reset-head",
            help="Of --weights, leave out the layers that depend on classes.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    lr: options.Lr = None,
    epochs: options.Epochs = None,
    iters: options.Iters = None,
    data: options.Data = "",
    train: options.Train = "",
    val: options.Val = "",
    images: options.Images = "",
    skip_bad_images: Annotated[
        bool,
        typer.Option("--skip-bad-images", help="Leave out pictures that can't be read.", rich_help_panel=options.DATA),
    ] = False,
    batch: options.Batch = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Parts that a step's batch is split into.", rich_help_panel=options.SPEED),
    ] = None,
    workers: options.Workers = None,
    device: options.Device = "",
    devices: Annotated[
        int,
        typer.Option(help="Processes that share each step's batch, one a GPU.", min=1, rich_help_panel=options.SPEED),
    ] = 1,
    max_restarts: Annotated[
        int,
        typer.Option(
            help="How often processes that died are started again, from the last checkpoint.",
            min=0,
            rich_help_panel=options.SPEED,
        ),
    ] = 0,
    precision: options.Precision = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile backbone and neck.", rich_help_panel=options.SPEED)
    ] = False,
    clip: Annotated[
        float | None, typer.Option(help="The largest norm of the gradient.", rich_help_panel=options.RUN)
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Decay of a moving average of the weights, as 0.999.", rich_help_panel=options.RUN),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The seed of everything random.", rich_help_panel=options.RUN)
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Evaluate every so many epochs (or steps); 0: only at the end.")
    ] = None,
    early_stop: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations without a better figure.")
    ] = None,
    evaluator: options.Evaluator = "",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard files, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/MODEL without.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out holds.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue the run in this folder, with its own config and what is given here."),
    ] = None,
) -> None:
    """Train a model, evaluate it and show what it learned.

    detcli train atss --backbone r18 --data shapes --sched demo --out runs/demo
    """
    from rich.console import Console

    from detcli.config import lengthened, resolve, revise
    from detcli.engine import distributed
    from detcli.engine.launch import launch
    from detcli.engine.train import free_folder, starting_point
    from detcli.engine.train import train as run
    from detcli.errors import UsageError
    from detcli.eval.report import show_metrics

    flags = options.given(
        weights=weights,
        reset_head=reset_head or None,
        data__source=data,
        data__train=train,
        data__val=val,
        data__images=images,
        data__skip_bad_images=skip_bad_images or None,
        data__workers=workers,
        optim__lr=lr,
        optim__batch=None if lr is None else 0,
        optim__clip_norm=clip,
        train__batch=batch,
        train__accumulate=accumulate,
        train__device=device,
        train__precision=precision,
        train__compile=compile or None,
        train__ema=ema,
        train__seed=seed,
        train__eval_every=eval_every,
        train__early_stop=early_stop,
        train__tensorboard=tensorboard or None,
        eval__evaluator=evaluator,
    )
    console = Console(quiet=not distributed.is_main())
    if resume:
        if model or backbone or neck or sched or overlays or config or weights or out:
            raise UsageError(
                "--resume takes model, schedule and folder from the run; leave out MODEL and what shapes it."
            )
        folder = resume if resume.is_dir() else resume.parent
        started, checkpoint = starting_point(resume)
        run_config = revise(started, settings=settings or [], flags=flags)
    else:
        checkpoint = None
        if not model:
            raise UsageError(
                "which model? `detcli list recipes` shows them; `detcli train --resume RUN` continues a run."
            )
        run_config = resolve(
            model,
            backbone=backbone or None,
            neck=neck or None,
            sched=sched or None,
            overlays=overlays or [],
            file=config,
            settings=settings or [],
            flags=flags,
        ).config
        folder = out or Path("runs") / model
        if distributed.restarts() and (folder / "last.safetensors").exists():
            _, checkpoint = starting_point(folder)
        elif distributed.is_main() and not distributed.restarts():
            free_folder(folder, overwrite)
    run_config = lengthened(run_config, epochs=epochs, iters=iters)
    if devices > 1 and not distributed.launched():
        return launch(sys.argv[1:], devices, max_restarts, folder)
    if devices not in (1, distributed.world_size()):
        raise UsageError(f"the launcher started {distributed.world_size()} processes; leave out --devices {devices}.")
    evaluation = run(run_config, folder, console, checkpoint)
    if not distributed.is_main():
        return
    show_metrics(console, evaluation.metrics, evaluation.per_class, evaluation.notes)
    console.print(
        f"{folder}: checkpoints, metrics.json, metrics.jsonl, losses.png, ap.png and pictures/",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
