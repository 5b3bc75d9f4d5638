"""Loading weights, strictly: a whole model's, or those of a backbone that was trained on ImageNet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from detcli.convert.reader import read
from detcli.download import fetch
from detcli.errors import DetcliError

UNUSED = re.compile(r"fc\.|conv1\.bias$")
"""Keys that no backbone has: the classifier, and the bias of the stem in files that came from Caffe."""

COUNTER = ".num_batches_tracked"
"""A batch norm's counter, which files from before PyTorch 0.4.1 lack; it keeps its 0 then."""

OFFSETS = re.compile(r".*\.conv_offset\.(weight|bias)$")
"""What a deformable convolution has besides the plain one that the weights are of; it keeps its 0."""


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], origin: str) -> None:
    """Compare names and shapes of `weights` with a model's `own`, strictly.

    Raises `DetcliError` listing names that are missing, left over or of another shape.
    """
    problems = [
        *(f"{name} is missing" for name in own if name not in weights),
        *(f"{name} is not in this model" for name in weights if name not in own),
        *(
            f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
            for name, value in own.items()
            if name in weights and weights[name].shape != value.shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise DetcliError(f"{origin} does not fit this model: {'; '.join(problems[:4])}{more}.")


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load `weights` into `model`, strictly.

    Raises `DetcliError` as `check_fit` does; the model is then unchanged.
    """
    check_fit(model.state_dict(), weights, origin)
    model.load_state_dict(dict(weights))


def load_backbone(backbone: nn.Module, url: str) -> None:
    """Load the file at `url` (.pth or .safetensors, names as torchvision's) into `backbone`.

    Raises `DetcliError` as `load_backbone_file` does, and when the file can't be had.
    """
    try:
        path = fetch(url)
    except DetcliError as error:
        raise DetcliError(f"{error} Without it, train with `--weights none`.") from error
    load_backbone_file(backbone, path)


def load_backbone_file(backbone: nn.Module, path: Path) -> None:
    """Load the file at `path` (.pth or .safetensors, names as torchvision's) into `backbone`.

    What the file has for stages that the backbone lacks is left out; attention in its blocks, which the file lacks,
    stays as it is. Raises `DetcliError` when the file can't be read, and when anything else is missing, left over or
    of another shape.
    """
    weights = {key: value for key, value in _read(path).items() if not _is_unused(key, backbone)}
    attentions = tuple(_attentions(backbone))
    for key, value in backbone.state_dict().items():
        if key.endswith(COUNTER) or OFFSETS.match(key) or key.startswith(attentions):
            weights.setdefault(key, value)
    load_weights(backbone, weights, str(path))


def _is_unused(key: str, backbone: nn.Module) -> bool:
    stage = re.match(r"layer\d+(?=\.)", key)
    return bool(UNUSED.match(key) or (stage and not hasattr(backbone, stage[0])))


def _attentions(backbone: nn.Module) -> Iterator[str]:
    """Yield what the keys begin with of the attention in each block that has one."""
    for name, module in backbone.named_modules():
        if attention := getattr(module, "attention_name", ""):
            yield f"{name}.{attention}."


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file, those under "state_dict" where it has that."""
    weights = read(path)
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DetcliError(f"{path} can't be read as weights: it holds more than tensors. See `detcli convert --help`.")
    return weights
