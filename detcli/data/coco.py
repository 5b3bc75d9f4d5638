"""Reads COCO-style JSON: finds it in a folder, checks it, and keeps it in flat arrays."""

from __future__ import annotations

import json
import math
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from detcli.data.annotations import (
    PIXEL_CENTRE,
    Annotations,
    AnnotationStore,
    AnnotationWriter,
    Category,
    flat_texts,
    run_lengths,
    text_at,
    turn,
)
from detcli.data.images import TURNED, Pixels, load_image, read_header, upright_size
from detcli.errors import DetcliError

FARTHEST = 1e6
"""The greatest coordinate of a polygon, in pixels, that is taken for one."""

Split = Literal["train", "val"]
Report = Callable[[str], Any]

SPLIT_NAMES = {
    "train": ("train", "train2017", "train2014", "training"),
    "val": ("val", "val2017", "val2014", "valid", "validation"),
}
"""What folders and files of a split are called, in order of preference."""

BEFORE_SPLIT = (
    "instances_",
    "person_keypoints_",
    "panoptic_",
    "annotations_",
    r"lvis_v[\d.]+_",
    "instancesonly_filtered_gtFine_",
)
"""What may stand before the split in the name of an annotation file, as patterns."""

FACTS = ("neg_category_ids", "not_exhaustive_category_ids", "void")
"""What images say beside their size: of LVIS, the categories that are absent and those of which not every object is
annotated; of Cityscapes, the run lengths of the pixels that evaluation leaves out.
"""

STRAY_BOXES = 1e-4
"""The share of boxes without area that is a slip, not a broken file: COCO train2017 has such a one."""


@dataclass(frozen=True, slots=True)
class Located:
    """An annotation file, the folders in which its pictures may be, and whether it is its split's own."""

    path: Path
    roots: tuple[Path, ...]
    own: bool = True


def locate(source: Path, split: Split, images: str = "") -> Located:
    """Find the annotation file of `split` in a folder (or take the file), and where its pictures may be.

    A folder that has one annotation file in all uses it for both splits. `images` is the folder of pictures;
    without, they are looked for beside the file and in nearby folders. Raises `DetcliError` that lists what
    was looked for.
    """
    if source.is_file():
        path, own = source, False
    else:
        path, own = _find_file(source, split)
    if images:
        return Located(path, (Path(images),), own)
    name = re.sub(rf"^({'|'.join(BEFORE_SPLIT)})", "", path.stem).removesuffix("_annotations.coco")
    names = (name, *(alias for aliases in SPLIT_NAMES.values() if name in aliases for alias in aliases))
    roots: dict[Path, None] = {}
    for base in (path.parent, path.parent.parent):
        roots |= dict.fromkeys([base / name for name in names])
        for folder in ("images", "data", "JPEGImages"):
            roots |= dict.fromkeys([*(base / folder / name for name in names), base / folder])
        roots[base] = None
    for base in (path.parent, path.parent.parent) if path.parent.name == "annotations" else (path.parent,):
        roots |= dict.fromkeys(sorted(inside for inside in base.iterdir() if inside.is_dir()))
    return Located(path, tuple(roots), own)


