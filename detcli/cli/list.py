"""``detcli list``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from detcli.cli.text import aligned, markdown_table, schedule

if TYPE_CHECKING:
    from detcli.registry import Found


def list_names(
    what: Annotated[
        str, typer.Argument(help="models, recipes, backbones, schedules, plugins, ...", metavar="[WHAT]")
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Write a Markdown table.")] = False,
) -> None:
    """Show what there is, in all or of one kind.

    detcli list backbones
    """
    from detcli.errors import unknown
    from detcli.registry import SLOTS, names, plugins

    if not what:
        rows = [(slot, str(len(names(slot))), _shortened(names(slot))) for slot in SLOTS if names(slot)]
        rows.append(("plugins", str(len(plugins())), _shortened(plugins())))
        header: Sequence[str] = ("kind", "count", "names")
    elif what == "plugins":
        rows = [(name, found.plugin.arxiv, found.plugin.title) for name, found in sorted(plugins().items())]
        header = ("plugin", "arXiv", "title")
    elif what in SLOTS:
        rows = [(name, plugin, _about(what, name, plugins()[plugin])) for name, plugin in names(what).items()]
        header = (what, "plugin", "about")
    else:
        raise unknown("kind", what, [*SLOTS, "plugins"], "detcli list")
    for line in markdown_table(header, rows) if markdown else aligned(header, rows):
        typer.echo(line)


def _about(slot: str, name: str, found: Found) -> str:
    """Return a line on one name: its own summary, or the title of its plugin, and the paper."""
    from detcli.registry import find, find_overlay, find_recipe, find_schedule

    if slot == "recipes":
        recipe = find_recipe(name)
        return recipe.summary or f"{recipe.model or name}, schedule {recipe.sched}"
    if slot == "overlays":
        overlay = find_overlay(name)
        return overlay.summary or f"on {overlay.recipe}"
    if slot == "schedules":
        return schedule(find_schedule(name).get("sched", {}))
    about = find(slot, name).summary or found.plugin.title
    return f"{about} (arXiv {found.plugin.arxiv})" if found.plugin.arxiv else about


def _shortened(names: Iterable[str], width: int = 80) -> str:
    """Return `names` in a line of at most `width` characters."""
    text = ", ".join(names)
    return text if len(text) <= width else text[: text.rindex(",", 0, width - 2)] + ", …"
