"""From a published row to the command that trains its model here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from detcli.config import RunConfig, resolve
from detcli.errors import UsageError
from detcli.plugin import PartConfig, Recipe
from detcli.registry import find_overlay, find_recipe, find_schedule, names, plugins
from detcli.zoo.names import short_name, weights_url
from detcli.zoo.rows import Row, Schedule

SETTINGS_OF = {"detectron2": "detectron2", "detectron": "detectron", "mmdet-v0": "legacy"}
"""What the name of a recipe says when it has the settings of a source; without it, they are those of mmdet-v2."""

WITHOUT_MEANING = re.compile(r"\d+(\.\d+)?[xe]?|s1x|\d+x\d+|fpn|caffe|pytorch|c3-c5")
"""Words in configs' names that a row has typed fields for, images a device, and the stages of all that changes some."""

LEGACY = "legacy_1_x"
"""The method of those rows of mmdet-v2 whose settings and weights are of mmdet-v0."""

MEANINGS = {
    "fcos": {"gn-head": "", "center-normbbox-centeronreg-giou": "tricks", "640-800": "mstrain"},
    "grid_rcnn": {"gn-head": ""},
    "yolact": {"8x8": "8gpu"},
    "lvis": {"sample1e-3": "", "mstrain": ""},
    "voc": {"voc0712": ""},
    "res2net101": {"r2": "", "101": ""},
}
"""Words of the configs of a model, a dataset or a backbone that recipes have other words for; an empty one: every
recipe has it.
"""

CAFFE_STYLES = {"legacy": "detectron"}
"""The last word of the backbones that recipes of some settings have where a row says caffe; else, it is caffe."""

OF_TRAINING = re.compile(r"mstrain(-\w+)?|fp16")
"""Words that say how a model was trained and leave the model as it is."""

NOTED = {"score voting off": "unvoted"}
"""What recipes say in their names of rows that only a note tells apart."""

GIVEN_PROPOSALS = "pre-computed proposals"
"""The note of rows whose models take their proposals from a file."""

TAKES_PROPOSALS = "fast"
"""What the names of recipes say whose models take their proposals from a file."""

DEFAULT_BACKBONE = "r50"

CLASSIFIER = "classifier"
"""The model of rows that compare backbones alone, by how they classify ImageNet."""

OF_BACKBONES = "faster_rcnn"
"""The recipe whose model is built with the backbone of such a row."""


@dataclass(frozen=True, slots=True)
class Training:
    """The command that trains like a row, and what of the row it does not have; or what is missing for one.

    `config` is what the command resolves to; `exact`: its model is the row's, whatever differs in its training. The
    model of a row that compares backbones is the backbone.
    """

    command: str = ""
    differs: tuple[str, ...] = ()
    missing: str = ""
    config: RunConfig | None = None
    exact: bool = False


def training(row: Row) -> Training:
    """Return how to train the model of `row`: the recipe whose name says most of what the row's config is called.

    The command's config is resolved, without torch, so that it is valid; where its schedule is another than the row's,
    or its recipe does not say all that the name of the row's config says, that is among what `differs`.
    """
    if row.model == CLASSIFIER:
        return _of_backbone(row)
    recipes = _recipes(row)
    overlays = [overlay for overlay, plugin in names("overlays").items() if plugin == row.method]
    if not recipes:
        if overlays or row.method in plugins():
            return Training(missing=f"there is no recipe of {row.method} for {row.model} yet")
        return Training(missing=f"there is no plugin for {row.method} yet")
    said = set(_variants(row)) | {NOTED[note] for note in row.notes if note in NOTED}
    if row.method in overlays:
        said.update(_words(row.method))
    given = GIVEN_PROPOSALS in row.notes
    if given and TAKES_PROPOSALS not in _words(row.model):
        said.add(TAKES_PROPOSALS)
    pairs = [(recipe, overlay) for recipe in recipes for overlay in ("", *overlays)]
    recipe, overlay = max(pairs, key=lambda pair: _fit(pair[0], pair[1], row, said))
    left = said - _said(_name(recipe, overlay), said)
    if TAKES_PROPOSALS in left:
        return Training(missing=f"there is no recipe for {row.model} on {GIVEN_PROPOSALS} yet")
    if row.neck in left:
        return Training(missing=f"there is no recipe for {row.model} with {row.neck} yet")
    unsaid = said - _said(overlay, said) - {_settings(row)}
    backbone = _backbone(recipe, overlay, row, unsaid)
    if backbone and backbone not in names("backbones"):
        return Training(missing=f"there is no backbone {row.backbone} yet")
    sched = _sched(recipe, row)
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
    left -= _said(backbone, unsaid)
    exact = all(OF_TRAINING.fullmatch(word) for word in left | _extra(_name(recipe, overlay), row, said))
    return Training(" ".join(words), tuple(_differences(row, config, left)), config=config, exact=exact)