def _find_file(folder: Path, split: Split) -> tuple[Path, bool]:
    patterns = [
        pattern.format(name)
        for name in SPLIT_NAMES[split]
        for pattern in (
            "annotations/instances_{}.json",
            "annotations/{}.json",
            "instances_{}.json",
            "{}.json",
            "annotations_{}.json",
            "annotations/lvis_v1_{}.json",
            "lvis_v1_{}.json",
            "annotations/lvis_v0.5_{}.json",
            "lvis_v0.5_{}.json",
            "annotations/instancesonly_filtered_gtFine_{}.json",
            "{}/_annotations.coco.json",
            "{}/annotations.json",
            "{}_annotations.coco.json",
            "annotations/person_keypoints_{}.json",
            "annotations/panoptic_{}.json",
            "panoptic_{}.json",
        )
    ]
    for pattern in patterns:
        if (folder / pattern).is_file():
            return folder / pattern, True
    for inside in (folder, folder / "annotations"):
        found = sorted(inside.glob("*.json"))
        preferred = [path for path in found if path.name in ("annotations.json", "_annotations.coco.json")]
        if len(preferred or found) == 1:
            return (preferred or found)[0], False
    there = sorted(str(path.relative_to(folder)) for path in folder.glob("**/*.json"))[:8]
    raise DetcliError(
        f"{folder} has no annotations for {split}. Looked for {', '.join(patterns[:8])} (also with "
        f"{', '.join(SPLIT_NAMES[split][1:])}), annotations.json, and a single .json file; "
        f"there is {', '.join(there) or 'no .json file'}. Name one with `--{split} FILE.json`."
    )


class CocoSource:
    """The pictures and annotations of one COCO-style JSON file."""

    def __init__(
        self,
        name: str,
        categories: list[Category],
        store: AnnotationStore,
        image_ids: NDArray[np.int64],
        file_names: list[str],
        root: Path,
    ) -> None:
        self.name = name
        self.categories = categories
        self.store = store
        self.image_ids = image_ids
        self.sizes = store.sizes
        self.root = root
        self._names, self._name_first = flat_texts(file_names)
        objects = ~store.crowd
        self.has_masks = bool((store.segmented() & objects).any())
        self.filled = np.bincount(store.images[store.trainable()], minlength=len(image_ids)) > 0

    def file_name(self, index: int) -> str:
        """Return the name of picture `index`, as the JSON has it."""
        return text_at(self._names, self._name_first, index)

    def path(self, index: int) -> Path:
        """Return where picture `index` is, or should be."""
        return self.root / self.file_name(index)

    def read(self, index: int) -> tuple[Pixels, Annotations]:
        """Return picture `index` and its annotations, both upright.

        Where the JSON describes the pixels as they are stored, and EXIF turns the picture by 90 degrees, the
        annotations are turned with it. Raises `DetcliError` when the picture can't be read or has another
        size than the JSON says.
        """
        image = load_image(self.path(index))
        annotations = self.store[index]
        if image.shape[:2] != annotations.size:
            annotations = self._turned(index, annotations)
            if image.shape[:2] != annotations.size:
                raise DetcliError(self.size_mismatch(index, (image.shape[0], image.shape[1])))
        return image, annotations

    def annotations(self, index: int) -> Annotations:
        """Return the annotations of picture `index` in its upright pixels; reads its header at most."""
        annotations = self.store[index]
        height, width = annotations.size
        return annotations if height == width else self._turned(index, annotations)

    def size_mismatch(self, index: int, size: tuple[int, int]) -> str:
        """Return the message for a picture that is `size` (height, width), not what the JSON says."""
        height, width = self.sizes[index]
        return (
            f"{self.path(index)} is {size[1]}x{size[0]} pixels, but {self.name} says {width}x{height}: "
            "its boxes don't fit the picture."
        )

    def _turned(self, index: int, annotations: Annotations) -> Annotations:
        try:
            stored, orientation = read_header(self.path(index))
        except DetcliError:
            return annotations
        return turn(annotations, orientation) if orientation in TURNED and stored == annotations.size else annotations


def read_coco(
    located: Located,
    *,
    segmentations: bool = True,
    report: Report | None = None,
    data: dict[str, Any] | None = None,
) -> CocoSource:
    """Read a COCO-style JSON file, or `data` in place of what is in it.

    Without `segmentations`, polygons and run lengths are left in the file. What is wrong with single entries
    goes to `report`, and the entry is left out; without `report` the first such thing is raised. Raises
    `DetcliError` for a file that can't be read, is malformed (with line and column) or has no pictures.
    """
    path = located.path

    def fail(problem: str) -> NoReturn:
        raise DetcliError(f"{path}: {problem}. `detcli data check {path}` lists all such problems.")

    return _parsed(data or load_json(path), str(path), partial(_find_root, located), segmentations, report or fail)


