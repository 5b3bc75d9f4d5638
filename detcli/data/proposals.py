"""Proposals for Fast R-CNN: a safetensors file of flat arrays.

``image_ids`` [N], ``offsets`` [N+1]: image i has the rows from offsets[i] to offsets[i+1] of ``boxes`` [P,4]
float32 xyxy, in pixels of the upright picture, and of ``scores`` [P] float32, best first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor

from detcli.errors import DetcliError

KEYS = ("image_ids", "offsets", "boxes", "scores")


class Proposals(Mapping[int, tuple[NDArray[np.float32], NDArray[np.float32]]]):
    """Boxes [P,4] xyxy and scores [P] of each image id."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = arrays
        ids = arrays["image_ids"]
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def __getitem__(self, image_id: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        place = int(np.searchsorted(self._sorted, image_id))
        if place == len(self._sorted) or self._sorted[place] != image_id:
            raise KeyError(image_id)
        first, last = self._arrays["offsets"][self._order[place] :][:2]
        return self._arrays["boxes"][first:last], self._arrays["scores"][first:last]

    def __iter__(self) -> Iterator[int]:
        return iter(self._arrays["image_ids"].tolist())

    def __len__(self) -> int:
        return len(self._sorted)


def write_proposals(path: str | os.PathLike[str], items: Iterable[tuple[int, Tensor, Tensor]]) -> None:
    """Write (image id, boxes [P,4] xyxy in upright pixels, scores [P]) of each picture to `path`.

    Raises `DetcliError` when the file can't be written; what was there before stays then.
    """
    path = Path(path)
    image_ids: list[int] = []
    boxes, scores, counts = [torch.zeros(0, 4)], [torch.zeros(0)], [0]
    for image_id, image_boxes, image_scores in items:
        order = image_scores.argsort(descending=True, stable=True)
        image_ids.append(image_id)
        boxes.append(image_boxes[order].float().cpu())
        scores.append(image_scores[order].float().cpu())
        counts.append(len(order))
    tensors = {
        "image_ids": torch.tensor(image_ids, dtype=torch.int64),
        "offsets": torch.tensor(counts).cumsum(0),
        "boxes": torch.cat(boxes),
        "scores": torch.cat(scores),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DetcliError(f"can't write the proposals {path}: {error}.") from error


def read_proposals(path: str | os.PathLike[str]) -> Proposals:
    """Read what `write_proposals` wrote.

    Raises `DetcliError` when `path` is not there, is cut short, or holds something else.
    """
    if not Path(path).is_file():
        raise DetcliError(
            f"there is no proposals file {path}. Write one with `detcli predict RPN --data SOURCE --proposals {path}`."
        )
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DetcliError(f"{path} is not a readable file of proposals: {error}.") from None
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise DetcliError(f"{path} is no file of proposals: it has no {', '.join(missing)}.")
    return Proposals(arrays)
