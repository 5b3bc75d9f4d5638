"""The contract of plugins, as a test that a plugin of any distribution calls: `check_plugin`."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib.resources import files
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from detcli.config import RunConfig, leaves, resolve
from detcli.convert.rules import Rule
from detcli.data.panoptic import encode_ids
from detcli.errors import DetcliError, unknown
from detcli.eval.evaluator import MAIN, measure, tasks_of
from detcli.nn.detector import Detector
from detcli.plugin import PART_SLOTS, Overlay, Plugin, Recipe
from detcli.registry import Found, build, find, find_recipe, names, plugins
from detcli.registry import resolve as resolve_reference
from detcli.signature import REQUIRED, read
from detcli.structures import UNLABELLED, Batch, Detections, ImageInfo, Target

HEAVY = ("torch", "torchvision", "numpy", "cv2", "scipy", "matplotlib")
"""What a manifest must not import."""

NUM_CLASSES = 3
NUM_KEYPOINTS = 17
HEIGHT, WIDTH = 128, 160


class ContractError(AssertionError):
    """A plugin that does not keep the contract; the message says where."""


def check_plugin(plugin: Plugin | str) -> None:
    """Hold an installed plugin to the contract: manifest, builders, recipes, models and card.

    Its models are trained for a step and asked for detections, small and with random weights. Raises
    `ContractError` at the first thing that is wrong, and `UsageError` when there is no such plugin.
    """
    name = plugin if isinstance(plugin, str) else plugin.name
    if name not in plugins():
        raise unknown("plugin", name, plugins(), "detcli list plugins")
    found = plugins()[name]
    try:
        _check_manifest(name, found)
        for slot in PART_SLOTS:
            for part in _own(slot, name):
                _check_part(slot, part)
        for recipe in found.plugin.recipes:
            _check_recipe(recipe)
        for overlay in found.plugin.overlays:
            _check_overlay(overlay)
        for model in _own("models", name):
            _check_model(model, found.plugin)
        if not (found.plugin.models or found.plugin.overlays):
            for recipe in found.plugin.recipes[:1]:
                _check_step(f"recipe {recipe.name!r}", recipe)
        _check_card(found)
    except DetcliError as error:
        raise ContractError(f"plugin {name!r}: {error}") from error


def random_batch(seed: int = 0) -> Batch:
    """Return two images of 128x160: one with three objects, masks, keypoints, semantic labels and proposals, one
    smaller and without objects.
    """
    random = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[8.0, 10.0, 60.0, 70.0], [70.0, 20.0, 150.0, 120.0], [20.0, 80.0, 50.0, 110.0]])
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    corners = torch.rand(40, 2, generator=random) * torch.tensor([100.0, 70.0])
    proposals = torch.cat([corners, corners + 5 + torch.rand(40, 2, generator=random) * 50], dim=1)
    stuff = (NUM_CLASSES + torch.arange(HEIGHT) // 50).to(torch.uint8)[:, None].repeat(1, WIDTH)
    semantic = torch.where(masks.bool().any(0), masks.argmax(0).to(torch.uint8), stuff)
    places = torch.rand(len(boxes), NUM_KEYPOINTS, 2, generator=random)
    points = boxes[:, None, :2] + places * (boxes[:, 2:] - boxes[:, :2])[:, None]
    keypoints = torch.cat([points, (torch.arange(NUM_KEYPOINTS) % 3).expand(len(boxes), -1)[..., None]], dim=-1)
    full = Target(
        boxes,
        torch.arange(NUM_CLASSES),
        masks,
        proposals=torch.cat([boxes + 2, proposals]),
        semantic=semantic,
        keypoints=keypoints,
    )
    stuff[HEIGHT - 30 :] = UNLABELLED
    empty = Target(boxes[:0], full.labels[:0], masks[:0], proposals=proposals, semantic=stuff, keypoints=keypoints[:0])
    sizes = torch.tensor([[HEIGHT, WIDTH], [HEIGHT - 30, WIDTH]])
    return Batch(torch.randn(2, 3, HEIGHT, WIDTH, generator=random), sizes, [full, empty])


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ContractError(message)


def _own(slot: str, plugin: str) -> list[str]:
    return [name for name, owner in names(slot).items() if owner == plugin]


def _check_manifest(name: str, found: Found) -> None:
    _require(
        found.plugin.name == name,
        f"plugin {found.plugin.name!r} has the entry point {name!r}; call both alike.",
    )
    code = f"import sys, {found.module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    _require(done.returncode == 0, f"the manifest {found.module} can't be imported by itself: {done.stderr}")
    _require(
        not done.stdout.strip(),
        f"the manifest {found.module} imports {done.stdout.strip()}; name it by reference.",
    )


def _check_part(slot: str, name: str) -> None:
    part = find(slot, name)
    builder = resolve_reference(part.ref)
    if slot == "converters" and isinstance(builder, tuple):
        _require(all(isinstance(rule, Rule) for rule in builder), f"{slot} {name!r}: {part.ref} has more than rules.")
        return
    _require(callable(builder), f"{slot} {name!r}: {part.ref} can't be called.")
    if slot == "converters":
        return
    static = {parameter.name: parameter for parameter in read(part.ref)}
    signature = inspect.signature(builder).parameters
    types = get_type_hints(builder, include_extras=True)
    _require(list(static) == list(signature), f"{part.ref} is not what its source says; is it decorated?")
    for key, parameter in signature.items():
        default = REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
        _require(static[key].default == default, f"{part.ref}: the default of {key!r} is changed after its source.")
        _require(
            static[key].annotation in (types[key], Any),
            f"{part.ref}: the type of {key!r} is not that of its source.",
        )
    for key in part.args:
        _require(key in static, f"{slot} {name!r} presets {key!r}, which {part.ref} does not have.")
    if slot == "backbones":
        _check_backbone(name)
    if slot == "attentions":
        _check_attention(name)
    if slot == "evaluators":
        _check_evaluator(name)


def _check_backbone(name: str) -> None:
    """Compare the features of a backbone with what it says of them, without computing any."""
    with torch.device("meta"):
        backbone = build("backbones", name)
        features = backbone(torch.zeros(1, 3, HEIGHT, WIDTH))
    shapes = tuple((x.shape[1], HEIGHT // x.shape[2]) for x in features)
    said = tuple(zip(backbone.out_channels, backbone.strides, strict=True))
    _require(shapes == said, f"backbone {name!r} says (channels, stride) {said}, and returns {shapes}.")


def _check_attention(name: str) -> None:
    """Hold the maps that an attention returns to the shape of those that it was given."""
    with torch.device("meta"):
        maps = torch.zeros(2, 64, HEIGHT // 8, WIDTH // 8)
        found = build("attentions", name, in_channels=maps.shape[1])(maps)
    _require(
        found.shape == maps.shape, f"attention {name!r} makes maps {list(found.shape)} of maps {list(maps.shape)}."
    )


def _check_evaluator(name: str) -> None:
    """Hold an evaluator to the figures of nothing found, of each task that it says it measures."""
    _require(tasks_of(name), f"evaluator {name!r} must take `task`, a Literal of the tasks that it measures.")
    square = {
        "bbox": [10, 10, 40, 40],
        "area": 1600,
        "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]],
        "keypoints": [30, 30, 2],
    }
    searched: dict[str, list[int]] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH, **searched}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, **square}],
        "categories": [{"id": 1, "name": "square", "keypoints": ["centre"], "frequency": "f"}],
    }
    segments = encode_ids(np.pad(np.ones((40, 40), np.int64), ((10, HEIGHT - 50), (10, WIDTH - 50))))
    cut = {"image_id": 1, "segments_info": [{"id": 1, "category_id": 1, "iscrowd": 0}], "png": segments}
    of_task = {"panoptic": truth | {"annotations": [cut], "categories": [{"id": 1, "name": "square", "isthing": 1}]}}
    for task in tasks_of(name):
        _require(task in MAIN, f"evaluator {name!r}: {task!r} is no task; there is {', '.join(MAIN)}.")
        figures = measure(name, task, of_task.get(task, truth), []).metrics
        _require(figures.get(MAIN[task]) == 0, f"evaluator {name!r}: {MAIN[task]} of nothing found must be 0.")


def _check_recipe(recipe: Recipe) -> None:
    _check_config(f"recipe {recipe.name!r}", resolve(recipe.name).config)


def _check_overlay(overlay: Overlay) -> None:
    """Lay an overlay over the recipe that it says, and over one of each model that it says it fits."""
    bases = [overlay.recipe] if overlay.recipe else []
    for model in overlay.applies_to:
        fitting = [name for name in names("recipes") if (find_recipe(name).model or name) == model]
        _require(fitting, f"overlay {overlay.name!r}: there is no recipe of {model!r}, which it says it fits.")
        bases.append(fitting[0])
    for base in bases:
        _check_config(f"overlay {overlay.name!r} on {base!r}", resolve(base, overlays=[overlay.name]).config)
    if overlay.recipe and "model" in overlay.config:
        _check_step(f"overlay {overlay.name!r}", find_recipe(overlay.recipe), overlay)


def _check_config(where: str, config: RunConfig) -> None:
    with torch.device("meta"):
        model = build("models", config.model, num_classes=NUM_CLASSES)
    _require(isinstance(model, Detector), f"{where}: its model is no detcli.nn.detector.Detector.")


def _check_model(name: str, plugin: Plugin) -> None:
    recipe = next((recipe for recipe in plugin.recipes if (recipe.model or recipe.name) == name), None)
    if recipe is None:
        raise ContractError(f"model {name!r} has no recipe, so nobody can train it.")
    config = _small_config(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build("models", config, num_classes=NUM_CLASSES)
        twin = build("models", config, num_classes=NUM_CLASSES)
        batch = random_batch()
        _check_training(f"model {name!r}", model, batch)
        model.eval()
        with torch.inference_mode():
            found = model(batch)
            _check_detections(name, model, found, batch)
            twin.load_state_dict(model.state_dict())
            again = twin.eval()(batch)
    same = all(
        one.boxes.shape == other.boxes.shape and torch.equal(one.scores, other.scores)
        for one, other in zip(found, again, strict=True)
    )
    _require(same, f"model {name!r} detects otherwise after its state dict was loaded into another one.")


def _check_step(where: str, recipe: Recipe, *overlays: Overlay) -> None:
    """Train a recipe of a model that another plugin may own for a step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build("models", _small_config(recipe, *overlays), num_classes=NUM_CLASSES)
        _check_training(where, model, random_batch())


