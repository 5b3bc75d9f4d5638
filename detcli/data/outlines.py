"""Masks as one polygon each, which is all that some formats hold."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from detcli.data.annotations import Segmentation, bitmaps, run_lengths
from detcli.data.images import Pixels

Points = NDArray[np.float64]


def outline(segmentation: Segmentation, size: tuple[int, int]) -> Points:
    """Return a polygon, points [P,2] of x and y in pixels, of a mask in a picture of `size` (height, width).

    A mask of several parts or with holes is a polygon that goes from one to the next and back on the same line: the
    pixels that it encloses an odd number of times are the mask's. P is 0 for a mask without pixels.
    """
    if isinstance(segmentation, list):
        joined = _joined([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
        # Of parts that overlap, the pixels in both would be left out.
        if len(segmentation) == 1 or _area([joined.ravel()], size) == _area(segmentation, size):
            return joined
    return _joined(_contours(bitmaps([segmentation], size)[0]))


def _joined(parts: list[Points]) -> Points:
    """Return one polygon of several, each begun where it is nearest to what there is already."""
    if not parts:
        return np.zeros((0, 2))
    path, *others = parts
    for part in others:
        distances = np.square(path[:, None] - part).sum(-1)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        around = np.roll(part, -int(there), axis=0)
        path = np.concatenate([path[: here + 1], around, around[:1], path[here:]])
    return path


def _contours(mask: Pixels) -> list[Points]:
    """Return the polygons along the edges of the pixels of mask [H,W], those around holes among them."""
    # Doubled, a pixel has a pixel at each of its corners.
    doubled = mask.repeat(2, axis=0).repeat(2, axis=1)
    found, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [_corners((np.asarray(contour, np.int64)[:, 0] + 1) // 2) for contour in found]


def _corners(points: NDArray[np.int64]) -> Points:
    """Return the points [P,2] of a closed line at which it turns."""
    points = points[(points != np.roll(points, 1, axis=0)).any(1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return np.asarray(points[turns], np.float64)


def _area(segmentation: Segmentation, size: tuple[int, int]) -> int:
    return int(mask_utils.area(run_lengths(segmentation, size)))
