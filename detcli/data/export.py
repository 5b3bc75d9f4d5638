"""Writes pictures out: a dataset as a COCO folder, or its pictures with annotations drawn on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from detcli.config import DataConfig
from detcli.data.annotations import Source
from detcli.data.dataset import DetectionDataset
from detcli.data.images import Pixels
from detcli.data.shapes import STUFF, THINGS, Shapes
from detcli.data.sources import match_classes, open_source
from detcli.errors import DetcliError

LEAST_SIDE = 320
"""Pictures are enlarged to this shorter side before names are drawn on them."""


def write_shapes(splits: dict[str, Shapes], folder: Path, advance: Callable[[int, int], None]) -> None:
    """Write the built-in data into `folder` as COCO has them: pixels and annotations equal those in memory.

    ``<split>/*.png`` are pictures, ``annotations/instances_<split>.json`` boxes and masks as run lengths,
    ``stuffthingmaps/<split>/*.png`` labels of every pixel: those of the things, then those of the stuff.
    Raises `DetcliError` when `folder` already holds something.
    """
    _claim(folder)
    (folder / "annotations").mkdir(parents=True)
    for split, source in splits.items():
        pictures, labels = folder / split, folder / "stuffthingmaps" / split
        pictures.mkdir()
        labels.mkdir(parents=True)
        dataset = _whole(source)
        total = len(dataset)
        for index in range(total):
            pixels, annotations = source.read(index)
            _write(pictures / source.file_name(index), pixels[..., ::-1])
            assert annotations.semantic is not None
            _write(labels / source.file_name(index), annotations.semantic)
            advance(index + 1, total)
        ground_truth = dataset.ground_truth()
        ground_truth["stuff"] = [{"label": label, "name": name} for label, name in enumerate(STUFF, len(THINGS))]
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(ground_truth))


def write_annotated(config: DataConfig, split: str, folder: Path, count: int) -> list[Path]:
    """Draw the annotations on up to `count` pictures, evenly over the split, and write them into `folder`.

    Returns the files: one a picture, and all.png with all of them. Raises `DetcliError` when `folder` already
    holds something.
    """
    from detcli.visual import contact_sheet, draw

    _claim(folder)
    source = open_source(config, "train" if split == "train" else "val")
    dataset = _whole(source)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    files, drawn = [], []
    for index in chosen:
        sample = dataset[index]
        assert sample.target is not None
        pixels = sample.image.permute(1, 2, 0).numpy()
        scale = max(1.0, LEAST_SIDE / min(sample.info.size))
        drawn.append(draw(pixels, sample.target, dataset.classes.names, scale=scale))
        files.append(folder / f"{sample.info.image_id}_{Path(sample.info.name).stem}.png")
        _write(files[-1], drawn[-1][..., ::-1])
    files.append(folder / "all.png")
    _write(files[-1], contact_sheet(drawn)[..., ::-1])
    return files


def _whole(source: Source) -> DetectionDataset:
    """Return all pictures of `source` at their own size, with masks if there are any."""
    classes, labels = match_classes(source, None)
    indices = np.arange(len(source.image_ids))
    return DetectionDataset(source, classes, labels, [], indices=indices, masks=source.has_masks)


def _claim(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DetcliError(f"{folder} is there already and not empty. Choose another folder, or remove it.")


def _write(path: Path, pixels: Pixels) -> None:
    if not cv2.imwrite(str(path), pixels):
        raise DetcliError(f"can't write {path}: is the disk full, or the folder read-only?")
