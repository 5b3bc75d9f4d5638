"""The built-in data: drawn scenes of circles, squares, triangles and stars over sky, ground and water."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from detcli.data.annotations import Annotations, Category, Segmentation, Segments, bitmaps
from detcli.data.images import Pixels
from detcli.structures import UNLABELLED

THINGS = ("circle", "square", "triangle", "star")
STUFF = ("sky", "ground", "water")
"""Semantic labels are those of things, then those of stuff."""

KEYPOINTS = ("top", "left", "right", "top_left", "top_right", "bottom_left", "bottom_right")
CORNERS = {
    "square": {0: "top_right", 1: "bottom_right", 2: "bottom_left", 3: "top_left"},
    "triangle": {0: "top", 1: "bottom_right", 2: "bottom_left"},
    "star": {0: "top", 2: "right", 4: "bottom_right", 6: "bottom_left", 8: "left"},
}
"""Which keypoints the corners of an outline are, when it is upright; a circle has none."""

MAX_OBJECTS = 6
SIDES = (0.2, 0.55)
"""The least and greatest side of an object as a share of the picture's shorter side."""
LEAST_VISIBLE = 0.6
"""An object that would hide more than the rest of another is not drawn."""
PLACE_TRIES = 8
SUPERSAMPLING = 4

Float = NDArray[np.float32]
Region = tuple[slice, slice]


def shapes(
    *,
    split: Literal["train", "val"],
    size: tuple[int, int] = (160, 128),
    train_images: int = 1000,
    val_images: int = 200,
    seed: int = 0,
    unused_classes: int = 0,
    keypoints: bool = False,
) -> Shapes:
    """Return `train_images` or `val_images` scenes that depend on `seed`, split and their number alone.

    `size` is the longest side and the mean of the shortest, in pixels; a quarter of the scenes are tall.
    Beside the shapes, `unused_classes` are classes that no object has: a model then is as large as that of other data.
    With `keypoints`, the corners of shapes are annotated, called by where they are; in a mirror, left and right swap.
    """
    count = train_images if split == "train" else val_images
    return Shapes(split, size, count, seed, unused_classes, keypoints)


class Shapes:
    """Scenes with boxes, masks, stuff and, if wanted, keypoints, drawn when they are read."""

    has_masks = True

    def __init__(
        self,
        split: Literal["train", "val"],
        size: tuple[int, int],
        count: int,
        seed: int,
        unused_classes: int = 0,
        keypoints: bool = False,
    ) -> None:
        self.name = f"shapes ({split})"
        unused = (f"unused {number}" for number in range(1, unused_classes + 1))
        points = KEYPOINTS if keypoints else ()
        self.categories = [Category(number, name, points) for number, name in enumerate((*THINGS, *unused), 1)]
        self.stuff = [Category(number, name) for number, name in enumerate(STUFF, len(self.categories) + 1)]
        self.image_ids = np.arange(1, count + 1)
        self.filled = np.ones(count, np.bool_)
        self._seed = (seed, ("train", "val").index(split))
        draws = np.random.default_rng(self._seed).random((count, 2))
        shortest = np.rint(min(size) * (0.9 + 0.2 * draws[:, 0])).astype(np.int64)
        longest = np.full(count, max(size))
        tall = draws[:, 1] < 0.25
        self.sizes = np.where(tall[:, None], np.stack([longest, shortest], 1), np.stack([shortest, longest], 1))

    def file_name(self, index: int) -> str:
        """Return the name that picture `index` has once it is written to a folder."""
        return f"{index + 1:06d}.png"

    def read(self, index: int) -> tuple[Pixels, Annotations]:
        """Draw picture `index`."""
        size = int(self.sizes[index, 0]), int(self.sizes[index, 1])
        pixels, annotations = draw_scene(np.random.default_rng((*self._seed, index)), size)
        if not self.categories[0].keypoints:
            annotations.keypoints = annotations.keypoints[:, :0]
        unused = len(self.categories) - len(THINGS)
        if len(self.categories) + len(STUFF) > UNLABELLED:
            annotations.semantic = None
        elif unused and annotations.semantic is not None:
            annotations.semantic[annotations.semantic >= len(THINGS)] += unused
        return pixels, annotations

    def annotations(self, index: int) -> Annotations:
        """Return the annotations of picture `index`."""
        return self.read(index)[1]

    def segments(self, index: int) -> Segments:
        """Return the visible part of each object, then each kind of stuff, as segments with ids from 1 on."""
        annotations = self.annotations(index)
        assert annotations.semantic is not None
        objects, kinds = len(annotations), len(self.categories)
        ids = annotations.semantic.astype(np.int32) - kinds + objects + 1
        for number, mask in enumerate(bitmaps(annotations.segmentations, annotations.size), 1):
            ids[mask > 0] = number
        numbers = np.unique(ids).astype(np.int64)
        stuff = np.array([category.id for category in self.stuff])
        category_ids = np.append(annotations.categories + 1, stuff)[numbers - 1]
        return Segments(ids, numbers, category_ids, np.zeros(len(numbers), np.bool_))


