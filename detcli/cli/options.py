"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

RUN = "What is trained"
DATA = "Data"
SPEED = "Speed and memory"

Model = Annotated[str, typer.Argument(help="A recipe or an overlay: see `detcli list recipes`.", metavar="MODEL")]
Backbone = Annotated[str, typer.Option(help="A backbone: see `detcli list backbones`.", rich_help_panel=RUN)]
Neck = Annotated[str, typer.Option(help="A neck: see `detcli list necks`.", rich_help_panel=RUN)]
Sched = Annotated[str, typer.Option(help="A schedule: see `detcli list schedules`.", rich_help_panel=RUN)]
With = Annotated[list[str] | None, typer.Option("--with", help="An overlay; may be given again.", rich_help_panel=RUN)]
WithTrained = Annotated[
    list[str] | None, typer.Option("--with", help="An overlay of how a model detects, as tta; may be given again.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A JSON or TOML file with settings.", rich_help_panel=RUN)
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, as in `--set optim.weight_decay=0.05`.", rich_help_panel=RUN),
]
Weights = Annotated[str, typer.Option(help="Starting weights: imagenet, none, or a checkpoint.", rich_help_panel=RUN)]
Lr = Annotated[float | None, typer.Option(help="The learning rate as it is, without scaling.", rich_help_panel=RUN)]
Epochs = Annotated[int | None, typer.Option(help="Length in epochs; drops move in proportion.", rich_help_panel=RUN)]
Iters = Annotated[int | None, typer.Option(help="Length in steps; drops move in proportion.", rich_help_panel=RUN)]
Data = Annotated[
    str,
    typer.Option(help="A folder, a COCO JSON file, or a dataset: see `detcli list datasets`.", rich_help_panel=DATA),
]
Train = Annotated[
    str, typer.Option("--train", help="What to train on, where --data does not say.", rich_help_panel=DATA)
]
Val = Annotated[
    str, typer.Option("--val", help="What to evaluate on, where --data does not say.", rich_help_panel=DATA)
]
Images = Annotated[str, typer.Option(help="Where the pictures of a JSON file are.", rich_help_panel=DATA)]
Batch = Annotated[int | None, typer.Option(help="Images a step.", rich_help_panel=SPEED)]
Workers = Annotated[int | None, typer.Option(help="Processes that load pictures.", rich_help_panel=SPEED)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=SPEED)]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option(help="The type of most arithmetic; fp32 without.", rich_help_panel=SPEED),
]
Evaluator = Annotated[
    str,
    typer.Option(help="What measures: faster and pycocotools as COCO does; see `detcli list evaluators`."),
]


def given(**values: Any) -> dict[str, Any]:
    """Return the settings that were given on the command line: those that are neither None nor empty."""
    return {name.replace("__", "."): value for name, value in values.items() if value not in (None, "")}
