"""``detcli zoo summary``, ``detcli zoo errata`` and ``detcli zoo parity``."""

from __future__ import annotations

from typing import Annotated

import typer

from detcli.cli.text import aligned, markdown_table

Markdown = Annotated[bool, typer.Option("--markdown", help="Write a Markdown table.")]


def summary(markdown: Markdown = False) -> None:
    """Count what the four documents hold, and how far detcli is with it.

    detcli zoo summary
    """
    from detcli.zoo.report import summary

    for line in markdown_table(*summary()) if markdown else aligned(*summary(), numbers=range(2, 9)):
        typer.echo(line)


def errata(markdown: Markdown = False) -> None:
    """Show where the documents are wrong, and what is right.

    A table writes what is printed; everything else goes by what is right.

    detcli zoo errata
    """
    from detcli.zoo.report import errata

    for line in markdown_table(*errata()) if markdown else aligned(*errata()):
        typer.echo(line)


def parity(markdown: Markdown = False) -> None:
    """Show how the numbers of converted models compare with those of the code they come from.

    A line for each reference case, as the last run of the session `parity` found it.

    detcli zoo parity
    """
    from detcli.zoo.report import parity

    for line in markdown_table(*parity()) if markdown else aligned(*parity()):
        typer.echo(line)
