"""The run config: everything that decides what a run does, in one typed value, and how it is resolved.

Later layers win: core defaults < what comes with a part (the pixel mean of a backbone's weights) < the
recipe's schedule < recipe < ``--with`` < ``--config`` < ``--sched`` < random weights < flags and ``--set``.
Dicts merge, lists replace.

A schedule that is asked for stands above the recipe, since it is the user's word, and sets only what it is
about: a recipe's warm-up survives ``--sched 2x``, of a schedule's model settings only those apply that the
model has, and a recipe may add its own ``under`` a schedule. When the weights end up as ``none``, the
backbone is trained whole, since random weights can't be frozen, unless a flag, ``--set`` or ``--config`` says
otherwise.

A builder's signature is the schema of its arguments, read without importing it; nothing here imports torch.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from detcli.errors import UsageError, nearest, unknown
from detcli.plugin import Overlay, PartConfig, Recipe
from detcli.registry import find, find_overlay, find_recipe, find_schedule, names, singular, split
from detcli.signature import REQUIRED, Parameter, read


class Section(BaseModel):
    """A group of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class InputConfig(Section):
    """How pixels become the network's input: (pixel - mean) / std in the given channel order, and padding."""

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channels: Literal["rgb", "bgr"] = "rgb"
    pad_divisor: int = Field(32, ge=1)


class DataConfig(Section):
    """What is trained and evaluated on, and how the pictures are changed on the way.

    `train` and `val` are folders, COCO-style JSON files or names of datasets; `source` stands for both.
    Resize scales are (longest side, shortest side) in pixels with the aspect ratio kept, or (width, height) without
    `keep_ratio`: `value` draws one of the list, `range` draws between the first and the last. `resize_with` opencv, as
    MMDetection and Detectron do, leaves pictures that become smaller as sharp as they were; pillow, as Detectron2 does,
    smooths them. `before_resize` and `transforms` are parts of the slot of transforms, the first of whole pictures
    before they are resized, the second of what the network gets, after everything else. Objects with a side of
    `min_side` pixels or less are not trained on, nor pictures without others. `semantic` is a folder of PNG files with
    the label of each pixel of the training pictures, in place of segments (see `detcli.data.semantic`). With a
    `repeat_threshold`, pictures with a class that is in a smaller share of all are shown more than once in an epoch
    (see `detcli.data.sampling`): a number of times that is rounded up, or drawn anew each epoch.
    """

    source: str = ""
    train: str = ""
    val: str = ""
    images: str = ""
    args: dict[str, Any] = Field(default_factory=dict)
    proposals: str = ""
    val_proposals: str = ""
    semantic: str = ""
    resize: list[tuple[int, int]] = Field(default_factory=lambda: [(1333, 800)])
    resize_mode: Literal["value", "range"] = "value"
    resize_with: Literal["opencv", "pillow"] = "opencv"
    keep_ratio: bool = True
    test_resize: tuple[int, int] = (1333, 800)
    flip: float = Field(0.5, ge=0, le=1)
    crop: tuple[int, int] | None = None
    before_resize: list[dict[str, Any]] = Field(default_factory=list)
    transforms: list[dict[str, Any]] = Field(default_factory=list)
    min_side: float = Field(0.0, ge=0)
    keep_empty: bool = False
    group_aspect: bool = True
    repeat_threshold: float = Field(0.0, ge=0, le=1)
    repeat_rounding: Literal["up", "drawn"] = "up"
    skip_bad_images: bool = False
    workers: int = Field(2, ge=0)