def draw_scene(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Pixels, Annotations]:
    """Draw a scene of `size` (height, width): pixels uint8 [H,W,3] RGB, and annotations.

    Masks are the visible parts of objects, boxes enclose them tightly.
    """
    pixels, semantic = _background(generator, size)
    owner = np.zeros(size, np.uint8)
    labels: list[int] = []
    outlines: list[NDArray[np.float64]] = []
    areas, visible = np.zeros(0), np.zeros(0)
    for _ in range(int(generator.integers(1, MAX_OBJECTS + 1))):
        label = int(generator.integers(len(THINGS)))
        for _ in range(PLACE_TRIES):
            corners = _place(generator, _outline(generator, label), size)
            region = _region(corners, size)
            coverage = _coverage(corners, region)
            solid = coverage >= 0.5
            left = visible - np.bincount(owner[region][solid], minlength=len(labels) + 1)[1:]
            if solid.any() and (left >= LEAST_VISIBLE * areas).all():
                _paint(generator, pixels[region], corners - _origin(region), coverage)
                labels.append(label)
                outlines.append(corners)
                owner[region][solid] = len(labels)
                area = np.count_nonzero(solid)
                areas, visible = np.append(areas, area), np.append(left, area)
                break
    noise = generator.standard_normal(pixels.shape, np.float32)
    pixels += noise * np.float32(generator.uniform(2, 10))
    np.copyto(semantic, np.array([0, *labels], np.uint8)[owner], where=owner > 0)
    masks = owner == np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None]
    keypoints = [_keypoints(label, corners, mask) for label, corners, mask in zip(labels, outlines, masks, strict=True)]
    return (pixels + 0.5).clip(0, 255).astype(np.uint8), _annotate(labels, masks, np.array(keypoints), semantic)