def from_coco(data: dict[str, Any], name: str, root: Path) -> CocoSource:
    """Return the dataset that a COCO dict describes, with its pictures below `root`.

    Raises `DetcliError` at the first thing that is wrong with it.
    """

    def fail(problem: str) -> NoReturn:
        raise DetcliError(f"{name}: {problem}.")

    return _parsed(data, name, lambda names: root, True, fail)


def _parsed(
    data: dict[str, Any],
    name: str,
    find_root: Callable[[list[str]], Path],
    segmentations: bool,
    report: Report,
) -> CocoSource:
    """Return the dataset that a COCO dict describes; `find_root` is given the names of its pictures."""
    categories, positions = _read_categories(data["categories"], report)
    records = [record for record in data["images"] if _is_image(record, report)]
    if not records:
        raise DetcliError(f"{name} has no images.")
    names = [_file_name(record) for record in records]
    root = find_root(names)
    numbers: dict[int, int] = {}
    for number, record in enumerate(records):
        if numbers.setdefault(int(record["id"]), number) != number:
            first = names[numbers[int(record["id"])]]
            report(f"two images have the id {record['id']}: {first} and {names[number]}")
    sizes = np.array(
        [_image_size(record, root / file_name) for record, file_name in zip(records, names, strict=True)], np.int64
    ).reshape(-1, 2)
    written = AnnotationWriter()
    seen: set[int] = set()
    for position, record in enumerate(data["annotations"]):
        _add_annotation(written, record, position, seen, numbers, positions, sizes, segmentations, report)
    image_ids = np.array([int(record["id"]) for record in records], np.int64)
    facts = [_facts(record) for record in records]
    source = CocoSource(name, categories, AnnotationStore(written, sizes, facts), image_ids, names, root)
    _check_boxes(source, report)
    return source


def load_json(path: Path) -> dict[str, Any]:
    """Return what is in a COCO-style JSON file; raises `DetcliError` when it can't be read or is none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except OSError as error:
        raise DetcliError(f"can't read {path}: {error.strerror}.") from None
    except json.JSONDecodeError as error:
        raise DetcliError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except UnicodeDecodeError as error:
        raise DetcliError(f"{path} is not a text file in UTF-8: {error.reason} at byte {error.start}.") from None
    if not isinstance(data, dict):
        raise DetcliError(f"{path} is no COCO-style file: it is a {type(data).__name__}, not an object.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            there = ", ".join(sorted(data)[:8]) or "nothing"
            raise DetcliError(f"{path} is no COCO-style file: it has no list {key!r} (there is {there}).")
    return data


def _read_categories(records: list[Any], report: Report) -> tuple[list[Category], dict[int, int]]:
    """Return categories in order of their ids, and the position of each id."""
    found: dict[int, Category] = {}
    by_name: dict[str, int] = {}
    for record in records:
        if not isinstance(record, dict) or not _is_whole(record.get("id")) or not record.get("name"):
            report(f"a category without a whole-number id and a name: {_short(record)}")
            continue
        keypoints, frequency = tuple(record.get("keypoints") or ()), str(record.get("frequency") or "")
        category = Category(int(record["id"]), str(record["name"]), keypoints, frequency)
        if category.id in found:
            report(f"two categories have the id {category.id}: {found[category.id].name!r} and {category.name!r}")
            continue
        if by_name.setdefault(category.name, category.id) != category.id:
            report(f"two categories are called {category.name!r}: {by_name[category.name]} and {category.id}")
        found[category.id] = category
    categories = [found[key] for key in sorted(found)]
    return categories, {category.id: position for position, category in enumerate(categories)}


def _is_image(record: Any, report: Report) -> bool:
    good = isinstance(record, dict) and _is_whole(record.get("id")) and bool(_file_name(record))
    if not good:
        report(f"an image without a whole-number id and a file_name: {_short(record)}")
    return good


def _file_name(record: dict[str, Any]) -> str:
    """Return the path of a picture below its root; LVIS v1 gives its address at COCO's, v0.5 its name of 2014."""
    name, address = str(record.get("file_name") or ""), str(record.get("coco_url") or "")
    if not name:
        return "/".join(address.split("/")[-2:])
    return name.split("_")[-1] if name.startswith("COCO_") and "neg_category_ids" in record else name


