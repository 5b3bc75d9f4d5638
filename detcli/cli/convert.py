"""``detcli convert``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcli.cli import options

if TYPE_CHECKING:
    from detcli.convert.rules import Report


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="mmdet, legacy-v1, detectron2, detectron, torchvision, pycls, or auto.",
            metavar="SOURCE",
        ),
    ],
    path: Annotated[Path, typer.Argument(help="The file to convert.", metavar="IN")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.", metavar="OUT")],
    as_id: Annotated[
        str, typer.Option("--as", help="The model it holds: a row of the zoo or a recipe.", metavar="ID")
    ] = "",
    data: Annotated[str, typer.Option(help="Data that its classes are those of, where it does not name them.")] = "",
    settings: options.Settings = None,
    report: Annotated[bool, typer.Option("--report", help="Print what became of each tensor.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT when it is there.")] = False,
) -> None:
    """Turn a checkpoint of another code base into one of detcli.

    The model is found from the config in the file, its name or its hash, or --as says it. What comes out knows its
    model, classes and preprocessing. Nothing in the file is run.

    detcli convert auto mask_rcnn_r50_fpn_1x_coco.pth mask_rcnn.safetensors
    """
    from detcli.convert.convert import convert as run
    from detcli.convert.convert import write
    from detcli.errors import UsageError

    if out.suffix != ".safetensors":
        raise UsageError(
            f"OUT is {out}, but what is written is a .safetensors file: `{out.with_suffix('')}.safetensors`."
        )
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already. Give another name, or --overwrite.")
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent} to write {out.name} to.")
    classes = None
    if data:
        from detcli.config import DataConfig
        from detcli.data.sources import match_classes, open_source

        classes, _ = match_classes(open_source(DataConfig(source=data), "val", segmentations=False), None)
    converted = run(source, path, as_id=as_id or None, classes=classes, settings=settings or [])
    write(converted, out)
    if report:
        for line in _lines(converted.report):
            typer.echo(line)
    what = "a backbone"
    if converted.config is not None:
        what = f"{converted.config.model['name']} for {len(converted.classes)} classes"
    counts = converted.report
    typer.echo(
        f"{out}: {what} of {converted.origin['source']}, {len(converted.tensors)} tensors "
        f"({len(counts.renamed)} renamed, {len(counts.transformed)} transformed, {len(counts.dropped)} dropped, "
        f"{len(counts.added)} added)"
    )
    for note in converted.notes:
        typer.echo(f"note: {note}")


def _lines(report: Report) -> Iterator[str]:
    """Yield a line for each tensor: what it was called, is called, and what was done to it."""
    for entry in report.entries:
        what = f" ({entry.change})" if entry.change else ""
        why = f": {entry.why}" if entry.why else ""
        yield f"{entry.theirs or 'added'} -> {entry.ours or 'dropped'}{what}{why}"
