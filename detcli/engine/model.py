"""From a run config to a model with its starting weights."""

from __future__ import annotations

import torch
from torch import Tensor

from detcli.config import InputConfig, RunConfig
from detcli.engine.checkpoint import Checkpoint, open_checkpoint
from detcli.engine.device import DTYPES, Precision
from detcli.errors import DetcliError
from detcli.nn.detector import Detector
from detcli.nn.fold import cast_weights, fold_norms, prepare_on_cpu
from detcli.nn.weights import load_backbone, load_weights
from detcli.registry import build, find
from detcli.structures import Batch, ClassMap


def build_model(config: RunConfig, num_classes: int) -> Detector:
    """Return the model that `config` describes, for `num_classes` classes, with random weights."""
    model = build("models", config.model, num_classes=num_classes)
    assert isinstance(model, Detector)
    return model


def initialise(model: Detector, config: RunConfig, classes: ClassMap) -> str:
    """Load the starting weights that `config.weights` names; return what was loaded, in words.

    ``imagenet``: the backbone's, downloaded once; ``none``: nothing; otherwise a checkpoint for the same classes.
    Raises `DetcliError` when the weights are not there or do not fit.
    """
    if config.weights == "none":
        return "random weights"
    if config.weights == "imagenet":
        backbone = config.model["backbone"]["name"]
        url = find("backbones", backbone).weights
        if url is None:
            raise DetcliError(f"backbone {backbone!r} has no ImageNet weights. Train it with `--weights none`.")
        load_backbone(model.backbone, url)
        return f"ImageNet weights of {backbone}"
    checkpoint = open_checkpoint(config.weights)
    if checkpoint.classes.names != classes.names:
        raise DetcliError(
            f"{checkpoint.path} was trained on other classes ({_few(checkpoint.classes.names)}) "
            f"than those of the data ({_few(classes.names)})."
        )
    load_weights(model, checkpoint.weights(), str(checkpoint.path))
    return f"weights of {checkpoint.path}"


def load_model(checkpoint: Checkpoint, device: torch.device, precision: Precision = "fp32") -> Detector:
    """Return the trained model of `checkpoint`, prepared to detect on `device` within `autocast` to `precision`."""
    model = build_model(checkpoint.config, len(checkpoint.classes))
    load_weights(model, checkpoint.weights(), str(checkpoint.path))
    return prepare(model, device, precision, channels_last=checkpoint.config.train.channels_last)


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
