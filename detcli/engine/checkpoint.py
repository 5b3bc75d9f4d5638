"""Checkpoints: one .safetensors file that knows its model, classes and preprocessing; nothing is pickled.

Tensors are named as in the model's state dict. What only training needs (optimiser, raw weights beside their moving
average, random states) is in the same file under ``training.``; the metadata entry ``detcli`` is JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detcli.config import RunConfig, load
from detcli.errors import DetcliError
from detcli.files import written_whole
from detcli.structures import ClassMap

FORMAT = 1
TRAINING = "training."


@dataclass(slots=True)
class Checkpoint:
    """What a checkpoint file says about itself, without its tensors."""

    path: Path
    config: RunConfig
    classes: ClassMap
    metrics: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """Read the model's tensors, on the CPU."""
        return self._tensors(lambda name: not name.startswith(TRAINING))

    def training_tensors(self) -> dict[str, Tensor]:
        """Read the tensors of the training state, by their names without ``training.``."""
        tensors = self._tensors(lambda name: name.startswith(TRAINING))
        return {name.removeprefix(TRAINING): value for name, value in tensors.items()}

    def _tensors(self, wanted: Any) -> dict[str, Tensor]:
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118


def save_checkpoint(
    path: Path,
    weights: Mapping[str, Tensor],
    config: RunConfig,
    classes: ClassMap,
    metrics: Mapping[str, float] | None = None,
    training: Mapping[str, Any] | None = None,
    training_tensors: Mapping[str, Tensor] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint to `path` in one step: it is there whole, or what was there before stays.

    `origin` says which file of another code base it was converted from. Raises `DetcliError` when the folder can't be
    written or the disk is full.
    """
    header = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "classes": {name: list(values) for name, values in asdict(classes).items() if values},
        "metrics": dict(metrics or {}),
        "training": None if training is None else dict(training),
    }
    if origin:
        header["origin"] = dict(origin)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    for name, value in (training_tensors or {}).items():
        tensors[TRAINING + name] = value.detach().cpu().contiguous().clone()
    hint = f"continue with `detcli train --resume {path.parent}`" if training else "run it again"
    _write(path, tensors, header, f"What was saved before is untouched. Make room, then {hint}, or name another place.")


def save_backbone(path: Path, weights: Mapping[str, Tensor], origin: Mapping[str, Any]) -> None:
    """Write the tensors of a backbone, by the names in its own state dict, for ``--weights`` to start from.

    Raises `DetcliError` as `save_checkpoint` does.
    """
    tensors = {name: value.contiguous() for name, value in weights.items()}
    header = {"format": FORMAT, "backbone": True, "origin": dict(origin)}
    _write(path, tensors, header, "Make room, then run it again, or name another place.")


def is_backbone(path: Path) -> bool:
    """Return whether the file at `path` holds a backbone alone, as `save_backbone` writes it."""
    return path.is_file() and json.loads(_metadata(path).get("detcli", "{}")).get("backbone", False)


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any], hint: str) -> None:
    try:
        with written_whole(path) as temporary:
            save_file(tensors, temporary, metadata={"detcli": json.dumps(header)})
    except (OSError, SafetensorError) as error:
        raise DetcliError(f"can't write the checkpoint {path}: {error}. {hint}") from error


def _metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file; raises `DetcliError` when it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DetcliError(
            f"{path} is not a readable safetensors file (cut short, or of another format): {error}. Give a file that "
            f"`detcli train` wrote; those of other code bases are read by `detcli convert auto {path} OUT`."
        ) from None


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what the checkpoint at `path` says about itself.

    Raises `DetcliError` when there is no such file, when it is cut short or not a safetensors file, or when detcli
    did not write it.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("best.safetensors", "last.safetensors") if (path / name).is_file()]
        if not found:
            raise DetcliError(f"{path} is a folder without a checkpoint. Give a .safetensors file or a run folder.")
        path = found[0]
    if not path.is_file():
        raise DetcliError(f"there is no checkpoint {path}.{_others_beside(path)}")
    metadata = _metadata(path)
    if "detcli" not in metadata:
        raise DetcliError(
            f"{path} holds tensors but not the config of a detcli model. It was not saved by `detcli train`."
        )
    try:
        header = json.loads(metadata["detcli"])
        if header.get("backbone"):
            raise DetcliError(f"{path} holds a backbone alone. Start from it: `detcli train RECIPE --weights {path}`.")
        said = header["classes"]
        classes = ClassMap(
            *(tuple(said[name]) for name in ("names", "ids")),
            *(tuple(said.get(name, ())) for name in ("stuff", "stuff_ids", "keypoints")),
        )
        if header["format"] > FORMAT:
            raise DetcliError(
                f"{path} was written by a newer detcli (format {header['format']}). Upgrade detcli to read it."
            )
        config = load(header["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise DetcliError(f"{path} has a damaged description: {error!r}. Save or download it again.") from None
    return Checkpoint(
        path, config, classes, header.get("metrics") or {}, header.get("training"), header.get("origin") or {}
    )


def _others_beside(path: Path) -> str:
    others = sorted(other.name for other in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
    return f" Beside it: {', '.join(others[:5])}." if others else ""
