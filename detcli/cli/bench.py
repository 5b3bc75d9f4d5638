"""``detcli bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detcli.cli import options


def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="A recipe or an overlay (see `detcli list recipes`), a .safetensors checkpoint or a run's folder.",
            metavar="MODEL|CHECKPOINT",
        ),
    ],
    backbone: options.Backbone = "",
    neck: options.Neck = "",
    overlays: options.With = None,
    settings: options.Settings = None,
    data: options.Data = "",
    size: Annotated[
        int | None,
        typer.Option(
            help="The shortest side of pictures, the longest in proportion; the recipe's sizes without.",
            min=32,
            rich_help_panel=options.DATA,
        ),
    ] = None,
    iters: Annotated[int, typer.Option(help="Training steps that count.", min=1)] = 20,
    images: Annotated[int, typer.Option(help="Pictures to detect in that count.", min=1)] = 50,
    batch: options.Batch = None,
    workers: options.Workers = None,
    device: options.Device = "",
    precision: options.Precision = None,
    out: Annotated[Path | None, typer.Option(help="The folder for figures; runs/bench_MODEL without.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the figures that --out holds.")] = False,
) -> None:
    """Measure how fast a model trains and detects here, and the memory that it takes.

    Training is of a step with loading of data, inference of one picture at a time, from pixels to boxes and masks.
    Without --data, pictures of 640x480 are drawn, with 80 classes. `--batch 2` is what model zoos have on a GPU.
    `detcli table --runs` sets what was measured beside what was published.

    detcli bench atss --backbone r18 --size 128 --iters 3 --images 3
    """
    from rich.console import Console
    from rich.progress import Progress

    from detcli.config import resolve, revise
    from detcli.engine.bench import DRAWN, free_folder, warm_up
    from detcli.engine.bench import bench as run
    from detcli.engine.checkpoint import open_checkpoint
    from detcli.errors import UsageError

    place = Path(model)
    checkpoint = open_checkpoint(place) if place.exists() or place.suffix == ".safetensors" else None
    flags = options.given(
        data__source=data,
        data__workers=workers,
        train__batch=batch,
        train__device=device,
        train__precision=precision,
    )
    if checkpoint:
        if backbone or neck or overlays:
            raise UsageError("a checkpoint has its own parts; leave out --backbone, --neck and --with.")
        if data:
            flags |= {"data.train": "", "data.val": "", "data.args": {}}
        config = revise(checkpoint.config, settings=settings or [], flags=flags)
    else:
        if not data:
            flags |= {"data.source": "shapes", "data.args": DRAWN}
        config = resolve(
            model,
            backbone=backbone or None,
            neck=neck or None,
            overlays=overlays or [],
            settings=settings or [],
            flags=flags,
        ).config
    if size:
        longest, shortest = config.data.test_resize
        scale = (round(size * longest / shortest), size)
        config = revise(config, flags={"data.resize": [scale], "data.test_resize": scale})
    folder = out or Path("runs") / f"bench_{checkpoint.path.parent.name if checkpoint else model}"
    free_folder(folder, overwrite)
    total = warm_up(iters) + iters + warm_up(images) + images
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=total)
        measured = run(
            config,
            folder,
            iters=iters,
            images=images,
            checkpoint=checkpoint,
            advance=lambda: progress.advance(task),
        )
    longest, shortest = config.data.test_resize
    lines = (
        f"model      {config.recipe}" + (f", {checkpoint.path}" if checkpoint else ", random weights"),
        f"machine    {measured.machine}; {measured.precision}; torch {measured.torch}",
        f"training   {measured.train_speed:.3f} s/iter: mean of {iters} steps of {measured.batch} images, "
        f"{measured.data_share:.0%} of it waiting for data",
        f"inference  {measured.inference_speed:.3f} s/im, {measured.inference_fps:.1f} img/s: mean of {images} images, "
        f"one at a time within {longest}x{shortest}, {measured.detections:.1f} detections each",
        f"memory     {measured.mem:.2f} GB: peak of training",
        f"{folder}: config.json, bench.json and metrics.json, which `detcli table --runs {folder}` reads",
    )
    for line in lines:
        typer.echo(line)
