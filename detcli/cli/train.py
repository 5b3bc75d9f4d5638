"""``detcli train``."""

from __future__ import annotations

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
    evaluator: options.Evaluator = None,
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
    from detcli.engine.checkpoint import open_checkpoint
    from detcli.engine.train import free_folder
    from detcli.engine.train import train as run
    from detcli.errors import UsageError
    from detcli.eval.report import show_metrics

    flags = options.given(
        weights=weights,
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
    console = Console()
    if resume:
        if model or backbone or neck or sched or overlays or config or weights or out:
            raise UsageError(
                "--resume takes model, schedule and folder from the run; leave out MODEL and what shapes it."
            )
        checkpoint = open_checkpoint(resume / "last.safetensors" if resume.is_dir() else resume)
        if checkpoint.training is None:
            raise UsageError(f"{checkpoint.path} holds no training state. Resume from the run's last.safetensors.")
        run_config = revise(checkpoint.config, settings=settings or [], flags=flags)
        folder = checkpoint.path.parent
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
        free_folder(folder, overwrite)
    run_config = lengthened(run_config, epochs=epochs, iters=iters)
    evaluation = run(run_config, folder, console, checkpoint)
    show_metrics(console, evaluation.metrics, evaluation.per_class, evaluation.notes)
    console.print(
        f"{folder}: checkpoints, metrics.json, metrics.jsonl, losses.png, ap.png and pictures/",
        highlight=False,
    )
