"""From a published row to the command that trains its model here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from detcli.config import RunConfig, resolve
from detcli.errors import UsageError
from detcli.plugin import Recipe
from detcli.registry import find_recipe, names, plugins
from detcli.zoo.names import short_name, weights_url
from detcli.zoo.rows import Row

SETTINGS_OF = {"detectron2": "detectron2", "detectron": "detectron", "mmdet-v0": "legacy"}
"""What the name of a recipe says when it has the settings of a source; without it, they are those of mmdet-v2."""

WITHOUT_MEANING = re.compile(r"\d+[xe]?|s1x|\d+x\d+|fpn|caffe|pytorch")
"""Words in configs' names that a row has typed fields for, and images a device."""

GIVEN_PROPOSALS = "pre-computed proposals"
"""The note of rows whose models take their proposals from a file."""

TAKES_PROPOSALS = "fast_rcnn"
"""The model that takes proposals from a file, and no other does."""

DEFAULT_BACKBONE = "r50"


@dataclass(frozen=True, slots=True)
class Training:
    """The command that trains like a row, and what of the row it does not have; or what is missing for one."""

    command: str = ""
    differs: tuple[str, ...] = ()
    missing: str = ""


def training(row: Row) -> Training:
    """Return how to train the model of `row`: the recipe whose name says most of what the row's config is called.

    The command's config is resolved, without torch, so that it is valid; where its schedule is another than the row's,
    or its recipe does not say all that the name of the row's config says, that is among what `differs`.
    """
    overlay = row.method if row.method in names("overlays") else ""
    if not overlay and row.method not in plugins():
        return Training(missing=f"there is no plugin for {row.method} yet")
    recipes = _recipes(row)
    if not recipes:
        return Training(missing=f"there is no recipe of {row.method} for {row.model} yet")
    given = row.model == TAKES_PROPOSALS
    if GIVEN_PROPOSALS in row.notes and not given:
        return Training(missing=f"there is no recipe for {row.model} on {GIVEN_PROPOSALS} yet")
    said = set(_variants(row)) - {overlay}
    recipe = max(recipes, key=lambda recipe: _fit(recipe, row, said))
    if row.neck in said - _said(recipe, said):
        return Training(missing=f"there is no recipe for {row.model} with {row.neck} yet")
    backbone = _backbone(recipe, row)
    if backbone and backbone not in names("backbones"):
        return Training(missing=f"there is no backbone {row.backbone} yet")
    sched = row.sched if row.sched in names("schedules") and row.sched != recipe.sched else ""
    try:
        config = resolve(
            recipe.name, backbone=backbone or None, sched=sched or None, overlays=[overlay] if overlay else []
        ).config
    except UsageError as error:
        return Training(missing=str(error))
    flags = {"--backbone": backbone, "--sched": sched, "--with": overlay, "--data": f"path/to/{row.dataset}"}
    words = ["detcli train", recipe.name, *(f"{flag} {value}" for flag, value in flags.items() if value)]
    if given:
        words += [f"--set data.{name}=path/to/{name}" for name in ("proposals", "val_proposals")]
    return Training(" ".join(words), tuple(_differences(row, config, said - _said(recipe, said))))


def _recipes(row: Row) -> list[Recipe]:
    """Return the recipes for the row's model: those of the row's plugin, where that brings models of its own."""
    found = {name: find_recipe(name) for name in names("recipes")}
    fitting = {name: recipe for name, recipe in found.items() if (recipe.model or name) == row.model}
    if row.method in names("models").values():
        fitting = {name: recipe for name, recipe in fitting.items() if names("recipes")[name] == row.method}
    return list(fitting.values())


def _differences(row: Row, config: RunConfig, left: set[str]) -> Iterator[str]:
    settings = SETTINGS_OF.get(row.source, "")
    if settings in left:
        yield f"the recipe has MMDetection's settings, not those of {row.source}"
    if others := sorted(left - {settings}):
        yield f"the row's config is also called {', '.join(others)}; see `detcli config {config.recipe}`"
    if row.schedule:
        printed = (row.schedule.unit, row.schedule.length, list(row.schedule.drops))
        ours = (config.sched.unit, config.sched.length, config.sched.drops)
        if printed != ours:
            yield f"the row's schedule is {_schedule(*printed)}, the command's {_schedule(*ours)}"
    elif row.sched and config.sched_name != row.sched:
        yield f"there is no schedule {row.sched}; the command's is {config.sched_name}"


def _schedule(unit: str, length: int, drops: list[int]) -> str:
    name = "epochs" if unit == "epoch" else "iterations"
    return f"{length} {name}" + (f" ({', '.join(map(str, drops))})" if drops else "")


def _variants(row: Row) -> Iterator[str]:
    """Yield the words of the row's config that no typed field of the row stands for, and those of its source."""
    text = PurePosixPath(row.config).stem if row.config else short_name(row) if weights_url(row) else ""
    known = {*_words(row.model), *_words(row.backbone), *_words(row.dataset), row.dataset.replace("_", "-")}
    yield from (word for word in _words(text) if word not in known and not WITHOUT_MEANING.fullmatch(word))
    if row.neck not in ("", "fpn"):
        yield row.neck
    if row.source in SETTINGS_OF:
        yield SETTINGS_OF[row.source]


def _said(recipe: Recipe, words: set[str]) -> set[str]:
    """Return those of `words` that the recipe's name says."""
    own = _words(recipe.name)
    return {word for word in words if any(word == said or word.startswith(f"{said}-") for said in own)}


def _fit(recipe: Recipe, row: Row, said: set[str]) -> tuple[bool, int, bool, int]:
    """Return what makes a recipe the one for a row that is `said` to be something: says nothing else, most of it."""
    own = {word for word in _words(recipe.name) if not WITHOUT_MEANING.fullmatch(word)} - set(_words(row.model))
    covered = _said(recipe, said)
    extra = {word for word in own if not any(word == given or given.startswith(f"{word}-") for given in covered)}
    return not extra, len(covered), recipe.sched == row.sched, -len(recipe.name)


def _words(name: str) -> list[str]:
    """Return the words of a name, in small letters; ``R_50`` is one, ``r50``."""
    return re.sub(r"(?<![a-z0-9])([rx])[_-](?=\d)", r"\1", name.lower()).split("_")


def _backbone(recipe: Recipe, row: Row) -> str:
    """Return the backbone that must be named for the row's, of its style; empty when it is the recipe's own."""
    chosen = recipe.backbone or DEFAULT_BACKBONE
    own = chosen if isinstance(chosen, str) else chosen["name"]
    style = own.partition("_")[2]
    if (row.style == "caffe") != (style in ("caffe", "detectron")):
        style = "caffe" if row.style == "caffe" else ""
    wanted = f"{row.backbone}_{style}" if style else row.backbone
    return "" if wanted == own else wanted
