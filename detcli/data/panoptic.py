"""COCO's panoptic format: a PNG file a picture, whose colours are ids of segments, and what these are in JSON.

https://cocodataset.org/#format-data, panoptic segmentation; Kirillov et al., arXiv 1801.00868.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from detcli.data.annotations import Annotations, Category, Segmentation, Segments, flat_texts, text_at
from detcli.data.coco import CocoSource, Located, load_json, read_coco
from detcli.data.images import Pixels
from detcli.errors import DetcliError
from detcli.structures import UNLABELLED

MOST = 2**24
"""Ids are less: a colour has 24 bits."""


def encode_ids(ids: NDArray[Any]) -> bytes:
    """Return a PNG file of ids [H,W] in 0..2^24-1, as red + 256 green + 65536 blue."""
    colours = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=-1).astype(np.uint8)
    return bytes(cv2.imencode(".png", colours)[1])


def segments_info(segments: Segments) -> list[dict[str, Any]]:
    """Return what COCO's JSON says of segments."""
    infos = []
    for number, category, crowd in zip(segments.numbers, segments.categories, segments.crowd, strict=True):
        mask = (segments.ids == number).view(np.uint8)
        info = {"id": int(number), "category_id": int(category), "iscrowd": int(crowd)}
        infos.append(info | {"area": int(mask.sum()), "bbox": list(cv2.boundingRect(mask))})
    return infos


def decode_ids(data: bytes, size: tuple[int, int], name: object) -> NDArray[np.int32]:
    """Return the ids [H,W] in a PNG file that must have `size` (height, width).

    Raises `DetcliError` as `decode_png` does.
    """
    colours = decode_png(data, size, name, "colours")
    blue, green, red = (colours[..., channel].astype(np.int32) for channel in range(3))
    return np.asarray(red + 256 * green + 65536 * blue, np.int32)


def decode_png(data: bytes, size: tuple[int, int], name: object, kind: Literal["colours", "grey"]) -> Pixels:
    """Return the pixels of a PNG file that must have `size` (height, width): [H,W,3] BGR of colours, [H,W] of grey.

    Raises `DetcliError` that calls the file `name` when it is no whole PNG of that kind with 8 bits, or of another
    size, which is looked at before anything is decoded.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or b"IEND" not in data[-16:]:
        raise DetcliError(f"{name} is no whole PNG file. Restore it.")
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if (height, width) != size:
        raise DetcliError(f"{name} is {width}x{height} pixels, but its picture {size[1]}x{size[0]}: it doesn't fit.")
    if kind == "colours" and data[24:26] != b"\x08\x02":
        raise DetcliError(f"{name} is a PNG, but not of red, green and blue with 8 bits each, which ids are made of.")
    if kind == "grey" and data[24:26] != b"\x08\x00":
        raise DetcliError(f"{name} is a PNG, but not of grey with 8 bits, which labels are.")
    flags = cv2.IMREAD_COLOR if kind == "colours" else cv2.IMREAD_GRAYSCALE
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DetcliError(f"{name} is a PNG file that can't be decoded. Restore it.")
    return np.asarray(pixels, np.uint8)


def write_panoptic(panoptic: dict[str, Any], path: Path) -> None:
    """Write a dict in COCO's panoptic format to `path`, and the PNG files of its annotations into the folder beside it.

    The annotations have the bytes of their files under "png". The folder is called as `path` is, without suffix.
    """
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    annotations = []
    for annotation in panoptic["annotations"]:
        (folder / annotation["file_name"]).write_bytes(annotation["png"])
        annotations.append({key: value for key, value in annotation.items() if key != "png"})
    path.write_text(json.dumps({**panoptic, "annotations": annotations}))


def is_panoptic(path: Path) -> bool:
    """Return whether the JSON file at `path` is called as COCO's panoptic ones are: ``panoptic_val2017.json``."""
    return path.stem.startswith("panoptic")


def panoptic_beside(path: Path) -> Path | None:
    """Return the panoptic file that belongs to an annotation file: ``panoptic_*`` beside ``instances_*``."""
    beside = path.with_name(f"panoptic_{path.stem.removeprefix('instances_')}.json")
    return beside if beside.is_file() else None