def _of_backbone(row: Row) -> Training:
    """Return how to train a detector with the backbone of a row that is of nothing else."""
    if row.backbone not in names("backbones"):
        return Training(missing=f"there is no backbone {row.backbone} yet")
    return Training(
        f"detcli train {OF_BACKBONES} --backbone {row.backbone} --data path/to/coco",
        (f"the row's figures are of a classifier of {row.dataset}; this is a detector with the same backbone",),
        config=resolve(OF_BACKBONES, backbone=row.backbone).config,
        exact=True,
    )


def _recipes(row: Row) -> list[Recipe]:
    """Return the recipes for the row's model: those of the row's plugin, where that brings models of its own.

    A row of a dataset's paper, or of older settings, is trained by a recipe of its model that is named after them.
    """
    plugin_of = names("recipes")
    fitting = {name: recipe for name in plugin_of if ((recipe := find_recipe(name)).model or name) == row.model}
    if row.method in names("models").values():
        fitting = {name: recipe for name, recipe in fitting.items() if plugin_of[name] == row.method}
    elif row.method not in names("overlays") and row.method not in plugins():
        after = SETTINGS_OF["mmdet-v0"] if row.method == LEGACY else _dataset(row)
        fitting = {name: recipe for name, recipe in fitting.items() if after in _words(name)}
    return list(fitting.values())


def _settings(row: Row) -> str:
    """Return what recipes with the settings of the row's source say in their names; nothing for MMDetection v2's."""
    return SETTINGS_OF["mmdet-v0"] if row.method == LEGACY else SETTINGS_OF.get(row.source, "")


def _dataset(row: Row) -> str:
    """Return what recipes for the row's dataset are named after; nothing for COCO and its parts."""
    first = row.dataset.partition("_")[0]
    return "" if first == "coco" else first


def _sched(recipe: Recipe, row: Row) -> str:
    """Return the schedule that must be named for the row's: one of its numbers, or else of its name."""
    if _is_scheduled(recipe, row):
        return ""
    if row.schedule:
        for name in names("schedules"):
            if _numbers(find_schedule(name).get("sched", {})) == _printed(row.schedule):
                return name
    return row.sched if row.sched in names("schedules") and row.sched != recipe.sched else ""


def _is_scheduled(recipe: Recipe, row: Row) -> bool:
    """Return whether the recipe has the row's schedule as it is."""
    if row.schedule:
        own = {**find_schedule(recipe.sched).get("sched", {}), **recipe.sched_args}
        return _numbers(own) == _printed(row.schedule)
    return recipe.sched == row.sched


Numbers = tuple[str, int, tuple[int, ...]]
"""A schedule's unit, length and drops."""


def _numbers(sched: Mapping[str, Any]) -> Numbers:
    return sched.get("unit", "epoch"), sched.get("length", 0), tuple(sched.get("drops", ()))


def _printed(schedule: Schedule) -> Numbers:
    return schedule.unit, schedule.length, schedule.drops


def _differences(row: Row, config: RunConfig, left: set[str]) -> Iterator[str]:
    settings = _settings(row)
    if settings in left:
        yield f"the recipe has MMDetection's settings, not those of {row.source}"
    dataset = _dataset(row)
    if dataset and dataset in left:
        yield f"the recipe has settings for COCO, not those for {dataset}"
    if others := sorted(left - {settings, dataset}):
        yield f"the row's config is also called {', '.join(others)}; see `detcli config {config.recipe}`"
    if row.schedule:
        printed, ours = _printed(row.schedule), _numbers(config.sched.model_dump())
        if printed != ours:
            yield f"the row's schedule is {_schedule(*printed)}, the command's {_schedule(*ours)}"
    elif row.sched and config.sched_name != row.sched:
        yield f"there is no schedule {row.sched}; the command's is {config.sched_name}"


