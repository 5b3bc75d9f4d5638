"""From a run config to a model with its starting weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from detcli.config import InputConfig, RunConfig, leaves, revise
from detcli.engine.checkpoint import Checkpoint, is_backbone, open_checkpoint
from detcli.engine.device import DTYPES, Precision
from detcli.errors import DetcliError
from detcli.nn.detector import Detector
from detcli.nn.fold import cast_weights, fold_norms, prepare_on_cpu
from detcli.nn.weights import load_backbone, load_backbone_file, load_weights
from detcli.registry import build, find
from detcli.structures import Batch, ClassMap

INPUT_KEYS = ("mean", "std", "channels")
"""What weights and pictures must agree on."""


def build_model(config: RunConfig, num_classes: int) -> Detector:
    """Return the model that `config` describes, for `num_classes` classes, with random weights."""
    model = build("models", config.model, num_classes=num_classes)
    assert isinstance(model, Detector)
    return model


def fitted(config: RunConfig, classes: ClassMap) -> RunConfig:
    """Return `config` with what the data say of its model's arguments: the numbers of keypoints and kinds of stuff."""
    counts = {"num_keypoints": len(classes.keypoints), "num_stuff_classes": len(classes.stuff)}
    places = [(key, counts.get(key.rpartition(".")[2])) for key in leaves(config.model)]
    flags = {f"model.{key}": count for key, count in places if count}
    return revise(config, flags=flags) if flags else config


def initialise(model: Detector, config: RunConfig, classes: ClassMap) -> str:
    """Load the starting weights that `config.weights` names; return what was loaded, in words.

    ``imagenet``: the backbone's, downloaded once; ``none``: nothing; otherwise a converted backbone, or a checkpoint
    for the same classes or, with `config.reset_head`, for any: the layers that depend on classes then keep their
    random weights. Warns where the checkpoint's pictures were normalised in another way. Raises `DetcliError` when
    the weights are not there or do not fit.
    """
    if config.weights == "none":
        return "random weights"
    if config.weights == "imagenet":
        backbone = config.model["backbone"]["name"]
        url = find("backbones", backbone).weights
        if url is None:
            raise DetcliError(f"backbone {backbone!r} has no ImageNet weights. Train it with `--weights none`.")
        load_backbone(model.whole_backbone(), url)
        return f"ImageNet weights of {backbone}"
    if is_backbone(Path(config.weights)):
        load_backbone_file(model.whole_backbone(), Path(config.weights))
        return f"backbone weights of {config.weights}"
    checkpoint = open_checkpoint(config.weights)
    if checkpoint.classes.names != classes.names and not config.reset_head:
        raise DetcliError(
            f"{checkpoint.path} was trained on other classes ({_few(checkpoint.classes.names)}) than those of the data "
            f"({_few(classes.names)}). With --reset-head, only the layers that depend on classes start anew."
        )
    for key in INPUT_KEYS:
        theirs, ours = getattr(checkpoint.config.input, key), getattr(config.input, key)
        if theirs != ours:
            warnings.warn(
                f"{checkpoint.path} was trained with input.{key} {theirs}, this run has {ours}; "
                f"`--set input.{key}={json.dumps(theirs)}` keeps the former",
                stacklevel=2,
            )
    weights = checkpoint.weights()
    if not config.reset_head:
        load_weights(model, weights, str(checkpoint.path))
        return f"weights of {checkpoint.path}"
    anew = class_dependent(config)
    weights = {name: value for name, value in weights.items() if name not in anew}
    own = model.state_dict()
    load_weights(model, weights | {name: own[name] for name in anew}, str(checkpoint.path))
    layers = dict.fromkeys(name.rpartition(".")[0] for name in own if name in anew)
    return f"weights of {checkpoint.path}, but random ones for {', '.join(layers)}"


def class_dependent(config: RunConfig) -> set[str]:
    """Return the names of the tensors whose shape depends on the number of classes."""
    with torch.device("meta"):
        few, more = (build_model(config, count).state_dict() for count in (2, 3))
    return {name for name, value in few.items() if value.shape != more[name].shape}


def load_model(
    checkpoint: Checkpoint, config: RunConfig, device: torch.device, precision: Precision = "fp32"
) -> Detector:
    """Return the trained model of `checkpoint`, prepared to detect on `device` within `autocast` to `precision`.

    `config` is the checkpoint's or one that is revised since: other thresholds, say. Raises `DetcliError` where its
    model is one that the weights do not fit.
    """
    model = build_model(config, len(checkpoint.classes))
    load_weights(model, checkpoint.weights(), str(checkpoint.path))
    return prepare(model, device, precision, channels_last=config.train.channels_last)


def prepare(model: Detector, device: torch.device, precision: Precision, channels_last: bool = True) -> Detector:
    """Change `model`, in place, so that it detects fast on `device` within `autocast` to `precision`; return it.

    It computes what it did, but can neither be trained nor saved any more.
    """
    fold_norms(model.eval()).requires_grad_(False)
    if device.type == "cpu":
        prepare_on_cpu(model)
    if precision != "fp32":
        cast_weights(model, DTYPES[precision])
    model.to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model


class Normalizer:
    """Moves batches to a device and turns their pixels into the network's input there."""

    def __init__(self, config: InputConfig, device: torch.device) -> None:
        self.device = device
        self.mean: Tensor = torch.tensor(config.mean, device=device)
        self.std: Tensor = torch.tensor(config.std, device=device)
        self.bgr = config.channels == "bgr"

    def __call__(self, batch: Batch, channels_last: bool = False) -> Batch:
        """Return `batch` on the device, normalised, its images in channels-last memory where asked."""
        batch = batch.to(self.device, non_blocking=True).normalized(self.mean, self.std, self.bgr)
        if channels_last:
            batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        return batch


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f", … {len(names)} in all" if len(names) > 6 else "")
