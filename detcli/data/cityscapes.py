"""Reads Cityscapes: PNG files with the number of the object that each pixel belongs to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from detcli.data.classes import CLASSES
from detcli.data.coco import Split
from detcli.errors import DetcliError

LABELS = "_gtFine_instanceIds.png"
PICTURE = "_leftImg8bit.png"

VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""The pixels that evaluation leaves out: cityscapesscripts' labels with ``ignoreInEval``."""

NUMBERED = 1000
"""Object number n of class c is the value 1000 c + n; c alone is a group of objects that can't be told apart."""


def is_cityscapes(folder: Path) -> bool:
    """Return whether `folder` is that of Cityscapes."""
    return (folder / "gtFine").is_dir() and (folder / "leftImg8bit").is_dir()


def cityscapes_to_coco(
    folder: Path, split: Split, advance: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Return the objects of `split` as a COCO dict, masks as run lengths, groups as crowd regions.

    The category ids are Cityscapes' own (24 person to 33 bicycle); names of pictures are paths below `folder`; `void`
    of an image are the pixels that evaluation leaves out. `advance(done, total)` is called after each picture. Raises
    `DetcliError` when there are none, or one can't be read.
    """
    files = sorted((folder / "gtFine" / split).glob(f"*/*{LABELS}"))
    if not files:
        raise DetcliError(f"{folder} has no gtFine/{split}/CITY/*{LABELS}: download gtFine_trainvaltest.zip into it.")
    data: dict[str, Any] = {"images": [], "annotations": []}
    for number, path in enumerate(files, 1):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2:
            raise DetcliError(f"can't read {path}: it is no PNG with a number for each pixel.")
        height, width = labels.shape
        picture = Path("leftImg8bit") / split / path.parent.name / path.name.replace(LABELS, PICTURE)
        data["images"].append(
            {
                "id": number,
                "file_name": picture.as_posix(),
                "height": height,
                "width": width,
                "void": _run_lengths(np.isin(labels, VOID)),
            }
        )
        for value in np.unique(labels).tolist():
            category = value // NUMBERED if value >= NUMBERED else value
            if category in CLASSES["cityscapes"].ids:
                mask = _run_lengths(labels == value)
                data["annotations"].append(
                    {
                        "id": len(data["annotations"]) + 1,
                        "image_id": number,
                        "category_id": category,
                        "iscrowd": int(value < NUMBERED),
                        "bbox": mask_utils.toBbox(mask).tolist(),
                        "area": int(mask_utils.area(mask)),
                        "segmentation": mask,
                    }
                )
        advance(number, len(files))
    names, ids = CLASSES["cityscapes"].names, CLASSES["cityscapes"].ids
    data["categories"] = [{"id": key, "name": name} for key, name in zip(ids, names, strict=True)]
    return data


def _run_lengths(mask: Any) -> dict[str, Any]:
    encoded = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
