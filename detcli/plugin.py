"""What a plugin says about itself: frozen data that imports nothing heavy.

A plugin is a package whose ``__init__.py`` holds one `Plugin`. Everything in it is a name and a reference; a
reference is resolved when the thing is used, never when the plugin is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

PartConfig: TypeAlias = str | dict[str, Any]
"""A part as a user writes it: a name (``"r50"``) or a name with arguments (``{"name": "r50", "norm": "gn"}``)."""

# A builder annotates an argument with one of these to say which slot the part comes from. The argument is still a
# value: the builder passes it to `detcli.registry.build`, with what the part must know of its surroundings.
Backbone: TypeAlias = Annotated[PartConfig, "backbones"]
Attention: TypeAlias = Annotated[PartConfig, "attentions"]
Neck: TypeAlias = Annotated[PartConfig, "necks"]
RPNHead: TypeAlias = Annotated[PartConfig, "rpn_heads"]
RoIHead: TypeAlias = Annotated[PartConfig, "roi_heads"]
BBoxHead: TypeAlias = Annotated[PartConfig, "bbox_heads"]
MaskHead: TypeAlias = Annotated[PartConfig, "mask_heads"]
KeypointHead: TypeAlias = Annotated[PartConfig, "keypoint_heads"]
RoIExtractor: TypeAlias = Annotated[PartConfig, "roi_extractors"]
Assigner: TypeAlias = Annotated[PartConfig, "assigners"]
Sampler: TypeAlias = Annotated[PartConfig, "samplers"]
Loss: TypeAlias = Annotated[PartConfig, "losses"]
Transform: TypeAlias = Annotated[PartConfig, "transforms"]

PART_SLOTS = (
    "models",
    "backbones",
    "attentions",
    "necks",
    "rpn_heads",
    "roi_heads",
    "bbox_heads",
    "mask_heads",
    "keypoint_heads",
    "roi_extractors",
    "assigners",
    "samplers",
    "losses",
    "transforms",
    "datasets",
    "evaluators",
    "converters",
)
"""The slots of a `Plugin` that map a name to a buildable `Part`."""


@dataclass(frozen=True, slots=True)
class Part:
    """A buildable thing: where its builder is, and what a name presets.

    `ref` is ``"module:attribute"``; a leading dot makes it relative to the package of the manifest. `args` are
    preset arguments of the builder. `config` is a partial run config that comes with the part (the pixel mean of
    a backbone's ImageNet weights). `weights` is the URL of those weights.
    """

    ref: str
    args: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published setting of a model: what ``detcli train NAME`` trains when no flag says otherwise.

    `model` defaults to `name`; `args` are arguments of the model's builder; `optim`, `data`, `input`, `train` and
    `eval` are partial sections of the run config. `sched` names a schedule; `under` maps a schedule's name to a
    partial run config that the recipe adds when it runs under that schedule.
    """

    name: str
    model: str = ""
    backbone: PartConfig | None = None
    neck: PartConfig | None = None
    sched: str = "1x"
    args: Mapping[str, Any] = field(default_factory=dict)
    optim: Mapping[str, Any] = field(default_factory=dict)
    sched_args: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    eval: Mapping[str, Any] = field(default_factory=dict)
    under: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A partial run config that changes a recipe: ``--with NAME``.

    `applies_to` lists the models it fits (empty: all that have its arguments). `recipe` is the recipe that
    ``detcli train NAME`` starts from.
    """

    name: str
    config: Mapping[str, Any]
    applies_to: tuple[str, ...] = ()
    recipe: str = ""
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One paper (or dataset, or setting): names, and references that are imported when they are used.

    The part slots map a name to a `Part` or, for short, to its reference. `schedules` maps a name to a partial
    run config.
    """

    name: str
    title: str = ""
    arxiv: str = ""
    models: Mapping[str, Part | str] = field(default_factory=dict)
    backbones: Mapping[str, Part | str] = field(default_factory=dict)
    attentions: Mapping[str, Part | str] = field(default_factory=dict)
    necks: Mapping[str, Part | str] = field(default_factory=dict)
    rpn_heads: Mapping[str, Part | str] = field(default_factory=dict)
    roi_heads: Mapping[str, Part | str] = field(default_factory=dict)
    bbox_heads: Mapping[str, Part | str] = field(default_factory=dict)
    mask_heads: Mapping[str, Part | str] = field(default_factory=dict)
    keypoint_heads: Mapping[str, Part | str] = field(default_factory=dict)
    roi_extractors: Mapping[str, Part | str] = field(default_factory=dict)
    assigners: Mapping[str, Part | str] = field(default_factory=dict)
    samplers: Mapping[str, Part | str] = field(default_factory=dict)
    losses: Mapping[str, Part | str] = field(default_factory=dict)
    transforms: Mapping[str, Part | str] = field(default_factory=dict)
    datasets: Mapping[str, Part | str] = field(default_factory=dict)
    evaluators: Mapping[str, Part | str] = field(default_factory=dict)
    converters: Mapping[str, Part | str] = field(default_factory=dict)
    schedules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipes: tuple[Recipe, ...] | list[Recipe] = ()
    overlays: tuple[Overlay, ...] | list[Overlay] = ()