def read_panoptic(located: Located, things: CocoSource | None = None) -> PanopticSource:
    """Read a panoptic JSON file; its PNG files are in the folder that is called as it is, beside it or above.

    Objects are those of `things`, with masks that may overlap, or without such a file the segments of things. Raises
    `DetcliError` for a file that can't be read or at the first entry that is wrong.
    """
    path = located.path
    data = load_json(path)
    categories = {
        record["id"]: record
        for record in data["categories"]
        if isinstance(record, dict) and isinstance(record.get("id"), int) and record.get("name")
    }
    if len(categories) < len(data["categories"]):
        raise DetcliError(f"{path}: its categories must each have a whole-number id of their own and a name.")
    for record in data["annotations"]:
        _check_record(record, categories, path)
    if things is None:
        things = read_coco(located, segmentations=False, data=_objects(data, categories))
        own_masks = True
    else:
        own_masks = False
    stuff = [
        Category(number, str(categories[number]["name"]))
        for number in sorted(categories)
        if not categories[number].get("isthing")
    ]
    labels = {category.id: label for label, category in enumerate([*things.categories, *stuff])}
    strange = sorted(str(categories[number]["name"]) for number in categories.keys() - labels.keys())
    if strange:
        raise DetcliError(f"{path}: {', '.join(strange[:5])} are things that {things.name} has not.")
    records = {int(record["image_id"]): record for record in data["annotations"]}
    lacking = [number for number in things.image_ids.tolist() if number not in records]
    if lacking:
        raise DetcliError(f"{path} has no segments for image {lacking[0]} ({len(lacking)} such images).")
    ordered = [records[number] for number in things.image_ids.tolist()]
    return PanopticSource(things, stuff, labels, ordered, _find_maps(path, ordered), own_masks)


class PanopticSource(CocoSource):
    """Pictures with objects, and with segments of things and stuff; `stuff` are the categories of the latter.

    With `own_masks`, the masks of objects are those of the segments.
    """

    def __init__(
        self,
        things: CocoSource,
        stuff: list[Category],
        labels: dict[int, int],
        records: list[dict[str, Any]],
        maps: Path,
        own_masks: bool,
    ) -> None:
        names = [things.file_name(index) for index in range(len(things.image_ids))]
        super().__init__(things.name, things.categories, things.store, things.image_ids, names, things.root)
        self.stuff = stuff
        self._maps = maps
        self.own_masks = own_masks
        # In flat arrays, for the reason that `AnnotationStore` has them.
        self._map_names, self._map_first = flat_texts([record["file_name"] for record in records])
        infos = [info for record in records for info in record["segments_info"]]
        self._first = np.cumsum([0, *(len(record["segments_info"]) for record in records)])
        self._numbers = np.array([info["id"] for info in infos], np.int64)
        self._categories = np.array([info["category_id"] for info in infos], np.int64)
        self._labels = np.array([labels[info["category_id"]] for info in infos], np.int64)
        self._crowd = np.array([bool(info.get("iscrowd")) for info in infos], np.bool_)
        areas = (info.get("area") for info in infos)
        self._areas = np.array([area if isinstance(area, int | float) else np.nan for area in areas], np.float64)

    def read(self, index: int) -> tuple[Pixels, Annotations]:
        """Return picture `index` and its annotations, as `CocoSource` does, with semantic labels."""
        image, annotations = super().read(index)
        return image, self._labelled(index, annotations)

    def annotations(self, index: int) -> Annotations:
        """Return the annotations of picture `index`, with semantic labels."""
        return self._labelled(index, super().annotations(index))

    def map_path(self, index: int) -> Path:
        """Return the PNG file of picture `index`."""
        return self._maps / text_at(self._map_names, self._map_first, index)

    def said_areas(self, index: int) -> NDArray[np.float64]:
        """Return the areas [S] of the segments of picture `index` as the JSON file has them, NaN where it has none."""
        areas: NDArray[np.float64] = self._areas[self._first[index] : self._first[index + 1]]
        return areas

    @property
    def used_categories(self) -> set[int]:
        """The ids of the categories that segments have."""
        return set(np.unique(self._categories).tolist())

    def segments(self, index: int) -> Segments:
        """Return the segments of picture `index`; raises `DetcliError` when its PNG file is not what it should be."""
        path = self.map_path(index)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DetcliError(f"can't read {path}: {error.strerror}.") from None
        rows = slice(self._first[index], self._first[index + 1])
        height, width = self.sizes[index].tolist()
        ids = decode_ids(data, (height, width), path)
        return Segments(ids, self._numbers[rows], self._categories[rows], self._crowd[rows])

    def _labelled(self, index: int, annotations: Annotations) -> Annotations:
        segments = self.segments(index)
        if segments.ids.shape != annotations.size:
            raise DetcliError(f"{self.path(index)} is turned by its EXIF data, and its segments are not. Turn both.")
        labels = self._labels[self._first[index] : self._first[index + 1]]
        semantic = _looked_up(segments, labels)
        masks = annotations.segmentations
        if self.own_masks:
            things = segments.numbers[labels < len(self.categories)]
            masks = [_run_lengths(segments.ids == number) for number in things.tolist()]
        return replace(annotations, segmentations=masks, semantic=semantic)


