"""Looks for what would make training on a dataset fail or lie."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from detcli.config import DataConfig
from detcli.data.annotations import Source, run_lengths
from detcli.data.coco import CocoSource, Located, missing_files, read_coco
from detcli.data.images import load_image, read_header, upright_size
from detcli.data.panoptic import PanopticSource, is_panoptic, panoptic_beside, read_panoptic
from detcli.data.sources import find_source, match_classes
from detcli.errors import DetcliError

STICKS_OUT = 1.0
"""Pixels by which a box may leave its picture before that is worth a note."""


@dataclass(slots=True)
class Findings:
    """What was found in the data: `errors` make training fail or lie, `notes` are good to know."""

    name: str
    pictures: int = 0
    objects: int = 0
    segments: int = 0
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_splits(config: DataConfig) -> dict[str, Source | Located]:
    """Return what `config` names for train and val, as ``train, val`` where both are the same file."""
    train, val = find_source(config, "train"), find_source(config, "val")
    if isinstance(train, Located) and isinstance(val, Located) and train.path == val.path:
        return {"train, val": train}
    return {"train": train, "val": val}


def check(config: DataConfig, advance: Callable[[int, int], None] = lambda done, total: None) -> list[Findings]:
    """Check all splits of the data that `config` names; every picture and every map of segments is decoded.

    `advance(done, total)` is called after each picture of a split, and after each map. Raises `UsageError` when there
    are no such data.
    """
    every, classes = [], None
    for found in find_splits(config).values():
        findings = Findings(str(found.path) if isinstance(found, Located) else found.name)
        every.append(findings)
        try:
            source = _read(found, findings) if isinstance(found, Located) else found
            known, _ = match_classes(source, classes)
            classes = classes or known
        except DetcliError as error:
            findings.errors.append(str(error))
            continue
        findings.pictures = len(source.image_ids)
        if isinstance(source, CocoSource):
            findings.objects = len(source.store)
            _check_boxes(source, findings)
            _check_masks(source, findings)
            _check_files(source, findings, advance)
            if isinstance(source, PanopticSource):
                _check_segments(source, findings, advance)
        else:
            findings.objects = sum(len(source.annotations(index)) for index in range(findings.pictures))
        if not source.filled.any():
            findings.errors.append(f"{source.name} has no annotations that could be trained on")
    return every


def _read(found: Located, findings: Findings) -> CocoSource:
    """Return the pictures of a file, with segments where it or one beside it has them that can be read."""
    if is_panoptic(found.path):
        return read_panoptic(found)
    source = read_coco(found, report=findings.errors.append)
    beside = panoptic_beside(found.path)
    if beside is None:
        return source
    try:
        return read_panoptic(replace(found, path=beside), source)
    except DetcliError as error:
        findings.errors.append(str(error).removesuffix("."))
        return source


def _check_boxes(source: CocoSource, findings: Findings) -> None:
    """Check boxes that are finite: the others were found when the file was read."""
    store = source.store
    left, top, width, height = store.xywh.T
    size = store.sizes[store.images]
    out = np.max([-left, -top, left + width - size[:, 1], top + height - size[:, 0]], axis=0)
    positive = (width > 0) & (height > 0)
    inside = (left < size[:, 1]) & (top < size[:, 0]) & (left + width > 0) & (top + height > 0)
    for row in np.flatnonzero(positive & ~inside).tolist():
        findings.errors.append(f"{_describe(source, row)} has a box outside its picture: {_box(source, row)}")
    for row in np.flatnonzero(positive & inside & (out > STICKS_OUT)).tolist():
        findings.notes.append(
            f"{_describe(source, row)} has a box that sticks out by {out[row]:.1f} pixels, and is clipped: "
            f"{_box(source, row)}"
        )
    thin = positive & inside & ~store.crowd & ((width < 1) | (height < 1))
    for row in np.flatnonzero(thin).tolist():
        findings.notes.append(
            f"{_describe(source, row)} is thinner than a pixel, and is not trained on: {_box(source, row)}"
        )
    used = np.bincount(store.categories, minlength=len(source.categories))
    for category, count in zip(source.categories, used.tolist(), strict=True):
        if not count:
            findings.notes.append(f"{source.name}: the class {category.name!r} has no objects")


def _check_masks(source: CocoSource, findings: Findings) -> None:
    if isinstance(source, PanopticSource) and source.own_masks:
        return
    store = source.store
    segmented, trainable = store.segmented(), store.trainable()
    for row in np.flatnonzero(segmented & (trainable | store.crowd)).tolist():
        size = int(store.sizes[store.images[row], 0]), int(store.sizes[store.images[row], 1])
        try:
            area = int(mask_utils.area(run_lengths(store.segmentation(row), size)))
        except ValueError as error:
            findings.errors.append(f"{_describe(source, row)} has run lengths that can't be read: {error}")
            continue
        if area == 0:
            findings.errors.append(f"{_describe(source, row)} has an empty mask")
        elif area > size[0] * size[1]:
            findings.errors.append(f"{_describe(source, row)} has run lengths of more than its picture's pixels")
    if segmented.any():
        for row in np.flatnonzero(~segmented & trainable).tolist():
            findings.notes.append(f"{_describe(source, row)} has no mask, unlike others; mask models refuse that")


def _check_files(source: CocoSource, findings: Findings, advance: Callable[[int, int], None]) -> None:
    missing = set(missing_files(source))
    total = len(source.image_ids)
    names: dict[str, int] = {}
    with ThreadPoolExecutor() as pool:
        paths = (None if index in missing else source.path(index) for index in range(total))
        for index, looked in enumerate(pool.map(_look_at, paths)):
            path = source.path(index)
            image_id = int(source.image_ids[index])
            if names.setdefault(str(path), image_id) != image_id:
                findings.notes.append(f"{path} is the picture of two images: {names[str(path)]} and {image_id}")
            if looked is None:
                findings.errors.append(f"the picture {path} is missing")
            elif isinstance(looked, str):
                findings.errors.append(looked)
            else:
                _check_size(source, index, *looked, findings)
            advance(index + 1, total)


def _check_segments(source: PanopticSource, findings: Findings, advance: Callable[[int, int], None]) -> None:
    """Check that the PNG files and the JSON file speak of the same segments."""
    total = len(source.image_ids)
    names = {category.id: category.name for category in [*source.categories, *source.stuff]}
    pixels = without = partly = 0
    with ThreadPoolExecutor() as pool:
        for index, looked in enumerate(pool.map(lambda index: _segment_areas(source, index), range(total))):
            advance(index + 1, total)
            if isinstance(looked, str):
                findings.errors.append(looked)
                continue
            segments, areas = looked
            path = source.map_path(index)
            findings.segments += len(segments)
            known = zip(segments.items(), source.said_areas(index).tolist(), strict=True)
            for (number, category), said in known:
                called = f"the segment {number} ({names[category]}) of {path}"
                if number not in areas:
                    findings.errors.append(f"{called} has no pixels")
                elif not np.isnan(said) and said != areas[number]:
                    findings.notes.append(f"{called} has an area of {said:g}, and {areas[number]} pixels")
            for number in sorted(areas.keys() - segments.keys() - {0}):
                findings.errors.append(f"{path} has {areas[number]} pixels of the id {number}, which no segment has")
            pixels += sum(areas.values())
            without += areas.get(0, 0)
            partly += 0 in areas
    if without:
        findings.notes.append(
            f"{source.name}: {100 * without / pixels:.2g} % of the pixels, in {partly} pictures, have no segment"
        )
    objects = np.bincount(source.store.categories, minlength=len(source.categories))
    # Things without objects are named with those.
    expected = [category for category, count in zip(source.categories, objects.tolist(), strict=True) if count]
    for kind in [*expected, *source.stuff]:
        if kind.id not in source.used_categories:
            findings.notes.append(f"{source.name}: the class {kind.name!r} has no segments")


def _segment_areas(source: PanopticSource, index: int) -> tuple[dict[int, int], dict[int, int]] | str:
    """Return the categories of a picture's segments and the pixels of each id, or what is wrong with its PNG file."""
    try:
        segments = source.segments(index)
    except DetcliError as error:
        return str(error).removesuffix(".")
    ids, counts = np.unique(segments.ids, return_counts=True)
    categories = dict(zip(segments.numbers.tolist(), segments.categories.tolist(), strict=True))
    return categories, dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _look_at(path: Path | None) -> tuple[tuple[int, int], int] | str | None:
    """Decode a picture; return its stored size and EXIF orientation, or what is wrong; None for no path."""
    if path is None:
        return None
    try:
        load_image(path)
        return read_header(path)
    except DetcliError as error:
        return str(error).removesuffix(".")


def _check_size(source: CocoSource, index: int, stored: tuple[int, int], orientation: int, findings: Findings) -> None:
    said = int(source.sizes[index, 0]), int(source.sizes[index, 1])
    upright = upright_size(stored, orientation)
    turned = f"{source.path(index)} is turned by its EXIF orientation {orientation}; its boxes"
    if said == upright:
        if orientation != 1:
            findings.notes.append(f"{turned} are taken for those of the upright picture")
    elif said == stored:
        findings.notes.append(f"{turned} are those of the stored pixels, and are turned with it")
    else:
        findings.errors.append(source.size_mismatch(index, upright).removesuffix("."))


def _describe(source: CocoSource, row: int) -> str:
    return f"annotation {source.store.ids[row]} of {source.file_name(int(source.store.images[row]))}"


def _box(source: CocoSource, row: int) -> str:
    height, width = source.store.sizes[source.store.images[row]].tolist()
    return f"{[round(side, 2) for side in source.store.xywh[row].tolist()]} in {width}x{height}"
