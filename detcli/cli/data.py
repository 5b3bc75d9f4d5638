"""``detcli data``: check, stats, show, convert, synth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from detcli.cli import options

app = typer.Typer(help="Look at data, check them, and write them in other formats.", no_args_is_help=True)

Source = Annotated[
    str,
    typer.Argument(
        help="A folder (COCO, VOC, YOLO), a COCO JSON file, or a dataset: see `detcli list datasets`.", metavar="SOURCE"
    ),
]
Split = Annotated[str, typer.Option(help="train or val.")]


@app.command()
def check(source: Source, images: options.Images = "") -> None:
    """Name everything that would make training fail or lie, one line a problem; the status is then 1.

    detcli data check my_data/
    """
    from rich.console import Console
    from rich.progress import Progress

    from detcli.config import DataConfig
    from detcli.data.check import check as run

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("checking", total=None)
        every = run(
            DataConfig(source=source, images=images),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    for findings in every:
        for text in findings.errors:
            typer.echo(f"error: {text}")
        for text in findings.notes:
            typer.echo(f"note: {text}")
        segments = f", {findings.segments} segments" if findings.segments else ""
        typer.echo(
            f"{findings.name}: {findings.pictures} pictures, {findings.objects} annotations{segments}; "
            f"errors: {len(findings.errors)}, notes: {len(findings.notes)}"
        )
    if any(findings.errors for findings in every):
        raise typer.Exit(1)


@app.command()
def stats(
    source: Source,
    images: options.Images = "",
    out: Annotated[Path, typer.Option(help="The PNG file of the plot.")] = Path("data_stats.png"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the plot that --out names.")] = False,
) -> None:
    """Count pictures, objects, sizes and aspect ratios, as tables and a plot.

    detcli data stats my_data/ --out stats.png
    """
    from rich.console import Console

    from detcli.config import DataConfig
    from detcli.data.check import find_splits
    from detcli.data.coco import Located
    from detcli.data.sources import read_located
    from detcli.data.stats import measure, plot_stats, print_stats
    from detcli.errors import DetcliError

    if out.exists() and not overwrite:
        raise DetcliError(f"{out} is there already. Choose another --out, or replace it with --overwrite.")
    found = find_splits(DataConfig(source=source, images=images))
    every = [measure(read_located(data) if isinstance(data, Located) else data, split) for split, data in found.items()]
    print_stats(Console(), every)
    out.parent.mkdir(parents=True, exist_ok=True)
    plot_stats(every, out)
    typer.echo(f"{out}: the plot")


@app.command()
def show(
    source: Source,
    out: Annotated[Path, typer.Option(help="The folder for the pictures; new or empty.")],
    images: options.Images = "",
    split: Split = "train",
    count: Annotated[int, typer.Option(help="How many pictures.", min=1)] = 16,
) -> None:
    """Write pictures with their annotations drawn on them.

    detcli data show my_data/ --out shown --count 16
    """
    from detcli.config import DataConfig
    from detcli.data.export import write_annotated
    from detcli.errors import unknown

    if split not in ("train", "val"):
        raise unknown("split", split, ["train", "val"])
    files = write_annotated(DataConfig(source=source, images=images), split, out, count)
    typer.echo(f"{out}: {len(files) - 1} annotated pictures, and all of them in {files[-1].name}")


@app.command()
def convert(
    form: Annotated[
        Literal["coco", "voc", "yolo", "cityscapes"], typer.Argument(help="What the data are.", metavar="FORMAT")
    ],
    root: Annotated[Path, typer.Argument(help="Their folder, or a COCO JSON file.", metavar="ROOT")],
    out: Annotated[Path, typer.Argument(help="The folder to write; new or empty.", metavar="OUT")],
    to: Annotated[
        Literal["coco", "yolo", "yolo-seg"],
        typer.Option(help="What they become: COCO, YOLO with boxes, or YOLO with a polygon for each mask."),
    ] = "coco",
) -> None:
    """Write data of one format as a folder of another; pictures are linked to, not copied, where that can be.

    detcli data convert voc VOCdevkit voc_coco

    detcli data convert coco my_data my_yolo --to yolo-seg
    """
    from rich.console import Console
    from rich.progress import Progress

    from detcli.data.export import convert as run

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("converting", total=None)
        notes = run(form, root, out, to, lambda done, total: progress.update(task, completed=done, total=total))
    typer.echo(f"{out}: written. Check it with `detcli data check {out}`, train with `--data {out}`.")
    for note in notes:
        typer.echo(f"note: {note}")


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="The folder to write; new or empty.")],
    train: Annotated[int, typer.Option(help="Pictures to train on.", min=1)] = 1000,
    val: Annotated[int, typer.Option(help="Pictures to evaluate on.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.", min=0)] = 0,
    size: Annotated[tuple[int, int], typer.Option(help="Longest and mean shortest side in pixels.", min=32)] = (
        160,
        128,
    ),
    keypoints: Annotated[bool, typer.Option("--keypoints", help="Annotate the corners of shapes, too.")] = False,
) -> None:
    """Write the built-in shapes as a COCO folder.

    detcli data synth shapes_coco --train 200 --val 50
    """
    from rich.console import Console
    from rich.progress import Progress

    from detcli.data.export import write_shapes
    from detcli.data.shapes import shapes

    splits = {
        "train": shapes(split="train", size=size, train_images=train, seed=seed, keypoints=keypoints),
        "val": shapes(split="val", size=size, val_images=val, seed=seed, keypoints=keypoints),
    }
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("drawing", total=None)
        write_shapes(splits, out, lambda done, total: progress.update(task, completed=done, total=total))
    typer.echo(f"{out}: {train} pictures to train on, {val} to evaluate on. Train with `--data {out}`.")
