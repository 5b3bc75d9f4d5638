"""Finds plugins and their parts: entry points, the name index, and building a part from its config.

Manifests are read when the first name is looked up; a part's module is imported when the part is built.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from detcli.errors import DetcliError, UsageError, unknown
from detcli.plugin import PART_SLOTS, Overlay, Part, PartConfig, Plugin, Recipe

GROUP = "detcli.plugins"
"""The entry-point group of plugins, those of this distribution and those of others."""

SLOTS = (*PART_SLOTS, "schedules", "recipes", "overlays")

CORE = EntryPoint("core", "detcli.builtin:plugin", GROUP)


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin, the module of its manifest, and the package that its relative references start from."""

    plugin: Plugin
    module: str
    package: str


@cache
def plugins() -> dict[str, Found]:
    """Return every plugin by name, the core first.

    One that can't be imported is named in a warning and left out. Raises `DetcliError` when two distributions
    bring a plugin of the same name.
    """
    found: dict[str, Found] = {}
    origins: dict[str, str] = {}
    for entry in [CORE, *sorted(set(entry_points(group=GROUP)), key=lambda entry: (entry.name, entry.value))]:
        if entry.name in found:
            raise DetcliError(
                f"two plugins are called {entry.name!r}: {origins[entry.name]} and {entry.value}. "
                "Uninstall one of them."
            )
        try:
            plugin = entry.load()
            if not isinstance(plugin, Plugin):
                raise TypeError(f"{entry.value} is no detcli.plugin.Plugin")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"plugin {entry.name!r} ({entry.value}) is left out: {reason}", stacklevel=2)
            continue
        package = sys.modules[entry.module].__package__ or entry.module
        found[entry.name] = Found(plugin, entry.module, package)
        origins[entry.name] = entry.value
    return found


@cache
def names(slot: str) -> Mapping[str, str]:
    """Return the names in `slot` (one of `SLOTS`), sorted, each with the name of its plugin."""
    return MappingProxyType({name: plugin for name, (plugin, _) in sorted(_index(slot).items())})


def singular(slot: str) -> str:
    """Return what one thing in `slot` is called."""
    return "loss" if slot == "losses" else slot.removesuffix("s").replace("_", " ")


def find(slot: str, name: str) -> Part:
    """Return the part called `name` in `slot`, its reference absolute.

    Raises `UsageError` with the nearest names when there is none.
    """
    part = _look_up(slot, name)
    assert isinstance(part, Part)
    return part


def find_recipe(name: str) -> Recipe:
    """Return the recipe called `name`; raises `UsageError` with the nearest names when there is none."""
    recipe = _look_up("recipes", name)
    assert isinstance(recipe, Recipe)
    return recipe


def find_overlay(name: str) -> Overlay:
    """Return the overlay called `name`; raises `UsageError` with the nearest names when there is none."""
    overlay = _look_up("overlays", name)
    assert isinstance(overlay, Overlay)
    return overlay


def find_schedule(name: str) -> Mapping[str, Any]:
    """Return the partial run config of a schedule; raises `UsageError` as `find` does."""
    schedule = _look_up("schedules", name)
    assert isinstance(schedule, Mapping)
    return schedule


def resolve(ref: str) -> Any:
    """Import ``"module:attribute"`` and return the attribute.

    Raises `DetcliError` when the module can't be imported or lacks the attribute.
    """
    module, _, attribute = ref.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DetcliError(f"can't import {ref}: {error}.") from error


def split(config: PartConfig) -> tuple[str, dict[str, Any]]:
    """Return the name of a part config and the arguments that are given beside it."""
    if isinstance(config, str):
        return config, {}
    return config["name"], {key: value for key, value in config.items() if key != "name"}


def build(slot: str, config: PartConfig, **context: Any) -> Any:
    """Return what the builder of the part that `config` names makes of it.

    Arguments come from the part's presets, then from `context` (what the part must know of its surroundings;
    a builder gets those that it has arguments for), then from `config`. Raises `UsageError` for an unknown
    name or argument, and for a part that needs more than it is given.
    """
    name, given = split(config)
    part = find(slot, name)
    builder: Callable[..., Any] = resolve(part.ref)
    known = inspect.signature(builder).parameters
    for key in given:
        if key not in known:
            raise unknown(f"argument of {singular(slot)} {name!r}", key, known)
    passed = {key: value for key, value in context.items() if key in known}
    arguments = {**part.args, **passed, **given}
    lacking = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in arguments]
    if lacking:
        raise UsageError(f"{singular(slot)} {name!r} needs {', '.join(lacking)}, which it is not given here.")
    return builder(**arguments)


@cache
def _index(slot: str) -> dict[str, tuple[str, Any]]:
    """Return name -> (plugin, what it stands for) for `slot`."""
    index: dict[str, tuple[str, Any]] = {}
    for plugin, found in plugins().items():
        for name, value in _entries(slot, found):
            if name in index:
                raise DetcliError(
                    f"plugins {index[name][0]!r} and {plugin!r} both have {name!r} in {slot}. "
                    "Uninstall one of them, or rename it."
                )
            index[name] = (plugin, value)
    return index


def _entries(slot: str, found: Found) -> Iterator[tuple[str, Any]]:
    values = getattr(found.plugin, slot)
    if slot in ("recipes", "overlays"):
        yield from ((value.name, value) for value in values)
    elif slot == "schedules":
        yield from values.items()
    else:
        for name, value in values.items():
            part = Part(value) if isinstance(value, str) else value
            yield name, replace(part, ref=found.package + part.ref if part.ref.startswith(".") else part.ref)


def _look_up(slot: str, name: str) -> Any:
    index = _index(slot)
    if name not in index:
        raise unknown(singular(slot), name, index, f"detcli list {slot}")
    return index[name][1]