def _facts(record: dict[str, Any]) -> str:
    """Return what else is said of a picture that evaluators read, as JSON; empty when nothing is."""
    facts = {key: record[key] for key in FACTS if key in record}
    return json.dumps(facts) if facts else ""


def _image_size(record: dict[str, Any], path: Path) -> tuple[int, int]:
    """Return (height, width) as the JSON says, else as the file's header says, else (1, 1)."""
    height, width = record.get("height"), record.get("width")
    if _is_number(height) and _is_number(width) and height >= 1 and width >= 1:
        return int(height), int(width)
    try:
        return upright_size(*read_header(path))
    except DetcliError:
        return 1, 1


def _find_root(located: Located, names: list[str]) -> Path:
    """Return the folder that has most of (up to 50 of) the named pictures.

    Raises `DetcliError` that lists the folders when none has any.
    """
    step = max(len(names) // 50, 1)
    some = names[::step]
    counts = [sum((root / name).is_file() for name in some) for root in located.roots]
    best = max(range(len(counts)), key=counts.__getitem__)
    if counts[best] == 0:
        there = [root for root in located.roots if root.is_dir()] or located.roots
        raise DetcliError(
            f"can't find the pictures of {located.path}, such as {some[0]}: looked in "
            f"{', '.join(map(str, there[:8]))}. Say where they are with `--images DIR`."
        )
    return located.roots[best]


def missing_files(source: CocoSource) -> Iterator[int]:
    """Yield the pictures that are not there, reading each folder once."""
    listed: dict[Path, set[str]] = {}
    for index in range(len(source.image_ids)):
        path = source.path(index)
        if path.parent not in listed:
            try:
                listed[path.parent] = set(os.listdir(path.parent))
            except OSError:
                listed[path.parent] = set()
        if path.name not in listed[path.parent]:
            yield index


def _add_annotation(
    written: AnnotationWriter,
    record: Any,
    position: int,
    seen: set[int],
    numbers: dict[int, int],
    categories: dict[int, int],
    sizes: NDArray[np.int64],
    segmentations: bool,
    report: Report,
) -> None:
    """Append one entry of ``annotations`` to `written`, or report what is wrong with it."""
    if not isinstance(record, dict):
        report(f"annotation number {position} is no object: {_short(record)}")
        return
    annotation_id = record.get("id", position + 1)
    name = f"annotation {annotation_id}"
    if not _is_whole(annotation_id):
        report(f"{name} has no whole-number id")
        return
    if int(annotation_id) in seen:
        report(f"two annotations have the id {annotation_id}")
    seen.add(int(annotation_id))
    image_id, category_id, xywh = record.get("image_id"), record.get("category_id"), record.get("bbox")
    if not _is_whole(image_id) or int(image_id) not in numbers:
        report(f"{name} belongs to image {_short(image_id)}, which is not among the images")
        return
    if not _is_whole(category_id) or int(category_id) not in categories:
        report(f"{name} has the category id {_short(category_id)}, which is not among the categories")
        return
    if not isinstance(xywh, list) or len(xywh) != 4 or not all(_is_number(value) for value in xywh):
        report(f"{name} has no box of four numbers (x, y, width, height): {_short(xywh)}")
        return
    number = numbers[int(image_id)]
    crowd = bool(record.get("iscrowd"))
    try:
        segmentation = _read_segmentation(record.get("segmentation"), sizes[number], segmentations)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        report(f"{name} has a segmentation that is neither polygons nor run lengths of its picture: {error}")
        segmentation = b""
    area = record.get("area")
    if not _is_number(area) or not math.isfinite(area):
        area = _area(segmentation, sizes[number], xywh)
    keypoints = record.get("keypoints") or ()
    if len(keypoints) % 3 or not all(_is_number(value) for value in keypoints):
        report(f"{name} has keypoints that are no triples of numbers (x, y, visibility)")
        keypoints = ()
    keypoints = _places(keypoints)
    written.add(number, int(annotation_id), categories[int(category_id)], xywh, area, crowd, segmentation, keypoints)


def _places(keypoints: Sequence[float]) -> list[float]:
    """Return keypoints, which COCO counts in whole pixels, as places: the pixel's centre where one is labelled."""
    places = [float(value) for value in keypoints]
    for first in range(0, len(places), 3):
        if places[first + 2] > 0:
            places[first] += PIXEL_CENTRE
            places[first + 1] += PIXEL_CENTRE
    return places


def _read_segmentation(value: Any, size: NDArray[np.int64], wanted: bool) -> list[array[float]] | bytes:
    """Return polygons of three points and more, or compressed run lengths; when not `wanted`, a mark."""
    if not value:
        return b""
    if isinstance(value, dict):
        if list(value["size"]) != list(size):
            raise ValueError(f"it is for {list(value['size'])} pixels (height, width), not {size.tolist()}")
        counts = value["counts"]
        if not wanted:
            return b" "
        if isinstance(counts, list):
            if sum(counts) != int(size.prod()) or min(counts) < 0:
                raise ValueError(f"its run lengths cover {sum(counts)} of {int(size.prod())} pixels")
            counts = mask_utils.frPyObjects(value, *size.tolist())["counts"]
        return counts.encode() if isinstance(counts, str) else bytes(counts)
    polygons = [array("d", polygon) for polygon in value if len(polygon) >= 6]
    if any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon is no list of x and y in turn")
    for polygon in polygons:
        # pycocotools walks along polygons pixel by pixel: it would never come back from such places.
        if not math.isfinite(sum(polygon)) or min(polygon) < -FARTHEST or max(polygon) > FARTHEST:
            raise ValueError("a polygon has points that are not finite or far outside")
    return polygons if wanted else b" " * bool(polygons)


def _area(segmentation: list[array[float]] | bytes, size: NDArray[np.int64], xywh: list[float]) -> float:
    """Return the area of an object whose JSON gives none: that of its mask, or of its box."""
    if isinstance(segmentation, bytes):
        if len(segmentation) > 1:
            return float(mask_utils.area({"size": size.tolist(), "counts": segmentation}))
        return xywh[2] * xywh[3]
    polygons = [np.array(polygon) for polygon in segmentation]
    return float(mask_utils.area(run_lengths(polygons, (int(size[0]), int(size[1])))))


def _check_boxes(source: CocoSource, report: Report) -> None:
    """Report boxes with NaN, and boxes without area unless they are a stray few in a large file."""
    store = source.store

    def describe(row: int) -> str:
        return f"annotation {store.ids[row]} of {source.file_name(int(store.images[row]))}"

    finite = np.isfinite(store.xywh).all(axis=1)
    for row in np.flatnonzero(~finite).tolist():
        report(f"{describe(row)} has a box that is not finite: {store.xywh[row].tolist()}")
    empty = np.flatnonzero(finite & ~((store.xywh[:, 2] > 0) & (store.xywh[:, 3] > 0))).tolist()
    if len(empty) > STRAY_BOXES * len(store):
        for row in empty:
            report(f"{describe(row)} has a box without area: {store.xywh[row].tolist()}")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> TypeGuard[int | str]:
    """Say whether `value` is an id: a whole number, or one in a string."""
    if isinstance(value, str):
        return value.strip().lstrip("-").isdigit()
    return isinstance(value, int | float) and math.isfinite(value) and int(value) == value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
