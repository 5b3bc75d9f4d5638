"""``detcli config``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from detcli.cli import options


def config(
    model: options.Model,
    backbone: options.Backbone = "",
    neck: options.Neck = "",
    sched: options.Sched = "",
    overlays: options.With = None,
    file: options.ConfigFile = None,
    settings: options.Settings = None,
    weights: options.Weights = "",
    lr: options.Lr = None,
    data: options.Data = "",
    train: options.Train = "",
    val: options.Val = "",
    batch: options.Batch = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say where each value comes from.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, which --config reads.")] = False,
) -> None:
    """Show the whole config of a run.

    detcli config fcos --backbone r101 --explain
    """
    from detcli.config import resolve

    resolved = resolve(
        model,
        backbone=backbone or None,
        neck=neck or None,
        sched=sched or None,
        overlays=overlays or [],
        file=file,
        settings=settings or [],
        flags=options.given(
            weights=weights,
            optim__lr=lr,
            optim__batch=None if lr is None else 0,
            data__source=data,
            data__train=train,
            data__val=val,
            train__batch=batch,
        ),
    )
    values = resolved.config.model_dump(mode="json")
    if as_json:
        import json

        typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    lines = list(_yaml(values, resolved.origins))
    width = min(max(len(line) for line, _ in lines), 60)
    for line, origin in lines:
        typer.echo(f"{line:{width}}  # {origin}" if explain and origin else line)


def _yaml(values: Mapping[str, Any], origins: Mapping[str, str], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the lines of `values` as YAML, each with the origin of its value (empty for a group)."""
    import json

    indent = "  " * path.count(".")
    for key, value in values.items():
        where = f"{path}{key}"
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:", ""
            yield from _yaml(value, origins, f"{where}.")
        else:
            yield f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}", origins[where]