def _looked_up(segments: Segments, labels: NDArray[np.int64]) -> Pixels:
    """Return the label of each pixel's segment, `UNLABELLED` where it has none: uint8 [H,W]."""
    order = np.argsort(segments.numbers)
    numbers = np.append(segments.numbers[order], MOST)
    place = np.searchsorted(numbers, segments.ids)
    found = np.append(labels[order], UNLABELLED)[place]
    return np.where(numbers[place] == segments.ids, found, UNLABELLED).astype(np.uint8)


def _run_lengths(mask: NDArray[np.bool_]) -> Segmentation:
    encoded: dict[str, Any] = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return encoded


def _check_record(record: Any, categories: dict[int, Any], path: Path) -> None:
    """Raise `DetcliError` when an entry of ``annotations`` is not what the format says."""
    if not isinstance(record, dict) or not isinstance(record.get("image_id"), int):
        raise DetcliError(f"{path}: an annotation has no whole-number image_id.")
    where, name = f"{path}: image {record['image_id']}", record.get("file_name")
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise DetcliError(f"{where} has no file_name of a PNG file in one folder: {name!r}.")
    infos = record.get("segments_info")
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise DetcliError(f"{where} has no list segments_info.")
    numbers = [info.get("id") for info in infos]
    if not all(isinstance(number, int) and 0 < number < MOST for number in numbers) or len(set(numbers)) < len(infos):
        raise DetcliError(f"{where} has segments whose ids are not different whole numbers from 1 to {MOST - 1}.")
    unknown = [info.get("category_id") for info in infos if info.get("category_id") not in categories]
    if unknown:
        raise DetcliError(f"{where} has the category id {unknown[0]}, which is not among the categories.")


def _objects(data: dict[str, Any], categories: dict[int, Any]) -> dict[str, Any]:
    """Return the segments of things as annotations of objects, in their order, marked as having masks."""
    objects: list[dict[str, Any]] = []
    sizes = {image["id"]: [image.get("height"), image.get("width")] for image in data["images"]}
    for record in data["annotations"]:
        for info in record["segments_info"]:
            if categories[info["category_id"]].get("isthing"):
                mask = {"size": sizes.get(record["image_id"]), "counts": ""}
                item = {"id": len(objects) + 1, "image_id": record["image_id"], "segmentation": mask}
                kept = {key: info[key] for key in ("category_id", "bbox", "area", "iscrowd") if key in info}
                objects.append(item | kept)
    things = [category for category in data["categories"] if category.get("isthing")]
    return {"images": data["images"], "annotations": objects, "categories": things}


def _find_maps(path: Path, records: list[dict[str, Any]]) -> Path:
    """Return the folder of the PNG files; raises `DetcliError` that lists where they were looked for."""
    folders = [path.with_suffix(""), path.parent.parent / path.stem]
    for folder in folders:
        if not records or (folder / records[0]["file_name"]).is_file():
            return folder
    raise DetcliError(f"can't find {records[0]['file_name']} of {path}: looked in {' and '.join(map(str, folders))}.")
