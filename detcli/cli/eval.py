"""``detcli eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detcli.cli import options


def eval(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .safetensors checkpoint, or a run's folder.", metavar="CHECKPOINT")
    ],
    data: options.Data = "",
    val: options.Val = "",
    images: options.Images = "",
    overlays: options.WithTrained = None,
    settings: options.Settings = None,
    batch: options.Batch = None,
    workers: options.Workers = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    evaluator: options.Evaluator = "",
    out: Annotated[
        Path | None, typer.Option(help="The folder for results; eval/ beside the checkpoint without.")
    ] = None,
) -> None:
    """Measure a trained model on data.

    AP of boxes and masks or AR of proposals, in all and by class, and COCO results. `--with tta` looks at each picture
    in several sizes and mirrored, and merges what is found.

    detcli eval runs/demo --data shapes
    """
    from rich.console import Console
    from rich.progress import Progress

    from detcli.config import revise
    from detcli.data import open_dataset
    from detcli.engine.checkpoint import open_checkpoint
    from detcli.engine.device import find_device
    from detcli.engine.evaluate import evaluate_model
    from detcli.engine.model import load_model
    from detcli.engine.outputs import write_config, write_evaluation
    from detcli.eval.report import show_metrics

    found = open_checkpoint(checkpoint)
    flags = options.given(
        data__source=data,
        data__val=val,
        data__images=images,
        data__workers=workers,
        eval__batch=batch,
        eval__evaluator=evaluator,
    )
    if data:
        flags |= {"data.train": "", "data.val": val}
    config = revise(found.config, overlays=overlays or [], settings=settings or [], flags=flags)
    target = find_device(device)
    model = load_model(found, config, target, precision or "fp32")
    dataset = open_dataset(
        config.data,
        "val",
        config.input,
        classes=found.classes,
        keypoints="keypoints" in model.needs,
        semantic="semantic" in model.needs,
    )
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("evaluating", total=len(dataset))
        evaluation = evaluate_model(
            model,
            dataset,
            config,
            target,
            precision=precision or "fp32",
            show=config.eval.show,
            advance=lambda done, total: progress.update(task, completed=done),
        )
    folder = out or found.path.parent / "eval"
    write_evaluation(folder, evaluation, dataset)
    if not list(folder.glob("*.safetensors")):  # the folder of a training run has its own
        write_config(folder, config)
    show_metrics(console, evaluation.metrics, evaluation.per_class, evaluation.notes)
    console.print(f"{folder}: metrics.json, results.json and pictures/", highlight=False, markup=False, soft_wrap=True)
