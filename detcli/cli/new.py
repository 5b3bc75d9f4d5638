"""``detcli new``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Start something new: a plugin.", no_args_is_help=True)


@app.command()
def plugin(
    name: Annotated[str, typer.Argument(help="The plugin's name: a Python name such as my_detector.")],
    out: Annotated[Path | None, typer.Option(help="The folder that is written; NAME without.")] = None,
) -> None:
    """Write a plugin of your own: a distribution with a model that works, to be changed.

    detcli new plugin my_detector
    """
    from detcli.scaffold import write_plugin

    folder = out or Path(name)
    for path in write_plugin(name, folder):
        typer.echo(path)
    typer.echo(f"Next: `pip install -e {folder}`, then `detcli train {name} --data shapes --sched demo`.")