def _small_config(recipe: Recipe, *overlays: Overlay) -> dict[str, Any]:
    """Return the model of a recipe under overlays with ResNet-18, a slim neck, no score threshold and boxes cut at the
    borders of images (`clip`), where it has these.
    """
    laid = [overlay.name for overlay in overlays]
    model = resolve(recipe.name, overlays=laid).config.model
    own = {key: (key.rpartition(".")[2], value) for key, value in leaves(model).items()}
    settings = [f"model.{key}=0.0" for key, (last, _) in own.items() if last == "score_threshold"]
    settings += [f"model.{key}=true" for key, (last, value) in own.items() if last == "clip" and value is False]
    if isinstance(model.get("neck"), dict) and "out_channels" in model["neck"]:
        settings.append("model.neck.out_channels=64")
    backbone = model.get("backbone")
    core = isinstance(backbone, dict) and names("backbones")[backbone["name"]] == "core"
    small = resolve(
        recipe.name, overlays=laid, backbone="r18" if core else None, flags={"weights": "none"}, settings=settings
    )
    return small.config.model


def _check_training(where: str, model: nn.Module, batch: Batch) -> None:
    losses: dict[str, Tensor] = model.train()(batch)
    _require(isinstance(losses, dict), f"{where} in training returns {type(losses).__name__}, not losses.")
    for key, loss in losses.items():
        _require(loss.ndim == 0 and loss.isfinite(), f"{where}: {key} is {loss}, not a finite number.")
    terms = [loss for key, loss in losses.items() if "loss" in key]
    _require(terms, f'{where} returns {", ".join(losses) or "nothing"}: no name has "loss" in it.')
    torch.autograd.backward(torch.stack(terms).sum())
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    idle = [key for key, parameter in trained.items() if parameter.grad is None]
    _require(not idle, f"{where}: no loss depends on {', '.join(idle[:3])} ({len(idle)} parameters).")
    bad = [key for key, parameter in trained.items() if not parameter.grad.isfinite().all()]  # type: ignore[union-attr]
    _require(not bad, f"{where}: the gradient of {', '.join(bad[:3])} is not finite.")


