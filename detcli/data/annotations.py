"""Annotations of pictures: one picture's, and those of a whole dataset in flat arrays."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, TypeAlias, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from detcli.data.images import TURNED, Pixels

Floats: TypeAlias = NDArray[np.float64]
PIXEL_CENTRE = 0.5
"""Where the centre of pixel 0 is. COCO's files have keypoints in pixels' numbers; everything else here has places."""

Segmentation: TypeAlias = list[Floats] | dict[str, Any]
"""Polygons, each [2P] of x and y in turn; run lengths ``{"size": [h, w], "counts": bytes}``; [] for none."""


@dataclass(slots=True)
class Annotations:
    """The M annotated objects of one picture of `size` (height, width), in its pixels.

    ids [M]; xywh [M,4] left, top, width and height; categories [M] positions in the dataset's list of
    categories; crowd [M]; areas [M]; keypoints [M,K,3] x, y and visibility (0 unlabelled, 1 hidden, 2
    visible), K = 0 without any; semantic [H,W] stuff and thing labels; facts are what else the dataset says of the
    picture that evaluators read, by the names of its JSON (LVIS' ``neg_category_ids``).
    """

    size: tuple[int, int]
    ids: NDArray[np.int64]
    xywh: Floats
    categories: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: Floats
    segmentations: list[Segmentation]
    keypoints: NDArray[np.float32]
    semantic: Pixels | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Category:
    """A category of a dataset: its own id, its name, its keypoints' names, and how frequent LVIS calls it (r, c, f)."""

    id: int
    name: str
    keypoints: tuple[str, ...] = ()
    frequency: str = ""


@dataclass(slots=True)
class Segments:
    """A picture cut into S segments of things and stuff.

    ids [H,W] int32 is the id of each pixel's segment, 0 where there is none; numbers [S] are the ids; categories
    [S] the dataset's own ids of their categories; crowd [S].
    """

    ids: NDArray[np.int32]
    numbers: NDArray[np.int64]
    categories: NDArray[np.int64]
    crowd: NDArray[np.bool_]


class Source(Protocol):
    """Annotated pictures, as a builder in the ``datasets`` slot returns them.

    `sizes` [N,2] are heights and widths; `filled` [N] says which pictures hold an object that can be trained
    on.
    """

    name: str
    categories: list[Category]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    filled: NDArray[np.bool_]
    has_masks: bool

    def file_name(self, index: int) -> str:
        """Return the name of picture `index`."""
        ...

    def read(self, index: int) -> tuple[Pixels, Annotations]:
        """Return picture `index`, uint8 [H,W,3] RGB, and its annotations in its pixels.

        Raises `DetcliError` when the picture can't be read or has another size than its annotations say.
        """
        ...

    def annotations(self, index: int) -> Annotations:
        """Return the annotations that `read` gives, if possible without decoding the picture."""
        ...


@runtime_checkable
class PanopticData(Protocol):
    """What a `Source` has beside, whose pictures are cut into segments; `stuff` are the categories of stuff.

    The `semantic` of its annotations then are positions in its categories, those of stuff after the others.
    """

    stuff: list[Category]

    def segments(self, index: int) -> Segments:
        """Return the segments of picture `index`; raises `DetcliError` when they can't be read."""
        ...


class AnnotationWriter:
    """Collects the annotations of a dataset, object by object, for an `AnnotationStore`."""

    def __init__(self) -> None:
        self.ids, self.images, self.categories = array("q"), array("q"), array("q")
        self.xywh, self.areas, self.crowd = array("d"), array("d"), array("b")
        # Object j has the polygons from polygon_first[j] up to polygon_first[j + 1]; the others are alike.
        self.polygons, self.points_first, self.polygon_first = array("d"), array("q", [0]), array("q", [0])
        self.runs, self.run_first = bytearray(), array("q", [0])
        self.keypoints, self.keypoint_first = array("f"), array("q", [0])

    def add(
        self,
        image: int,
        annotation_id: int,
        category: int,
        xywh: list[float],
        area: float,
        crowd: bool,
        segmentation: list[array[float]] | bytes = b"",
        keypoints: list[float] | tuple[()] = (),
    ) -> None:
        """Append an object of picture number `image`; `segmentation`: polygons or compressed run lengths."""
        self.images.append(image)
        self.ids.append(annotation_id)
        self.categories.append(category)
        self.xywh.extend(xywh)
        self.areas.append(area)
        self.crowd.append(crowd)
        if isinstance(segmentation, bytes):
            self.runs.extend(segmentation)
        else:
            for polygon in segmentation:
                self.polygons.extend(polygon)
                self.points_first.append(len(self.polygons))
        self.run_first.append(len(self.runs))
        self.polygon_first.append(len(self.points_first) - 1)
        self.keypoints.extend(keypoints)
        self.keypoint_first.append(len(self.keypoints) // 3)


class AnnotationStore:
    """The annotations of all pictures of a dataset in flat arrays; `sizes` [N,2] are heights and widths.

    `facts` are those of each picture (see `Annotations`) as JSON texts, empty where there are none.
    A worker process that reads Python objects writes their reference counts, and so copies their memory page
    by page; numpy arrays stay shared.
    """

    def __init__(self, written: AnnotationWriter, sizes: NDArray[np.int64], facts: Sequence[str] = ()) -> None:
        self.sizes = sizes
        self._facts, self._fact_first = flat_texts(facts or [""] * len(sizes))
        self.ids = np.array(written.ids, np.int64)
        self.images = np.array(written.images, np.int64)
        self.categories = np.array(written.categories, np.int64)
        self.xywh = np.array(written.xywh, np.float64).reshape(-1, 4)
        self.areas = np.array(written.areas, np.float64)
        self.crowd = np.array(written.crowd, np.bool_)
        self.polygons = np.array(written.polygons, np.float64)
        self.points_first = np.array(written.points_first, np.int64)
        self.polygon_first = np.array(written.polygon_first, np.int64)
        self.runs = np.frombuffer(bytes(written.runs), np.uint8)
        self.run_first = np.array(written.run_first, np.int64)
        self.keypoints = np.array(written.keypoints, np.float32).reshape(-1, 3)
        self.keypoint_first = np.array(written.keypoint_first, np.int64)
        self.rows = np.argsort(self.images, kind="stable")
        self.row_first = np.searchsorted(self.images[self.rows], np.arange(len(sizes) + 1))

    def __len__(self) -> int:
        return len(self.ids)

    def trainable(self, min_side: float = 0.0) -> NDArray[np.bool_]:
        """Return [M] bool: no crowd region, not outside its picture, sides of a pixel at least and above `min_side`."""
        left, top, width, height = self.xywh.T
        size = self.sizes[self.images]
        inside = (left < size[:, 1]) & (top < size[:, 0]) & (left + width > 0) & (top + height > 0)
        sides = np.minimum(width, height)
        return ~self.crowd & (sides >= 1) & (sides > min_side) & inside

    def segmented(self) -> NDArray[np.bool_]:
        """Return [M] bool: objects with polygons or run lengths."""
        return (np.diff(self.polygon_first) > 0) | (np.diff(self.run_first) > 0)

    def pointed(self) -> NDArray[np.bool_]:
        """Return [M] bool: objects with a labelled keypoint."""
        labelled = np.cumsum([0, *(self.keypoints[:, 2] > 0)])
        return np.diff(labelled[self.keypoint_first]) > 0

    def __getitem__(self, image: int) -> Annotations:
        """Return the annotations of picture number `image`, as they were added."""
        rows = self.rows[self.row_first[image] : self.row_first[image + 1]]
        height, width = (int(side) for side in self.sizes[image])
        counts = self.keypoint_first[rows + 1] - self.keypoint_first[rows]
        keypoints = np.zeros((len(rows), int(counts.max(initial=0)), 3), np.float32)
        for position in np.flatnonzero(counts):
            first = self.keypoint_first[rows[position]]
            keypoints[position, : counts[position]] = self.keypoints[first : first + counts[position]]
        return Annotations(
            (height, width),
            self.ids[rows],
            self.xywh[rows],
            self.categories[rows],
            self.crowd[rows],
            self.areas[rows],
            [self.segmentation(int(row)) for row in rows],
            keypoints,
            facts=json.loads(text_at(self._facts, self._fact_first, image) or "{}"),
        )

    def segmentation(self, row: int) -> Segmentation:
        """Return the segmentation of the object in that row."""
        if self.run_first[row] < self.run_first[row + 1]:
            counts = self.runs[self.run_first[row] : self.run_first[row + 1]].tobytes()
            return {"size": self.sizes[self.images[row]].tolist(), "counts": counts}
        first, last = self.polygon_first[row], self.polygon_first[row + 1]
        ends = self.points_first[first : last + 1]
        return [self.polygons[start:end] for start, end in pairwise(ends)]


def flat_texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return texts in one array of bytes, and where each begins and the last ends; `text_at` reads them."""
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])


def text_at(flat: NDArray[np.uint8], first: NDArray[np.int64], index: int) -> str:
    """Return text `index` of those that `flat_texts` put together."""
    return flat[first[index] : first[index + 1]].tobytes().decode()


def turn(annotations: Annotations, orientation: int) -> Annotations:
    """Return annotations of the stored pixels in those of the upright picture.

    `orientation` is one of the four EXIF orientations that swap width and height.
    """
    height, width = annotations.size
    # Upright x is the stored y, from the bottom up in 6 and 7; upright y is the stored x, from the right in 7
    # and 8.
    from_bottom, from_right = orientation in (6, 7), orientation in (7, 8)
    assert orientation in TURNED

    def points(xy: NDArray[Any]) -> NDArray[Any]:
        x, y = xy[..., 0], xy[..., 1]
        return np.stack([height - y if from_bottom else y, width - x if from_right else x], axis=-1)

    left, top, box_width, box_height = annotations.xywh.T
    x = height - top - box_height if from_bottom else top
    y = width - left - box_width if from_right else left
    segmentations: list[Segmentation] = []
    for segmentation in annotations.segmentations:
        if isinstance(segmentation, dict):
            mask = mask_utils.decode(segmentation).T
            mask = mask[:, ::-1] if from_bottom else mask
            mask = mask[::-1] if from_right else mask
            segmentations.append(mask_utils.encode(np.asfortranarray(mask)))
        else:
            segmentations.append([points(polygon.reshape(-1, 2)).reshape(-1) for polygon in segmentation])
    keypoints = annotations.keypoints.copy()
    labelled = keypoints[..., 2] > 0
    keypoints[labelled, :2] = points(keypoints[labelled, :2])
    return replace(
        annotations,
        size=(width, height),
        xywh=np.stack([x, y, box_height, box_width], axis=1),
        segmentations=segmentations,
        keypoints=keypoints,
    )


def run_lengths(segmentation: Segmentation, size: tuple[int, int]) -> dict[str, Any]:
    """Return a segmentation as compressed run lengths, polygons filled as COCO does."""
    if isinstance(segmentation, dict):
        return segmentation
    if not segmentation:
        empty: dict[str, Any] = mask_utils.encode(np.zeros(size, np.uint8, order="F"))
        return empty
    parts = mask_utils.frPyObjects([polygon.tolist() for polygon in segmentation], *size)
    merged: dict[str, Any] = mask_utils.merge(parts)
    return merged


def bitmaps(segmentations: list[Segmentation], size: tuple[int, int]) -> Pixels:
    """Return masks [M,H,W] of 0 and 1 at the picture's own `size` (height, width)."""
    if not segmentations:
        return np.zeros((0, *size), np.uint8)
    runs = [run_lengths(segmentation, size) for segmentation in segmentations]
    # Decoded column by column; transforms read rows.
    by_column = mask_utils.decode(runs).T
    masks = np.empty((len(runs), *size), np.uint8)
    for mask, columns in zip(masks, by_column, strict=True):
        cv2.transpose(columns, mask)
    return masks
