"""``detcli table``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

SELECTION = "Which rows"
CONTENT = "What of them"


class SeveralValues(TyperCommand):
    """A command without arguments whose options that may be given again also take several values at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat such an option before each of its values: ``--name a b`` is ``--name a --name b``."""
        repeated = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        expanded: list[str] = []
        option = ""
        for position, argument in enumerate(args):
            if argument.startswith("-"):
                option = argument.partition("=")[0] if argument.partition("=")[0] in repeated else ""
            elif option and args[position - 1] != option:
                expanded.append(option)
            expanded.append(argument)
        return super().parse_args(ctx, expanded)


def table(
    config: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows by their config's path, as a shell matches files: 'COCO-Detection/faster*50*{1x,3x}*'.",
            metavar="GLOB...",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="detectron2, detectron, mmdet-v0 or mmdet-v2.", metavar="SOURCE...", rich_help_panel=SELECTION
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Methods, such as atss.", metavar="METHOD...", rich_help_panel=SELECTION)
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            help="Folders of your runs, to stand beside the published rows.",
            metavar="GLOB...",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    document: Annotated[
        str,
        typer.Option(help="Every table of this source, as it is printed.", metavar="SOURCE", rich_help_panel=SELECTION),
    ] = "",
    fields: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns, such as lr_sched train_speed inference_speed mem box_AP mask_AP.",
            metavar="FIELD...",
            rich_help_panel=CONTENT,
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Names of the rows, one each, in order.", metavar="NAME...", rich_help_panel=CONTENT),
    ] = None,
    sort: Annotated[
        str, typer.Option(help="A field to sort by: the best first.", metavar="FIELD", rich_help_panel=CONTENT)
    ] = "",
    format: Annotated[
        str,
        typer.Option(
            help="markdown, html, csv, latex, json or rich; without, rich on a terminal and markdown elsewhere.",
            metavar="FORMAT",
            rich_help_panel=CONTENT,
        ),
    ] = "",
) -> None:
    """Write tables of published rows and of your own runs.

    detcli table --method atss --fields box_AP mem --sort box_AP
    """
    import sys

    from detcli.errors import UsageError, unknown
    from detcli.zoo import tables
    from detcli.zoo.formats import WRITERS, print_rich

    format = format or ("rich" if sys.stdout.isatty() else "markdown")
    if format not in (*WRITERS, "rich"):
        raise unknown("format", format, (*WRITERS, "rich"), "detcli table --help")
    if document:
        if config or source or method or runs or fields or name or sort:
            raise UsageError("--document writes the whole document: give it no other option than --format.")
        written = tables.document(document)
    else:
        written = [
            tables.table(
                configs=config or (),
                sources=source or (),
                methods=method or (),
                runs=runs or (),
                fields=fields or (),
                names=name or (),
                sort=sort,
            )
        ]
    if format == "rich":
        from rich.console import Console

        print_rich(written, Console())
    else:
        sys.stdout.write(WRITERS[format](written))
