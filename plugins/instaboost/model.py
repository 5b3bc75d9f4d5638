"""InstaBoost: Boosting Instance Segmentation via Probability Map Guided Copy-Pasting.

Fang, Sun, Wang, Gou, Li, Lu, arXiv 1908.07801. Objects are cut out by their masks, what was behind them is filled in,
and they are pasted back a little moved, turned and scaled (section 3.2, random InstaBoost).

Deviations, as in MMDetection's setting: places are drawn around the old one, without the heat map of section 3.3, and
objects are not mirrored. What is behind objects is filled in at a fraction of the picture's size, where it takes
milliseconds.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from detcli.data.transforms import Record, TransformFn, to_image, to_pixels
from detcli.errors import DetcliError

FILLED_SIDE = 256
"""The longest side of the picture, in pixels, while what is behind objects is filled in."""

FILL_RADIUS = 5
"""How far around a pixel its filling is taken from, in pixels of the small picture."""

EDGE = 3
"""How many pixels around an object are filled in, too: its soft edge."""


def instaboost(
    *,
    probability: float = 0.5,
    actions: tuple[float, float, float] = (1.0, 0.0, 0.0),
    scale: tuple[float, float] = (0.8, 1.2),
    shift: float = 0.06666666666666667,
    degrees: float = 1.0,
    color_probability: float = 0.5,
) -> TransformFn:
    """Return a transform that moves the objects of a picture, with a `probability`.

    Objects that touch move together. `actions` are the odds of moving a group, of moving it mirrored, and of leaving it
    where it is. It is scaled by a factor drawn from `scale`, turned by up to `degrees`, moved by up to `shift` of its
    sides, and with `color_probability` a little brighter or darker. An object under a moved one loses what is covered;
    a group that would leave the picture, or hide another object, stays.

    Raises `DetcliError` for records without masks, and for those with keypoints or labels of pixels, which would not
    move.
    """

    def boost(record: Record) -> Record:
        _check(record)
        if _uniform(0, 1) >= probability or not len(record["labels"]):
            return record
        pixels = to_pixels(record["image"])
        masks = record["masks"].numpy().astype(np.uint8)
        chosen = []
        for members in _groups(masks):
            action = int(torch.multinomial(torch.tensor(actions), 1))
            matrix = _movement(masks[members].max(0), action == 1, scale, shift, degrees)
            gain = _uniform(0.8, 1.2) if _uniform(0, 1) < color_probability else 1.0
            if action < 2:
                chosen.append((members, matrix, gain))
        # Large groups first, so that they don't hide small ones.
        chosen.sort(key=lambda group: -int(masks[group[0]].max(0).sum()))
        moved = np.zeros(len(masks), bool)
        places = masks.copy()
        pasted = []
        for members, matrix, gain in chosen:
            attempt = _moved(places, masks, members, matrix)
            if attempt is not None:
                places = attempt
                moved[members] = True
                pasted.append((members, matrix, gain))
        if not pasted:
            return record
        canvas = _without(pixels, masks[moved].max(0), masks)
        for members, matrix, gain in pasted:
            _paste(canvas, pixels, masks[members].max(0), matrix, gain)
        return _renewed(record, canvas, masks, places)

    return boost


def _check(record: Record) -> None:
    if "masks" not in record:
        raise DetcliError(
            "the transform 'instaboost' cuts objects out by their masks, and this model is trained without: "
            "take one with masks, as `detcli train mask_rcnn --with instaboost`."
        )
    for key, name in (("keypoints", "keypoints"), ("semantic", "labels of pixels")):
        if key in record:
            raise DetcliError(
                f"the transform 'instaboost' does not move {name}, which this model is trained on: "
                "train it without, `--set data.before_resize=[]`."
            )


def _groups(masks: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """Return the indices of the objects [G,H,W] that touch each other; objects without a pixel are in none."""
    kernel = np.ones((3, 3), np.uint8)
    wide = [cv2.dilate(mask, kernel) for mask in masks]
    owner = np.arange(len(masks))
    boxes = [cv2.boundingRect(mask) for mask in wide]
    for one in range(len(masks)):
        x, y, width, height = boxes[one]
        for other in range(one):
            part = np.s_[y : y + height, x : x + width]
            if bool((wide[one][part] & masks[other][part]).any()):
                owner[owner == owner[one]] = owner[other]
    there = masks.any((1, 2))
    return [np.flatnonzero(owner == group) for group in np.unique(owner[there])]


def _movement(
    mask: NDArray[np.uint8], mirrored: bool, scale: tuple[float, float], shift: float, degrees: float
) -> NDArray[np.float64]:
    """Return the affine matrix [2,3], around the middle of what is in `mask` [H,W]."""
    x, y, width, height = cv2.boundingRect(mask)
    middle = x + (width - 1) / 2, y + (height - 1) / 2
    matrix = np.asarray(cv2.getRotationMatrix2D(middle, _uniform(-degrees, degrees), _uniform(*scale)), np.float64)
    matrix[:, 2] += _uniform(-shift, shift) * width, _uniform(-shift, shift) * height
    if mirrored:
        mirror = np.array([[-1, 0, 2 * middle[0]], [0, 1, 0], [0, 0, 1]])
        matrix = matrix @ mirror
    return matrix


def _warp(plane: NDArray[Any], matrix: NDArray[np.float64], how: int) -> NDArray[Any]:
    height, width = plane.shape[:2]
    return np.asarray(cv2.warpAffine(plane, matrix, (width, height), flags=how))


def _moved(
    places: NDArray[np.uint8], masks: NDArray[np.uint8], members: NDArray[np.int64], matrix: NDArray[np.float64]
) -> NDArray[np.uint8] | None:
    """Return where objects are, [G,H,W], once the `members` are moved over the others; None if one were hidden."""
    result = places.copy()
    for member in members:
        result[member] = _warp(masks[member], matrix, cv2.INTER_NEAREST)
    cover = result[members].max(0)
    others = np.setdiff1d(np.arange(len(places)), members)
    result[others] &= 1 - cover
    before, after = (planes.sum((1, 2), dtype=np.int64) for planes in (masks, result))
    return result if bool((after >= before / 2).all()) else None


def _without(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture [H,W,3] with what is behind `mask` [H,W] filled in from around it."""
    hole = cv2.dilate(mask, np.ones((2 * EDGE + 1, 2 * EDGE + 1), np.uint8))
    factor = min(1.0, FILLED_SIDE / max(mask.shape))
    size = max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor))
    # Every small pixel that holds a part of the hole is in the small hole.
    small_hole = (cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    small = cv2.inpaint(
        cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), small_hole, FILL_RADIUS, cv2.INPAINT_TELEA
    )
    filled = cv2.resize(small, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    # Objects that stay keep their pixels, also those at the edge of one that moves.
    stays = (masks.max(0) & (1 - mask)).astype(bool)
    return np.where((hole.astype(bool) & ~stays)[..., None], filled, pixels)


def _paste(
    canvas: NDArray[np.uint8],
    pixels: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    gain: float,
) -> None:
    """Paste what is in `mask` [H,W] of `pixels` into `canvas` at its new place, with a soft edge, in place."""
    weight = cv2.GaussianBlur(_warp(mask.astype(np.float32), matrix, cv2.INTER_LINEAR), (3, 3), 0)
    x, y, width, height = cv2.boundingRect((weight > 0).astype(np.uint8))
    part = np.s_[y : y + height, x : x + width]
    colors = np.clip(_warp(pixels, matrix, cv2.INTER_LINEAR)[part].astype(np.float32) * gain, 0, 255)
    share = weight[part][..., None]
    canvas[part] = (canvas[part] * (1 - share) + colors * share + 0.5).astype(np.uint8)


def _renewed(record: Record, pixels: NDArray[np.uint8], masks: NDArray[np.uint8], places: NDArray[np.uint8]) -> Record:
    """Return `record` with new pixels and masks; boxes of objects whose masks have changed are those around them."""
    boxes = record["boxes"].as_subclass(torch.Tensor).clone()
    for index, (before, after) in enumerate(zip(masks, places, strict=True)):
        if not np.array_equal(before, after):
            x, y, width, height = cv2.boundingRect(after)
            boxes[index] = torch.tensor([x, y, x + width, y + height], dtype=boxes.dtype)
    return {
        **record,
        "image": to_image(pixels),
        "masks": tv_tensors.wrap(torch.from_numpy(places).to(record["masks"].dtype), like=record["masks"]),
        "boxes": tv_tensors.wrap(boxes, like=record["boxes"]),
    }


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
