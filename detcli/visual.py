"""Annotated pictures: masks, boxes, names and scores drawn over an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import masks_to_boxes

from detcli.eval.results import mask_regions
from detcli.structures import Detections, Panoptic, Target

Picture: TypeAlias = NDArray[np.uint8]
Color: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]

FONT = cv2.FONT_HERSHEY_SIMPLEX
MASK_OPACITY = 0.4
KEYPOINT_SCORE = 0.05
"""Keypoints that are less likely than this at one pixel of their map are not drawn."""

CROWD_COLOR: Color = (160, 160, 160)
SHEET_BACKGROUND = 32
SHEET_CELL = 640


def draw(
    image: Picture,
    found: Detections | Target,
    names: Sequence[str],
    score_threshold: float = 0.3,
    scale: float = 1.0,
) -> Picture:
    """Return a copy of `image` with detections, or the ground truth, drawn on it; of a panoptic model, its segments.

    image [H,W,3] uint8 RGB; `found` is in its pixels; `names` are in label order. Detections with a score
    below `score_threshold` are left out; crowd regions are grey. `scale` enlarges the picture first: below
    about 300 pixels labels hide what they name.
    """
    if scale != 1:
        method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=method), np.uint8)
    canvas = np.array(image, order="C")
    height, width = size = (canvas.shape[0], canvas.shape[1])
    side = (height * width) ** 0.5
    thickness = max(1, round(side / 350))
    crowd = [] if isinstance(found, Detections) else (found.ignored * scale).round().int().tolist()
    segments = found.panoptic if isinstance(found, Detections) else None
    chosen = _chosen(found, score_threshold) if segments is None else _as_detections(segments)
    shown = _scaled(chosen, scale, size)
    labels = shown.labels.tolist()
    colors = [class_color(label) for label in labels]
    boxes = shown.boxes.round().int().tolist()
    texts = [names[label] if label < len(names) else f"class {label}" for label in labels]
    if isinstance(found, Detections):
        # Of segments, stuff has no score of its own.
        scores = [f" {score:.2f}" if segments is None or score < 1 else "" for score in shown.scores.tolist()]
        texts = [text + score for text, score in zip(texts, scores, strict=True)]

    for (left, top, mask), color in zip(mask_regions(shown, size), colors, strict=False):
        region = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
        _draw_mask(region, mask.astype(np.uint8), color, max(1, thickness // 2))
    for left, top, right, bottom in crowd:
        cv2.rectangle(canvas, (left, top), (right, bottom), CROWD_COLOR, thickness)
    # The best detection is drawn last, on top of the others.
    rectangles = list(zip(boxes, colors, strict=True)) if segments is None else []
    for (left, top, right, bottom), color in reversed(rectangles):
        cv2.rectangle(canvas, (left, top), (right, bottom), color, thickness)
    if shown.keypoints is not None:
        for points, color in zip(shown.keypoints.tolist(), colors, strict=True):
            for x, y, score in points:
                if score >= KEYPOINT_SCORE:
                    cv2.circle(canvas, (round(x), round(y)), 2 * thickness, color, cv2.FILLED, cv2.LINE_AA)
    boxes, texts, colors = boxes + crowd, texts + ["crowd"] * len(crowd), colors + [CROWD_COLOR] * len(crowd)
    _draw_labels(canvas, texts, boxes, colors, max(0.3, side / 1400))
    return canvas


def class_color(label: int) -> Color:
    """Return the RGB color of a class: always the same, and far from those of the classes around it."""
    hue = label * 0.618034 % 1  # the golden ratio spreads any number of hues evenly
    saturation = (0.85, 0.6, 1.0)[label // 8 % 3]
    value = (1.0, 0.8)[label // 24 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def contact_sheet(images: Sequence[Picture], columns: int = 4) -> Picture:
    """Return the pictures side by side in rows of `columns`, each fitted into a cell of at most 640 pixels.

    images [H,W,3] uint8 of any sizes; pictures are made smaller where they must, never larger.
    """
    factors = [min(1.0, SHEET_CELL / max(image.shape[:2])) for image in images]
    sizes = [
        (max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor)))
        for image, factor in zip(images, factors, strict=True)
    ]
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    cell_height = max((height for height, _ in sizes), default=1)
    cell_width = max((width for _, width in sizes), default=1)
    gap = max(2, cell_width // 80)
    shape = (rows * (cell_height + gap) + gap, columns * (cell_width + gap) + gap, 3)
    sheet = np.full(shape, SHEET_BACKGROUND, np.uint8)
    for index, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        top = gap + index // columns * (cell_height + gap) + (cell_height - height) // 2
        left = gap + index % columns * (cell_width + gap) + (cell_width - width) // 2
        fitted = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        sheet[top : top + height, left : left + width] = fitted
    return sheet


def _chosen(found: Detections | Target, score_threshold: float) -> Detections:
    """Return what is to be drawn, on the CPU, best first; objects of the ground truth have a score of 1."""
    if isinstance(found, Detections):
        found = found[found.scores >= score_threshold].to("cpu")
        return found[found.scores.argsort(descending=True, stable=True)]
    target = found.to("cpu")
    ones = torch.ones(len(target.boxes))
    return Detections(target.boxes, ones, target.labels, masks=target.masks, keypoints=target.keypoints)


def _as_detections(panoptic: Panoptic) -> Detections:
    """Return segments as detections with masks, whose boxes say where they are."""
    panoptic = panoptic.to("cpu")
    numbers = torch.arange(1, len(panoptic.labels) + 1)
    masks = panoptic.segments == numbers[:, None, None]
    boxes = masks_to_boxes(masks) if len(masks) else torch.zeros(0, 4)
    return Detections(boxes, panoptic.scores, panoptic.labels, masks=masks.byte())


def _scaled(found: Detections, scale: float, size: tuple[int, int]) -> Detections:
    """Return `found` in pixels of a picture that is `scale` times as large, of `size` (height, width)."""
    if scale == 1:
        return found
    masks, keypoints = found.masks, found.keypoints
    if masks is not None and len(masks):
        resized = [cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST) for mask in masks.byte().numpy()]
        masks = torch.from_numpy(np.stack(resized))
    if keypoints is not None:
        keypoints = keypoints * keypoints.new_tensor([scale, scale, 1])
    return replace(found, boxes=found.boxes * scale, masks=masks, keypoints=keypoints)


def _draw_mask(region: Picture, mask: Picture, color: Color, thickness: int) -> None:
    inside = mask.astype(bool)
    region[inside] = (region[inside] * (1 - MASK_OPACITY) + np.array(color) * MASK_OPACITY).astype(np.uint8)
    outline, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = np.ascontiguousarray(region)  # cv2 cannot draw into a part of a picture
    cv2.drawContours(drawn, outline, -1, color, thickness)
    region[:] = drawn


def _draw_labels(
    canvas: Picture, texts: list[str], boxes: list[list[int]], colors: list[Color], font_scale: float
) -> None:
    """Write each text on a filled ground at the corner of its box; the first texts choose their place."""
    weight = max(1, round(font_scale * 1.5))
    places: list[Rectangle] = []
    origins: list[tuple[int, int]] = []
    for text, box in zip(texts, boxes, strict=True):
        (width, height), baseline = cv2.getTextSize(text, FONT, font_scale, weight)
        margin = max(1, height // 4)
        size = (width + 2 * margin, height + baseline + 2 * margin)
        place = _place(box, size, canvas.shape[:2], places)
        places.append(place)
        origins.append((place[0] + margin, place[1] + margin + height))
    for text, place, origin, color in reversed(list(zip(texts, places, origins, colors, strict=True))):
        cv2.rectangle(canvas, place[:2], place[2:], color, cv2.FILLED)
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 127
        cv2.putText(
            canvas,
            text,
            origin,
            FONT,
            font_scale,
            (0, 0, 0) if bright else (255, 255, 255),
            weight,
            cv2.LINE_AA,
        )


def _place(box: Sequence[int], size: tuple[int, int], picture: Sequence[int], taken: list[Rectangle]) -> Rectangle:
    """Return where a label of `size` (width, height) goes in a picture of (height, width).

    Above the box, at its top inside, at its foot inside or below: the first that is in the picture and free.
    """
    width, height = size
    left = max(0, min(box[0], picture[1] - width))
    tops = [top for top in (box[1] - height, box[1], box[3] - height, box[3]) if 0 <= top <= picture[0] - height]
    rectangles = [(left, top, left + width, top + height) for top in tops or [0]]
    free = (place for place in rectangles if not any(_overlap(place, other) for other in taken))
    return next(free, rectangles[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