def _keypoints(label: int, corners: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the keypoints [K,3] (x, y, visibility) of a shape from its corners in pixels and its visible mask [H,W].

    A corner is visible where the object shows a little inside of it, hidden where not, unlabelled outside the picture.
    """
    found = np.zeros((len(KEYPOINTS), 3), np.float32)
    height, width = mask.shape
    inner = corners + (corners.mean(axis=0) - corners) * 0.1
    for number, name in CORNERS.get(THINGS[label], {}).items():
        x, y = corners[number]
        if 0 < x < width and 0 < y < height:
            column, row = inner[number].astype(int)
            found[KEYPOINTS.index(name)] = x, y, 2 if mask[row, column] else 1
    return found


def _annotate(
    labels: list[int], masks: NDArray[np.bool_], keypoints: NDArray[np.float32], semantic: Pixels
) -> Annotations:
    count, height, width = masks.shape
    columns, rows = np.asarray(masks.any(axis=1)), np.asarray(masks.any(axis=2))
    left, top = columns.argmax(axis=1), rows.argmax(axis=1)
    right, bottom = width - columns[:, ::-1].argmax(axis=1), height - rows[:, ::-1].argmax(axis=1)
    runs: list[Segmentation] = mask_utils.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return Annotations(
        size=(height, width),
        ids=np.arange(1, count + 1),
        xywh=np.stack([left, top, right - left, bottom - top], axis=1).astype(np.float64),
        categories=np.array(labels),
        crowd=np.zeros(count, np.bool_),
        areas=masks.sum(axis=(1, 2)).astype(np.float64),
        segmentations=runs,
        keypoints=keypoints.reshape(count, -1, 3),
        semantic=semantic,
    )


def _background(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Float, Pixels]:
    """Return float pixels [H,W,3] of a sky over hilly ground with a lake, and their semantic labels [H,W]."""
    height, width = size
    y, x = np.ogrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    hills = sum(
        generator.uniform(0.01, 0.06) * np.sin(2 * np.pi * (generator.uniform(0.5, 2.5) * x + generator.random()))
        for _ in range(2)
    )
    ground = y > generator.uniform(0.3, 0.6) + hills
    lake_y, lake_x = generator.uniform(0.7, 1.0), generator.uniform(0, 1)
    lake = ((y - lake_y) / generator.uniform(0.06, 0.2)) ** 2 + ((x - lake_x) / generator.uniform(0.2, 0.6)) ** 2 < 1
    region = np.where(ground, np.where(lake, 2, 1), 0)
    # RGB at the top and at the bottom of the picture; each scene is lit a little differently.
    colours = np.array(
        [
            [[95, 150, 220], [205, 225, 240]],
            [[130, 140, 70], [75, 105, 45]],
            [[70, 125, 165], [35, 75, 125]],
        ]
    )
    colours = colours + generator.uniform(-30, 30, (3, 1, 3))
    gradient = colours[:, :1] + (colours[:, 1:] - colours[:, :1]) * y.reshape(1, -1, 1)
    rows = np.arange(height)[:, None]
    pixels: Float = gradient.astype(np.float32)[region, rows]
    return pixels, (region + len(THINGS)).astype(np.uint8)


def _outline(generator: np.random.Generator, label: int) -> NDArray[np.float64]:
    """Return the corners [P,2] of a shape about the origin, upright or a little turned, its longer side 1."""
    turn = generator.uniform(-0.3, 0.3) - np.pi / 2
    name = THINGS[label]
    if name == "circle":
        angles, radii = np.linspace(0, 2 * np.pi, 40, endpoint=False), np.ones(40)
    elif name == "square":
        angles, radii = (np.arange(4) + 0.5) * np.pi / 2, np.ones(4)
    elif name == "triangle":
        angles, radii = np.arange(3) * 2 * np.pi / 3, np.ones(3)
    else:
        angles, radii = np.arange(10) * np.pi / 5, np.tile([1, 0.42], 5)
    corners = radii[:, None] * np.stack([np.cos(angles + turn), np.sin(angles + turn)], axis=1)
    corners *= [1, generator.uniform(0.85, 1.0)]
    corners -= (corners.min(axis=0) + corners.max(axis=0)) / 2
    return np.asarray(corners / np.ptp(corners, axis=0).max())


def _place(generator: np.random.Generator, corners: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the corners in pixels at a size and place drawn at random, a tenth of it outside at most."""
    side = min(size) * generator.uniform(*SIDES)
    margin = 0.4 * side
    centre = generator.uniform([margin, margin], [size[1] - margin, size[0] - margin])
    return np.asarray(corners * side + centre)


def _region(corners: NDArray[np.float64], size: tuple[int, int]) -> Region:
    """Return the rows and columns of the picture that a polygon touches."""
    first = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    last = np.minimum(np.ceil(corners.max(axis=0)).astype(int), [size[1], size[0]])
    return slice(int(first[1]), int(last[1])), slice(int(first[0]), int(last[0]))


def _origin(region: Region) -> tuple[int, int]:
    return region[1].start, region[0].start


def _coverage(corners: NDArray[np.float64], region: Region) -> Float:
    """Return the share of each pixel of `region` that the polygon covers."""
    height, width = (side.stop - side.start for side in region)
    fine = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    # OpenCV's coordinates are those of pixel centres, in 1/256 of a pixel here.
    points = np.rint(((corners - _origin(region)) * SUPERSAMPLING - 0.5) * 256).astype(np.int32)
    cv2.fillPoly(fine, [points], 255, shift=8)
    coverage: Float = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255)
    return coverage


def _paint(generator: np.random.Generator, pixels: Float, corners: NDArray[np.float64], coverage: Float) -> None:
    """Draw a shape into `pixels`, the part of the picture that it touches.

    It has a rim and a colour unlike what is behind it, is plain or striped, and a little shaded.
    """
    behind = np.tensordot(coverage, pixels, 2) / coverage.sum()
    candidates = generator.uniform(20, 240, (6, 3))
    colour = candidates[np.abs(candidates - behind).sum(axis=1).argmax()]
    centre = corners.mean(axis=0)
    whole = slice(0, coverage.shape[0]), slice(0, coverage.shape[1])
    inner = _coverage(centre + (corners - centre) * 0.82, whole)[..., None]
    y, x = np.ogrid[whole]
    angle = generator.uniform(0, 2 * np.pi)
    across = ((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)).astype(np.float32)
    shade = 1 + 0.25 * across / np.ptp(corners, axis=0).max()
    if generator.random() < 0.4:
        shade *= np.where(np.sin(across * generator.uniform(0.6, 1.2)) > 0, 1.0, 0.75)
    fill = colour.astype(np.float32) * shade[..., None].astype(np.float32)
    rim = (colour * generator.choice([0.45, 0.6])).astype(np.float32)
    painted = rim + (fill - rim) * inner
    pixels += (painted - pixels) * coverage[..., None]
