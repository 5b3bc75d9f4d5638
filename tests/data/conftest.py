"""A COCO folder with everything that real ones have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from detcli.config import DataConfig, InputConfig

KEYPOINTS = ["nose", "left_eye", "right_eye"]


def scene(height: int, width: int, box: tuple[int, int, int, int], bright: int = 220) -> np.ndarray:
    """Return a dark picture whose only bright pixels fill `box` (x, y, width, height)."""
    image = np.full((height, width, 3), 30, np.uint8)
    x, y, w, h = box
    image[y : y + h, x : x + w] = bright
    return image


class Folder:
    """A COCO folder that tests may change before it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pictures = path / "train2017"
        self.json = path / "annotations" / "instances_train2017.json"
        self.pictures.mkdir(parents=True)
        self.json.parent.mkdir()
        mask = np.zeros((60, 80), np.uint8, order="F")
        mask[30:50, 10:40] = 1
        compressed = mask_utils.encode(mask)
        Image.fromarray(scene(60, 80, (10, 30, 30, 20))).save(self.pictures / "plain.jpg", quality=95)
        # Stored 60 high and 80 wide; a viewer turns it by 90 degrees: 80 high and 60 wide.
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = Image.fromarray(scene(60, 80, (10, 20, 30, 15)))
        turned.save(self.pictures / "turned.jpg", quality=95, exif=exif)
        cv2.imwrite(str(self.pictures / "grey.png"), scene(90, 70, (5, 10, 40, 60))[..., 0])
        cv2.imwrite(str(self.pictures / "empty.png"), scene(64, 64, (0, 0, 0, 0)))
        self.data: dict[str, Any] = {
            "categories": [
                {"id": 90, "name": "person", "keypoints": KEYPOINTS},
                {"id": 7, "name": "cat"},
                {"id": 3, "name": "dog"},
            ],
            "images": [
                {"id": 11, "file_name": "plain.jpg", "height": 60, "width": 80},
                {"id": 5, "file_name": "turned.jpg", "height": 80, "width": 60},
                {"id": 8, "file_name": "grey.png", "height": 90, "width": 70},
                {"id": 2, "file_name": "empty.png", "height": 64, "width": 64},
            ],
            "annotations": [
                self.annotation(
                    1, 11, 7, [10, 30, 30, 20], {"size": [60, 80], "counts": compressed["counts"].decode()}
                ),
                # Upright x is the stored height minus y, upright y is the stored x: 60 - 20 - 15 = 25 and 10.
                self.annotation(2, 5, 3, [25, 10, 15, 30], [[25, 10, 40, 10, 40, 40, 25, 40]]),
                self.annotation(3, 8, 90, [5, 10, 40, 60], [[5, 10, 45, 10, 45, 70, 5, 70]])
                | {"keypoints": [20, 20, 2, 10, 15, 2, 30, 15, 1], "num_keypoints": 3},
                self.annotation(4, 8, 3, [50, 0, 20, 90], {"size": [90, 70], "counts": [4500, 1800]}) | {"iscrowd": 1},
            ],
        }

    @staticmethod
    def annotation(
        number: int, image: int, category: int, bbox: list[float], segmentation: Any = None
    ) -> dict[str, Any]:
        item = {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0}
        return item | ({"segmentation": segmentation} if segmentation else {})

    def write(self) -> Path:
        self.json.write_text(json.dumps(self.data))
        return self.path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "pets")


@pytest.fixture
def config() -> Callable[..., DataConfig]:
    def make(source: Any, **settings: Any) -> DataConfig:
        given = {"resize": [(80, 80)], "test_resize": (80, 80), "flip": 0.0, "workers": 0}
        return DataConfig(source=str(source), **{**given, **settings})

    return make


@pytest.fixture
def rgb() -> InputConfig:
    return InputConfig()