def _schedule(unit: str, length: int, drops: tuple[int, ...]) -> str:
    name = "epochs" if unit == "epoch" else "iterations"
    return f"{length} {name}" + (f" ({', '.join(map(str, drops))})" if drops else "")


def _variants(row: Row) -> Iterator[str]:
    """Yield the words of the row's config that no typed field stands for, and those of its dataset and source."""
    text = PurePosixPath(row.config).stem if row.config else short_name(row) if weights_url(row) else ""
    known = {*_words(row.model), *_words(row.backbone), *_words(row.dataset), row.dataset.replace("_", "-")}
    meanings = MEANINGS.get(row.model, {}) | MEANINGS.get(_dataset(row), {}) | MEANINGS.get(row.backbone, {})
    words = (
        word for word in _words(text) if word in meanings or not (word in known or WITHOUT_MEANING.fullmatch(word))
    )
    yield from filter(None, (meanings.get(word, word) for word in words))
    if dataset := _dataset(row):
        yield dataset
    if row.neck not in ("", "fpn"):
        yield row.neck
    if settings := _settings(row):
        yield settings


def _said(name: str, words: set[str]) -> set[str]:
    """Return those of `words` that the name of a recipe, an overlay or a backbone says."""
    own = _words(name)
    return {word for word in words if any(word == said or word.startswith(f"{said}-") for said in own)}


def _name(recipe: Recipe, overlay: str) -> str:
    """Return what a recipe with an overlay, or with none, would be called."""
    return f"{recipe.name}_{overlay}" if overlay else recipe.name


def _extra(name: str, row: Row, said: set[str]) -> set[str]:
    """Return what the name of a recipe says and the row, which is `said` to be something, does not."""
    own = {word for word in _words(name) if not WITHOUT_MEANING.fullmatch(word)} - set(_words(row.model))
    covered = _said(name, said)
    return {word for word in own if not any(word == given or given.startswith(f"{word}-") for given in covered)}


def _fit(recipe: Recipe, overlay: str, row: Row, said: set[str]) -> tuple[bool, int, bool, bool, int]:
    """Return what makes a recipe, with an overlay or none, the one for a row that is `said` to be something.

    It says nothing else, most of that, has the row's schedule, and needs no overlay.
    """
    name = _name(recipe, overlay)
    return (
        not _extra(name, row, said),
        len(_said(name, said)),
        _is_scheduled(recipe, row),
        not overlay,
        -len(recipe.name),
    )


@cache
def _words(name: str) -> tuple[str, ...]:
    """Return the words of a name, in small letters; ``R_50`` is one, ``r50``."""
    return tuple(re.sub(r"(?<![a-z0-9])([rx])[_-](?=\d)", r"\1", name.lower()).split("_"))


def _backbone(recipe: Recipe, overlay: str, row: Row, said: set[str]) -> str:
    """Return the backbone that must be named for the row's, of its style, or whose name says what the row is said to
    be; empty when it is that of the recipe or of the overlay on it.
    """
    over = find_overlay(overlay).config.get("model", {}).get("backbone") if overlay else None
    own = _named(over) or _named(recipe.backbone) or DEFAULT_BACKBONE
    style = own.partition("_")[2]
    # All of Detectron's backbones have their own pixel mean, whatever their style.
    if style != row.source and (row.style == "caffe") != (style in ("caffe", "detectron")):
        style = CAFFE_STYLES.get(_settings(row), "caffe") if row.style == "caffe" else ""
    wanted = f"{row.backbone}_{style}" if style else row.backbone
    wanted = next((name for word in sorted(said) if (name := f"{wanted}_{word}") in names("backbones")), wanted)
    return "" if wanted == own else wanted


def _named(part: PartConfig | None) -> str:
    """Return the name of a part, empty where there is none, or only arguments of one."""
    return part if isinstance(part, str) else (part or {}).get("name", "")