class OptimConfig(Section):
    """The optimiser. `lr` belongs to the reference batch `batch` and is scaled linearly to that of the run;
    0: no scaling.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.02, gt=0)
    batch: int = Field(16, ge=0)
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-4, ge=0)
    norm_decay: float | None = None
    bias_decay: float | None = None
    bias_lr: float = 1.0
    backbone_lr: float = 1.0
    clip_norm: float | None = None


class ScheduleConfig(Section):
    """How long a run is and how the learning rate changes; `length` and `drops` count in `unit`s."""

    unit: Literal["epoch", "iter"] = "epoch"
    length: int = Field(12, ge=1)
    policy: Literal["step", "cosine", "constant"] = "step"
    drops: list[int] = Field(default_factory=lambda: [8, 11])
    gamma: float = 0.1
    min_lr_ratio: float = 0.0
    warmup: Literal["linear", "constant", "none"] = "linear"
    warmup_iters: int = Field(500, ge=0)
    warmup_ratio: float = 0.001


class TrainConfig(Section):
    """The run itself. `batch` is the number of images of one optimiser step, over all accumulation steps."""

    batch: int = Field(4, ge=1)
    accumulate: int = Field(1, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    channels_last: bool = True
    ema: float | None = None
    seed: int = 0
    device: str = "auto"
    eval_every: int = Field(1, ge=0)
    early_stop: int | None = None
    tensorboard: bool = False


class TTAConfig(Section):
    """Test-time augmentation: pictures are looked at in all `scales`, with `flip` also mirrored, and results merged.

    A scale is a factor of `data.test_resize`, or a scale itself as that is. Of boxes of one class whose IoU is above
    `nms_threshold`, the best stays; `max_per_image` stay in all. Where these are null, they are the model's own.
    """

    scales: list[PositiveFloat | tuple[PositiveInt, PositiveInt]] = Field([1.0], min_length=1)
    flip: bool = False
    nms_threshold: float | None = Field(None, gt=0, le=1)
    max_per_image: int | None = Field(None, ge=1)

    @property
    def active(self) -> bool:
        """Whether pictures are looked at otherwise than once, in their own size."""
        return self.flip or self.scales != [1.0]

    def sizes(self, test_resize: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the scales in pixels."""
        width, height = test_resize
        return [
            scale if isinstance(scale, tuple) else (max(1, round(width * scale)), max(1, round(height * scale)))
            for scale in self.scales
        ]


class EvalConfig(Section):
    """How results are measured and shown; `evaluator` is a name in the slot of evaluators.

    `tta` holds for prediction, too.
    """

    evaluator: str = "faster"
    batch: int = Field(1, ge=1)
    show: int = Field(8, ge=0)
    tta: TTAConfig = TTAConfig()

    @field_validator("evaluator")
    @classmethod
    def _known(cls, name: str) -> str:
        find("evaluators", name)
        return name


class RunConfig(Section):
    """The whole config of a run.

    `model` is ``{"name": ..., **arguments of the model's builder}``. `weights` are the starting weights:
    ``imagenet`` (the backbone's), ``none``, or a checkpoint, of which `reset_head` leaves out what depends on classes.
    """

    recipe: str
    sched_name: str = "1x"
    model: dict[str, Any]
    weights: str = "imagenet"
    reset_head: bool = False
    input: InputConfig = InputConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    sched: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


DEFAULT = "default"
FLAG = "flag"
SETTING = "--set"
RANDOM_WEIGHTS = "random weights"

RANDOM_BACKBONE = {"frozen_stages": 0, "norm_eval": False, "norm_trained": True}
"""What a backbone must be told to learn from random weights."""

Layer = tuple[str, Mapping[str, Any]]
"""Where settings come from, and the partial run config."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A run config, and where each value comes from: dotted key -> ``recipe atss``, ``--set``..."""

    config: RunConfig
    origins: dict[str, str]


