"""``detcli predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from detcli.cli import options


def predict(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .safetensors checkpoint, or a run's folder.", metavar="CHECKPOINT")
    ],
    paths: Annotated[
        list[str] | None, typer.Argument(help="Pictures, videos, folders or globs.", metavar="PATH")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for annotated pictures and results.json.")] = Path(
        "predictions"
    ),
    score: Annotated[float, typer.Option(help="The lowest score that is kept, 0 to 1.", min=0, max=1)] = 0.3,
    classes: Annotated[
        list[str] | None, typer.Option(help="A class that is kept; may be given again. All without.")
    ] = None,
    overlays: options.WithTrained = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as in `--set eval.tta.flip=false`.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 1,
    device: options.Device = "auto",
    precision: options.Precision = None,
    proposals: Annotated[
        Path | None, typer.Option(help="With --data: write proposals for Fast R-CNN to this file instead.")
    ] = None,
    data: options.Data = "",
    split: Annotated[Literal["train", "val"], typer.Option(help="With --data: which part.")] = "val",
) -> None:
    """Detect in pictures and videos with a trained model.

    `--with tta` looks at each in several sizes and mirrored, and merges what is found.

    detcli predict runs/demo pictures/ --out predictions
    """
    from rich.console import Console
    from rich.progress import Progress

    from detcli.engine.predict import find_inputs, predict_files
    from detcli.engine.predictor import load
    from detcli.errors import UsageError

    if bool(data) != bool(proposals):
        raise UsageError("--proposals and --data go together: `detcli predict RPN --data SOURCE --proposals OUT`.")
    if bool(paths) == bool(data):
        raise UsageError("give pictures, videos or folders to detect in: `detcli predict CHECKPOINT PATH…`.")
    console = Console(stderr=True)
    predictor = load(checkpoint, device, precision or "fp32", overlays=overlays or [], settings=settings or [])
    if proposals:
        from detcli.engine.proposals import propose

        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("proposing", total=None)
            pictures, boxes = propose(
                predictor,
                data,
                split,
                proposals,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        print(f"{proposals}: {boxes} proposals for {pictures} pictures")
        return
    inputs = find_inputs(paths or [])
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("predicting", total=len(inputs))
        predicted = predict_files(
            predictor,
            inputs,
            out,
            batch=batch,
            score=score,
            classes=classes or [],
            warn=lambda message: console.print(message, markup=False, soft_wrap=True),
            advance=lambda: progress.advance(task),
        )
    print(f"{out}: {len(predicted.results)} detections in {len(predicted.images)} pictures, results.json")
    if predicted.skipped:
        print(f"{len(predicted.skipped)} pictures were left out, since they can't be read.")
    if not predicted.images:
        raise typer.Exit(1)
