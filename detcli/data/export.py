"""Writes pictures out: a dataset as a COCO or YOLO folder, or its pictures with annotations drawn on them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from detcli.config import DataConfig
from detcli.data.annotations import Annotations, Source
from detcli.data.cityscapes import cityscapes_to_coco
from detcli.data.coco import CocoSource, Split, from_coco, locate, read_coco
from detcli.data.dataset import DetectionDataset
from detcli.data.images import Pixels
from detcli.data.outlines import outline
from detcli.data.panoptic import write_panoptic
from detcli.data.shapes import STUFF, THINGS, Shapes
from detcli.data.sources import match_classes, open_source
from detcli.data.voc import voc
from detcli.data.yolo import yolo
from detcli.errors import DetcliError, UsageError

Form = Literal["coco", "voc", "yolo", "cityscapes"]
Target = Literal["coco", "yolo", "yolo-seg"]
SPLITS: tuple[Split, ...] = ("train", "val")
BOTH = "_"
"""What stands between the names of splits that have the same pictures."""

QUOTE = "'"

LEAST_SIDE = 320
"""Pictures are enlarged to this shorter side before names are drawn on them."""


def write_shapes(splits: dict[str, Shapes], folder: Path, advance: Callable[[int, int], None]) -> None:
    """Write the built-in data into `folder` as COCO has them: pixels and annotations equal those in memory.

    ``<split>/*.png`` are pictures, ``annotations/instances_<split>.json`` boxes and masks as run lengths,
    ``stuffthingmaps/<split>/*.png`` labels of every pixel: those of the things, then those of the stuff;
    ``annotations/panoptic_<split>.json`` and ``annotations/panoptic_<split>/*.png`` are the segments.
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
        write_panoptic(dataset.segments(), folder / "annotations" / f"panoptic_{split}.json")


def convert(form: Form, root: Path, out: Path, to: Target, advance: Callable[[int, int], None]) -> list[str]:
    """Write the data in the folder (or COCO JSON file) `root`, of format `form`, as a COCO or YOLO folder.

    Of ``yolo``, objects are boxes, of ``yolo-seg`` polygons. Returns what could not be kept, a line each.
    `advance(done, total)` is called after each picture. Raises `DetcliError` where the data are not of that format, and
    as `write_coco` and `write_yolo` do.
    """
    _claim(out)
    splits = _splits(form, root, advance)
    if to == "coco":
        write_coco(splits, out, advance)
        return []
    return write_yolo(splits, out, advance, masks=to == "yolo-seg")


def _splits(form: Form, root: Path, advance: Callable[[int, int], None]) -> dict[str, CocoSource]:
    """Return the splits of a dataset; data that have one for both are ``train_val``."""
    if not root.exists():
        raise UsageError(f"there is no file or folder {root}.")
    if form == "coco":
        located = {split: locate(root, split) for split in SPLITS}
        if located["train"].path == located["val"].path:
            return {BOTH.join(SPLITS): read_coco(located["train"])}
        return {split: read_coco(found) for split, found in located.items()}
    if form == "cityscapes":
        return {
            split: from_coco(cityscapes_to_coco(root, split, advance), f"{root} ({split})", root) for split in SPLITS
        }
    reader = voc if form == "voc" else yolo
    return {split: reader(split=split, root=str(root)) for split in SPLITS}


def write_coco(splits: dict[str, CocoSource], folder: Path, advance: Callable[[int, int], None]) -> None:
    """Write datasets as a COCO folder: annotations/instances_<split>.json, and the pictures where they were below
    theirs.

    Pictures are linked to, or copied where that can't be. Raises `DetcliError` when `folder` already holds something,
    or a picture is not there.
    """
    _claim(folder)
    (folder / "annotations").mkdir(parents=True)
    for split, source in splits.items():
        total = len(source.image_ids)
        for index in range(total):
            _link(source.path(index), folder / source.file_name(index))
            advance(index + 1, total)
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(_whole(source).ground_truth()), encoding="utf-8")


def write_yolo(
    splits: dict[str, CocoSource], folder: Path, advance: Callable[[int, int], None], *, masks: bool = False
) -> list[str]:
    """Write the boxes of datasets, or with `masks` polygons, as a YOLO folder; return what was left out, a line each.

    A mask of several parts or with holes is one polygon (see `outline`); an object without one stays a box.
    ``images/<split>/``, ``labels/<split>/`` and data.yaml; classes are numbered in order of their category ids.
    Pictures are linked to, or copied where that can't be. Raises `DetcliError` when `folder` already holds something,
    a picture is not there, two of a split have the same name, the splits have different classes, or no object has one
    of the `masks` that are asked for.
    """
    first, *others = splits.values()
    names = [category.name for category in first.categories]
    for other in others:
        if [category.name for category in other.categories] != names:
            raise DetcliError(f"{first.name} and {other.name} have different classes: YOLO has one list for both.")
    if masks and not any(source.has_masks for source in splits.values()):
        raise DetcliError(f"{first.name} has no masks. Write its boxes, with `--to yolo`.")
    _claim(folder)
    crowds = boxes = kept = 0
    for split, source in splits.items():
        pictures, labels = folder / "images" / split, folder / "labels" / split
        labels.mkdir(parents=True)
        total = len(source.image_ids)
        for index in range(total):
            path = source.path(index)
            label = labels / f"{path.stem}.txt"
            if label.exists():
                raise DetcliError(
                    f"two pictures of {source.name} are called {path.stem}: a YOLO folder can't have both."
                )
            _link(path, pictures / path.name)
            annotations = source.annotations(index)
            crowds += int(annotations.crowd.sum())
            lines = _yolo_lines(annotations, masks)
            kept += len(lines)
            boxes += sum(line.count(" ") == 4 for line in lines)
            label.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            advance(index + 1, total)
    listed = "".join(f"  {number}: '{name.replace(QUOTE, 2 * QUOTE)}'\n" for number, name in enumerate(names))
    places = "".join(f"{split}: images/{place}\n" for place in splits for split in place.split(BOTH))
    (folder / "data.yaml").write_text(f"{places}names:\n{listed}", encoding="utf-8")
    notes = []
    if crowds:
        notes.append(f"{crowds} crowd regions (difficult objects) are left out: YOLO can't hold them")
    if masks and boxes:
        notes.append(f"{boxes} of {kept} objects have no mask, and are boxes")
    if not masks and any(source.has_masks for source in splits.values()):
        notes.append("masks are left out: `--to yolo-seg` writes polygons")
    return notes


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


def _yolo_lines(annotations: Annotations, masks: bool) -> list[str]:
    """Return a line for each object of a picture, but crowd regions: its label, then shares of the picture's size.

    These are centre, width and height of its box, or with `masks` the points of the polygon around its mask.
    """
    height, width = annotations.size
    lines = []
    for row in np.flatnonzero(~annotations.crowd).tolist():
        left, top, *sides = annotations.xywh[row].tolist()
        points = np.array([[left + sides[0] / 2, top + sides[1] / 2], sides])
        if masks and annotations.segmentations[row]:
            polygon = outline(annotations.segmentations[row], annotations.size)
            points = polygon if len(polygon) else points
        shares = " ".join(f"{value:.12g}" for value in (points / (width, height)).ravel())
        lines.append(f"{annotations.categories[row]} {shares}")
    return lines


def _link(source: Path, target: Path) -> None:
    """Let `target` be the same file as `source`, or a copy of it on another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise DetcliError(f"the picture {source} is missing. Restore it, or take it out of the data.") from None
    except OSError:
        shutil.copyfile(source, target)


def _claim(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DetcliError(f"{folder} is there already and not empty. Choose another folder, or remove it.")


def _write(path: Path, pixels: Pixels) -> None:
    if not cv2.imwrite(str(path), pixels):
        raise DetcliError(f"can't write {path}: is the disk full, or the folder read-only?")