def resolve(
    target: str,
    *,
    backbone: str | None = None,
    neck: str | None = None,
    sched: str | None = None,
    overlays: Iterable[str] = (),
    file: Path | None = None,
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Resolved:
    """Return the run config of the recipe or overlay `target`, with every argument of its model filled in.

    `settings` are texts ``"a.b=c"``; `flags` maps dotted keys to values. Raises `UsageError`, in one line
    that names the dotted key, for what is unknown or of the wrong type.
    """
    recipe, chosen = _target(target, overlays)
    sched_name = sched or recipe.sched
    sched_config = {"sched_name": sched_name, **find_schedule(sched_name)}
    sched_model = sched_config.pop("model", {})
    schedule: Layer = (f"schedule {sched_name}", sched_config)
    under: Layer = (f"recipe {recipe.name} under {sched_name}", recipe.under.get(sched_name, {}))
    asked: list[Layer] = [(str(file), _read_file(file))] if file else []
    parts = {f"model.{slot}": name for slot, name in (("backbone", backbone), ("neck", neck)) if name is not None}
    given = [*_dotted({**parts, **(flags or {})}, FLAG), *_parse_settings(settings)]

    below = [] if sched else [schedule]
    below += [(f"recipe {recipe.name}", _recipe_config(recipe))]
    for overlay in chosen:
        below.append((f"overlay {overlay.name}", _fitting(overlay, _apply(below).expanded()[0]["model"])))
    below += [*asked, *([schedule] if sched else [])]
    if sched_model:
        below.append((schedule[0], {"model": _present(_apply(below).expanded()[0]["model"], sched_model)}))
    below.append(under)

    # What comes with the parts, and what random weights need, depends on the parts and weights that all
    # layers choose.
    tree = _apply([*below, *given])
    values, origins = tree.expanded()
    around = list(_part_configs("models", values["model"]))
    words = {FLAG, SETTING, *(origin for origin, _ in asked)}
    random = _random_weights(tree, values, words) if values.get("weights") == "none" else []
    if around or random:
        values, origins = _apply([*around, *below, *random, *given]).expanded()
    config = _validated(values, origins)
    return Resolved(config, {key: origins.get(key, DEFAULT) for key in leaves(config.model_dump())})


def revise(
    config: RunConfig,
    *,
    overlays: Iterable[str] = (),
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return `config` with `overlays`, `flags` (dotted key -> value) and then `settings` (``"a.b=c"``) changed.

    Raises `UsageError` as `resolve` does, and for an overlay that changes what a trained model is.
    """
    chosen = [find_overlay(overlay) for overlay in overlays]
    for overlay in chosen:
        _require_of_evaluation(overlay)
    layers = [(f"overlay {overlay.name}", _fitting(overlay, config.model)) for overlay in chosen]
    given = [*_dotted(flags or {}, FLAG), *_parse_settings(settings)]
    return _validated(*_apply([("checkpoint", config.model_dump()), *layers, *given]).expanded())


def without_tta(config: RunConfig) -> RunConfig:
    """Return `config` without test-time augmentation."""
    return config.model_copy(update={"eval": config.eval.model_copy(update={"tta": TTAConfig()})})


def load(data: Mapping[str, Any]) -> RunConfig:
    """Return the run config that ``model_dump`` wrote, its model's arguments checked against their builders.

    Raises `UsageError` when a plugin that it names is not installed or takes other arguments now.
    """
    return _validated(*_apply([("checkpoint", data)]).expanded())


def lengthened(config: RunConfig, *, epochs: int | None = None, iters: int | None = None) -> RunConfig:
    """Return `config` with the given length in epochs or optimiser steps; the drops move in proportion."""
    if epochs is None and iters is None:
        return config
    if epochs is not None and iters is not None:
        raise UsageError("--epochs and --iters both say how long to train; give one of them.")
    length = epochs if epochs is not None else iters
    assert length is not None
    sched = {
        **config.sched.model_dump(),
        "unit": "iter" if epochs is None else "epoch",
        "length": length,
        "drops": [round(drop * length / config.sched.length) for drop in config.sched.drops],
    }
    return _validated({**config.model_dump(), "sched": sched}, {"sched.length": FLAG})


def leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return dotted key -> value for everything in `tree` that is not a group; an empty group is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        where = f"{path}{key}"
        found |= leaves(value, f"{where}.") if isinstance(value, Mapping) and value else {where: value}
    return found


class _Tree:
    """Settings as the layers give them: a part holds its name and what was given beside it, not yet its
    defaults.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def merge(self, layer: Mapping[str, Any], origin: str) -> None:
        """Lay a partial run config over what is there."""
        self._merge_group(self.values, layer, "", origin)

    def expanded(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the settings with every argument of the model and its parts, and the origins of all."""
        origins = dict(self.origins)
        values = {**self.values, "model": _expand("models", self.values["model"], "model", origins)}
        for key in ("before_resize", "transforms"):
            data = values.get("data", {})
            if isinstance(data.get(key), list):
                places = [(part, f"data.{key}.{index}") for index, part in enumerate(data[key])]
                transforms = [_expand("transforms", _node(part, where), where, origins) for part, where in places]
                values["data"] = {**data, key: transforms}
        return values, origins

    def _merge_group(self, group: dict[str, Any], layer: Mapping[str, Any], path: str, origin: str) -> None:
        for key, value in layer.items():
            where = f"{path}{key}"
            if where == "model":
                group[key] = self._merge_part("models", group.get(key), value, where, origin)
            else:
                self._merge_value(group, key, value, where, origin)

    def _merge_value(self, group: dict[str, Any], key: str, value: Any, where: str, origin: str) -> None:
        mergeable = isinstance(value, Mapping) and isinstance(group.get(key), dict)
        if not mergeable:
            self._forget(where)
        if isinstance(value, Mapping):
            group[key] = group[key] if mergeable else {}
            self._merge_group(group[key], value, f"{where}.", origin)
        else:
            group[key] = value
            self.origins[where] = origin

    def _merge_part(
        self, slot: str, node: dict[str, Any] | None, value: Any, where: str, origin: str
    ) -> dict[str, Any]:
        """Return `node` with `value` laid over it; a new name keeps those arguments that the new part has,
        too.
        """
        if isinstance(value, Mapping) and "name" not in value and node:
            value = {"name": node["name"], **value}
        name, given = split(_node(value, where))
        known = _parameters(slot, name, where)
        if node is None or name != node["name"]:
            kept = {key: kept for key, kept in (node or {}).items() if key in known}
            for key in set(node or {}) - set(kept):
                self._refuse_to_lose(f"{where}.{key}", slot, name)
                self._forget(f"{where}.{key}")
            node = {"name": name, **kept}
            self.origins[f"{where}.name"] = origin
        for key, argument in given.items():
            inner = f"{where}.{key}"
            if key not in known:
                raise _unknown_setting(inner, known, [f"{where}.{place}" for place in _places(slot, node, key)])
            parameter = known[key]
            if parameter.default is REQUIRED and slot == "models":
                raise UsageError(f"{inner} comes from the data and can't be set.")
            if key not in node:
                self._seed(node, slot, parameter, inner)
            if parameter.slot and argument is not None:
                node[key] = self._merge_part(parameter.slot, node.get(key), argument, inner, origin)
            else:
                self._merge_value(node, key, argument, inner, origin)
        return node

    def _seed(self, node: dict[str, Any], slot: str, parameter: Parameter, where: str) -> None:
        """Put what the part presets, or the builder's default, where a layer is about to change a piece of
        it.
        """
        default, origin = _preset(slot, node["name"], parameter)
        if parameter.slot and default not in (REQUIRED, None):
            node[parameter.name] = self._whole_part(parameter.slot, default, where, origin)
        elif isinstance(default, Mapping):
            self._merge_value(node, parameter.name, default, where, origin)

    def _whole_part(self, slot: str, value: Any, where: str, origin: str) -> dict[str, Any]:
        """Return a part as a default or a preset gives it: what it leaves out is the part's own default, as it is
        where a builder is called without a config.
        """
        node = deepcopy(_node(value, where))
        self.origins[f"{where}.name"] = origin
        known = _parameters(slot, node["name"], where)
        for key, argument in node.items():
            inner = f"{where}.{key}"
            inner_slot = known[key].slot if key in known else None
            if inner_slot and argument is not None:
                node[key] = self._whole_part(inner_slot, argument, inner, origin)
            elif key != "name":
                self._merge_value(node, key, argument, inner, origin)
        return node

    def _refuse_to_lose(self, where: str, slot: str, name: str) -> None:
        """Raise `UsageError` when an overlay gave the argument at `where`, for whatever part there is."""
        owner = where.rpartition(".")[0]
        given = {origin for key, origin in self.origins.items() if key == where or key.startswith(f"{where}.")}
        for origin in given - {self.origins.get(f"{owner}.name")}:
            if origin.startswith("overlay "):
                raise UsageError(
                    f"{origin} sets {where}, which {singular(slot)} {name!r} has not: leave one of the two out."
                )

    def _forget(self, where: str) -> None:
        for key in [key for key in self.origins if key == where or key.startswith(f"{where}.")]:
            del self.origins[key]


def _apply(layers: Iterable[Layer]) -> _Tree:
    tree = _Tree()
    for origin, layer in layers:
        tree.merge(layer, origin)
    return tree


def _target(name: str, overlays: Iterable[str]) -> tuple[Recipe, list[Overlay]]:
    """Return the recipe that `name` stands for, and the overlays on it, `name`'s own first."""
    chosen = [find_overlay(overlay) for overlay in overlays]
    if name in names("recipes"):
        return find_recipe(name), chosen
    if name not in names("overlays"):
        raise unknown("recipe", name, {**names("recipes"), **names("overlays")}, "detcli list recipes")
    overlay = find_overlay(name)
    if not overlay.recipe:
        raise UsageError(f"overlay {name!r} changes a recipe and is none: `detcli train RECIPE --with {name}`.")
    return find_recipe(overlay.recipe), [overlay, *chosen]


def _require_of_evaluation(overlay: Overlay) -> None:
    """Raise `UsageError` unless an overlay changes nothing but how a model is evaluated."""
    others = sorted(set(overlay.config) - {"eval"})
    if others:
        fitting = [name for name in names("overlays") if set(find_overlay(name).config) == {"eval"}]
        raise UsageError(
            f"overlay {overlay.name!r} changes {', '.join(others)}, which a trained model has already: "
            f"`detcli train RECIPE --with {overlay.name}`. With a trained model go {', '.join(fitting) or 'none'}."
        )


def _fitting(overlay: Overlay, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `overlay` changes in a run of `model`, without pieces of parts that the model does without."""
    name = model["name"]
    if overlay.applies_to and name not in overlay.applies_to:
        raise UsageError(f"overlay {overlay.name!r} fits {', '.join(overlay.applies_to)}, not {name!r}.")

    def fitting(settings: Mapping[str, Any], part: Mapping[str, Any], where: str) -> dict[str, Any]:
        found = {}
        for key, value in settings.items():
            if key not in part:
                raise UsageError(
                    f"overlay {overlay.name!r} does not fit {name!r}, which has no argument {where + key!r}."
                )
            if isinstance(value, Mapping) and "name" not in value:
                if part[key] is None:
                    continue
                value = fitting(value, part[key], f"{where}{key}.")
            found[key] = value
        return found

    config = dict(overlay.config)
    return config | {"model": fitting(config["model"], model, "")} if "model" in config else config


def _present(model: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a schedule's `settings` that `model`, with all its arguments, has: a model may lack a neck."""
    found = {}
    for key, value in settings.items():
        if model.get(key) is not None:
            found[key] = _present(model[key], value) if isinstance(value, Mapping) and "name" not in value else value
    return found


def _recipe_config(recipe: Recipe) -> dict[str, Any]:
    parts = {"backbone": recipe.backbone, "neck": recipe.neck}
    model = {"name": recipe.model or recipe.name, **recipe.args}
    return {
        "recipe": recipe.name,
        "model": model | {key: part for key, part in parts.items() if part is not None},
        "input": recipe.input,
        "data": recipe.data,
        "optim": recipe.optim,
        "sched": recipe.sched_args,
        "train": recipe.train,
        "eval": recipe.eval,
    }


def _read_file(path: Path) -> dict[str, Any]:
    """Return the partial run config in a TOML or JSON file."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"can't read --config {path}: {error.strerror}.") from None
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise UsageError(f"--config {path} is not valid {kind}: {error}.") from None
    if not isinstance(data, dict):
        raise UsageError(f'--config {path} must hold settings by name, as {{"optim": {{"lr": 0.01}}}}.')
    return data


def _parse_settings(settings: Iterable[str]) -> Iterator[Layer]:
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {setting!r} is not KEY=VALUE, as in `--set optim.lr=0.01`.")
        yield from _dotted({key.strip(): _literal(text.strip())}, SETTING)


def _literal(text: str) -> Any:
    """Return the value of a JSON or TOML literal; any other text is itself."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _dotted(values: Mapping[str, Any], origin: str) -> Iterator[Layer]:
    """Yield a layer for each dotted key."""
    for key, value in values.items():
        *groups, last = key.split(".")
        layer: dict[str, Any] = {last: value}
        for group in reversed(groups):
            layer = {group: layer}
        yield origin, layer


def _node(value: Any, where: str) -> dict[str, Any]:
    """Return a part config in the form of a dict."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return dict(value)
    raise UsageError(f'{where} must be a name, or a name with arguments as {{"name": "fpn", ...}}, not {value!r}.')


def _parameters(slot: str, name: str, where: str) -> dict[str, Parameter]:
    try:
        part = find(slot, name)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return {parameter.name: parameter for parameter in read(part.ref)}


def _preset(slot: str, name: str, parameter: Parameter) -> tuple[Any, str]:
    """Return what an argument is when nobody gives it, and where that comes from."""
    args = find(slot, name).args
    if parameter.name in args:
        return args[parameter.name], f"{singular(slot)} {name}"
    return parameter.default, DEFAULT


def _expand(slot: str, node: PartConfig, where: str, origins: dict[str, str]) -> dict[str, Any]:
    """Return the part config with every argument that has a value, checked; note the origins of what is
    added.
    """
    name, given = split(node)
    known = _parameters(slot, name, where)
    result: dict[str, Any] = {"name": name}
    for key in given:
        if key not in known:
            raise _unknown_setting(f"{where}.{key}", known)
    for key, parameter in known.items():
        inner = f"{where}.{key}"
        value, origin = _preset(slot, name, parameter)
        if key in given:
            value = given[key]
        elif value is not REQUIRED:
            origins[inner] = origin
        if value is REQUIRED:
            continue
        if parameter.slot and value is not None:
            part = _node(value, inner)
            for leaf in leaves(part, f"{inner}."):
                origins.setdefault(leaf, origins.get(inner, origin))
            result[key] = _expand(parameter.slot, part, inner, origins)
        else:
            result[key] = _typed(parameter, value, inner, origins)
    return result


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _typed(parameter: Parameter, value: Any, where: str, origins: Mapping[str, str]) -> Any:
    try:
        return _adapter(parameter.annotation).validate_python(value)
    except ValidationError as error:
        raise UsageError(_complaint(where, error.errors()[0], value, origins)) from None


def _places(slot: str, node: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield where the parts inside a part have an argument `key`, dotted."""
    for parameter in read(find(slot, node["name"]).ref):
        if not parameter.slot:
            continue
        inner = node.get(parameter.name, _preset(slot, node["name"], parameter)[0])
        if inner in (None, REQUIRED):
            continue
        inner = _node(inner, parameter.name)
        if key in _parameters(parameter.slot, inner["name"], parameter.name):
            yield f"{parameter.name}.{key}"
        yield from (f"{parameter.name}.{place}" for place in _places(parameter.slot, inner, key))


def _part_configs(slot: str, node: Mapping[str, Any]) -> Iterator[Layer]:
    """Yield what comes with a part and those inside it."""
    part = find(slot, node["name"])
    if part.config:
        yield f"{singular(slot)} {node['name']}", part.config
    for parameter in read(part.ref):
        inner = node.get(parameter.name)
        if parameter.slot and inner is not None:
            yield from _part_configs(parameter.slot, inner)


def _random_weights(tree: _Tree, expanded: Mapping[str, Any], words: set[str]) -> list[Layer]:
    """Return the layer that lets backbones learn from random weights, without what the user's own `words`
    set.
    """
    model = expanded["model"]
    layers = {}
    for parameter in read(find("models", model["name"]).ref):
        if parameter.slot == "backbones" and (node := model.get(parameter.name)) is not None:
            layers[parameter.name] = {
                key: value
                for key, value in RANDOM_BACKBONE.items()
                if key in node and tree.origins.get(f"model.{parameter.name}.{key}") not in words
            }
    return [(RANDOM_WEIGHTS, {"model": layers})]


def _validated(values: Mapping[str, Any], origins: Mapping[str, str]) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        section: Any = RunConfig
        for step in first["loc"][:-1]:
            section = section.model_fields[step].annotation
        raise _unknown_setting(where, section.model_fields)
    raise UsageError(_complaint(where, first, first["input"], origins))


def _complaint(where: str, error: Any, value: Any, origins: Mapping[str, str]) -> str:
    steps = where.split(".")
    above = (".".join(steps[:count]) for count in range(len(steps), 0, -1))
    origin = next((origins[key] for key in above if key in origins), DEFAULT)
    reason = error["msg"][0].lower() + error["msg"][1:]
    return f"{where} can't be {value!r} ({origin}): {reason}."


def _unknown_setting(where: str, known: Iterable[str], elsewhere: Iterable[str] = ()) -> UsageError:
    """Return the error that names what is near: settings of the same name in other places, or else of similar names."""
    path, dot, key = where.rpartition(".")
    matches = [repr(place) for place in elsewhere] or [repr(path + dot + match) for match in nearest(key, known)]
    hint = f"did you mean {' or '.join(matches)}?" if matches else f"there is {', '.join(sorted(known))}."
    return UsageError(f"unknown setting {where!r}: {hint}")