def _check_detections(name: str, model: Detector, found: list[Detections], batch: Batch) -> None:
    right = isinstance(found, list) and all(isinstance(one, Detections) for one in found)
    _require(
        right and len(found) == len(batch),
        f"model {name!r} in eval mode must return one Detections an image.",
    )
    for one, size in zip(found, batch.sizes, strict=True):
        scores, labels = one.scores, one.labels
        sound = one.boxes.shape == (len(scores), 4) and one.boxes.isfinite().all()
        _require(sound, f"model {name!r}: boxes must be finite and [{len(scores)},4], not {list(one.boxes.shape)}.")
        _require((one.boxes[:, 2:] >= one.boxes[:, :2]).all(), f"model {name!r}: boxes must be x1, y1, x2, y2.")
        inside = (one.boxes >= 0).all() and (one.boxes <= size.flip(0).repeat(2)).all()
        _require(inside, f"model {name!r}: boxes must not reach beyond their image.")
        _require((scores.diff() <= 0).all(), f"model {name!r}: detections must be sorted, best first.")
        _require(((scores >= 0) & (scores <= 1)).all(), f"model {name!r}: scores must be in 0..1.")
        valid = labels.dtype == torch.int64 and ((labels >= 0) & (labels < NUM_CLASSES)).all()
        _require(valid, f"model {name!r}: labels must be int64 in 0..{NUM_CLASSES - 1}.")
        masks = next((form for form in (one.mask_crops, one.mask_maps, one.masks) if form is not None), None)
        masked = "mask" not in model.tasks or (masks is not None and len(masks) == len(scores))
        _require(masked, f"model {name!r} has the task 'mask', but not a mask for each detection.")
        points = one.keypoints
        pointed = "keypoint" not in model.tasks or (points is not None and points.shape[::2] == (len(scores), 3))
        _require(pointed, f"model {name!r} has the task 'keypoint', but not keypoints [K,3] for each detection.")
        if "panoptic" in model.tasks:
            height, width = size.tolist()
            panoptic = model.merge(one, ImageInfo(1, "", (height, width), (height, width)))
            numbers = torch.bincount(panoptic.segments.flatten()).nonzero()[:, 0]
            complete = numbers[numbers > 0].tolist() == list(range(1, len(panoptic.labels) + 1))
            _require(complete, f"model {name!r}: segments must be numbered from 1, as many as there are labels.")


def _check_card(found: Found) -> None:
    plugin = found.plugin
    if not plugin.models and not plugin.arxiv:
        return
    card = files(found.package).joinpath("README.md")
    _require(card.is_file(), f"plugin {plugin.name!r} has no card: {card} is not there.")
    cited = plugin.arxiv in card.read_text(encoding="utf-8")
    _require(cited, f"plugin {plugin.name!r}: its card does not name arXiv {plugin.arxiv}.")
