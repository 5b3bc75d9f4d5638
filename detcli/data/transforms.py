"""What is done to a picture and its annotations on the way to the network.

A transform is a callable from a dict to a dict. ``image`` is a `tv_tensors.Image` uint8 [3,H,W]; ``boxes``,
``ignored`` and ``proposals`` are `BoundingBoxes`; ``masks`` and ``semantic`` are `Mask`; ``keypoints`` are
`KeyPoints` [G,K,2] with a plain ``visibility`` [G,K]; ``labels`` is a plain tensor. So those of
torchvision.transforms.v2 fit as they are. Chance comes from torch's global generator, which is seeded for
each picture and epoch.

Pixels are resized by OpenCV, whose bilinear resize does not smooth when it shrinks: that is what most published
detectors saw, and it is several times as fast as torch's on uint8. Detectron2's saw Pillow's, which smooths.
Everything else goes through torchvision's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from detcli.data.images import Pixels
from detcli.nn.boxes import pairwise_iou
from detcli.structures import UNLABELLED

Record: TypeAlias = dict[str, Any]
TransformFn: TypeAlias = Callable[[Record], Record]
ResizeLibrary: TypeAlias = Literal["opencv", "pillow"]

CROP_TRIES = 10
IOU_CROP_TRIES = 50

OF_OBJECTS = ("boxes", "labels", "masks", "keypoints", "visibility")
"""The keys of a record whose values have a row for each object."""


def to_image(pixels: Pixels) -> tv_tensors.Image:
    """Return pixels [H,W,3] as an image tensor [3,H,W] in the same memory."""
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1))


def to_pixels(image: torch.Tensor) -> Pixels:
    """Return an image tensor [3,H,W] as an array [H,W,3], in the same memory where its layout allows."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def resized(size: tuple[int, int], scale: tuple[int, int], keep_ratio: bool = True) -> tuple[int, int]:
    """Return the largest (height, width) of the aspect ratio of `size` that fits `scale`, rounded half up.

    `scale` holds the longest and the shortest side, in either order. Without `keep_ratio`, it is the (width, height).
    """
    if not keep_ratio:
        return scale[1], scale[0]
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return max(int(size[0] * factor + 0.5), 1), max(int(size[1] * factor + 0.5), 1)


def resize_pixels(pixels: Pixels, size: tuple[int, int], library: ResizeLibrary = "opencv") -> Pixels:
    """Return pixels [H,W,3] resized bilinearly to `size` (height, width).

    What becomes smaller is smoothed by ``pillow`` and not by ``opencv``.
    """
    if pixels.shape[:2] == size:
        return pixels
    if library == "pillow":
        return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return np.asarray(cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


class Resize:
    """Resizes to a scale (longest side, shortest side) with the aspect ratio kept, or to (width, height) without.

    `value` draws one of `scales`; `range` draws each side between the least and the greatest of them. `library` is
    that of `resize_pixels`.
    """

    def __init__(
        self,
        scales: Sequence[tuple[int, int]],
        mode: Literal["value", "range"] = "value",
        library: ResizeLibrary = "opencv",
        keep_ratio: bool = True,
    ) -> None:
        self.scales = [(max(scale), min(scale)) if keep_ratio else scale for scale in scales]
        self.mode = mode
        self.library: ResizeLibrary = library
        self.keep_ratio = keep_ratio

    def __call__(self, record: Record) -> Record:
        """Resize everything in `record` to a scale that is drawn."""
        height, width = record["image"].shape[-2:]
        size = resized((height, width), self._draw(), self.keep_ratio)
        if size == (height, width):
            return record
        image = to_image(resize_pixels(to_pixels(record["image"]), size, self.library))
        rest = {key: _resize(value, size) for key, value in record.items() if key != "image"}
        return {**rest, "image": image}

    def _draw(self) -> tuple[int, int]:
        if len(self.scales) == 1:
            return self.scales[0]
        if self.mode == "value":
            return self.scales[_randint(0, len(self.scales) - 1)]
        first, second = zip(*self.scales, strict=True)
        return _randint(min(first), max(first)), _randint(min(second), max(second))


def _resize(value: Any, size: tuple[int, int]) -> Any:
    if isinstance(value, tv_tensors.Mask):
        return tv_tensors.wrap(_resize_labels(value.as_subclass(torch.Tensor), size), like=value)
    return functional.resize(value, list(size)) if isinstance(value, tv_tensors.TVTensor) else value


def _resize_labels(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return uint8 labels [...,H,W] resized to `size` by nearest neighbours; most of them may be 0.

    By whole numbers, since nearest-neighbour kernels that multiply by a rounded factor pick other pixels. Only
    the rectangle of each plane that holds labels is looked at.
    """
    planes = labels.reshape(-1, *labels.shape[-2:]).numpy()
    rows = np.arange(size[0]) * planes.shape[1] // size[0]
    columns = np.arange(size[1]) * planes.shape[2] // size[1]
    resized_planes = np.zeros((len(planes), *size), np.uint8)
    for plane, result in zip(planes, resized_planes, strict=True):
        left, top, width, height = cv2.boundingRect(plane)
        first, last = np.searchsorted(rows, [top, top + height])
        start, end = np.searchsorted(columns, [left, left + width])
        narrow = plane[top : top + height].take(columns[start:end], axis=1)
        result[first:last, start:end] = narrow.take(rows[first:last] - top, axis=0)
    return torch.from_numpy(resized_planes).reshape(*labels.shape[:-2], *size)


class RandomFlip:
    """Mirrors left and right with a probability; keypoints swap as `keypoint_order` [K] says."""

    def __init__(self, probability: float, keypoint_order: Sequence[int] = ()) -> None:
        self.probability = probability
        self.keypoint_order = list(keypoint_order)

    def __call__(self, record: Record) -> Record:
        """Mirror everything in `record`, or nothing."""
        if _random() >= self.probability:
            return record
        flipped = {
            key: functional.horizontal_flip(value) if isinstance(value, tv_tensors.TVTensor) else value
            for key, value in record.items()
            if key != "image"
        }
        # torch takes a hundred times as long for pixels whose channels lie together.
        flipped["image"] = to_image(np.asarray(cv2.flip(to_pixels(record["image"]), 1), np.uint8))
        if "keypoints" in flipped:
            # torchvision mirrors points as numbers of pixels (width - 1 - x); these are places, as those of
            # boxes.
            points = record["keypoints"].as_subclass(torch.Tensor)
            order = self.keypoint_order or list(range(points.shape[1]))
            mirrored = torch.stack([record["image"].shape[-1] - points[..., 0], points[..., 1]], dim=-1)
            flipped["keypoints"] = tv_tensors.wrap(mirrored[:, order], like=record["keypoints"])
            flipped["visibility"] = flipped["visibility"][:, order]
        return flipped


def keypoint_order(names: Sequence[str]) -> list[int]:
    """Return the position whose point each keypoint takes in a mirror, from names such as ``left_eye``."""
    places = {name: place for place, name in enumerate(names)}

    def mirrored(name: str) -> str:
        for one, other in (("left", "right"), ("right", "left"), ("Left", "Right"), ("Right", "Left")):
            if one in name:
                return name.replace(one, other)
        return name

    return [places.get(mirrored(name), place) for place, name in enumerate(names)]


class RandomCrop:
    """Cuts a window of `size` (height, width) at random that holds a part of an object.

    A picture that is smaller keeps its size on that side. Where `CROP_TRIES` windows hold no object, one
    around an object is taken.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, record: Record) -> Record:
        """Crop everything in `record` to one window."""
        height, width = record["image"].shape[-2:]
        window = min(self.size[0], height), min(self.size[1], width)
        spare = height - window[0], width - window[1]
        top, left = self._place(record["boxes"], window, spare)
        return _cropped(record, top, left, *window)

    def _place(self, boxes: torch.Tensor, window: tuple[int, int], spare: tuple[int, int]) -> tuple[int, int]:
        corners = boxes.as_subclass(torch.Tensor)
        for _ in range(CROP_TRIES):
            top, left = _randint(0, spare[0]), _randint(0, spare[1])
            overlaps = (corners[:, 0] < left + window[1]) & (corners[:, 1] < top + window[0])
            if not len(corners) or bool((overlaps & (corners[:, 2] > left) & (corners[:, 3] > top)).any()):
                return top, left
        x1, y1, x2, y2 = corners[_randint(0, len(corners) - 1)].tolist()
        top = int(min(max((y1 + y2 - window[0]) / 2, 0), spare[0]))
        left = int(min(max((x1 + x2 - window[1]) / 2, 0), spare[1]))
        return top, left


def random_size_crop(
    *,
    library: Literal["opencv", "pillow"],
    probability: float = 0.5,
    longest: int = 1333,
    shortest: tuple[int, ...] = (400, 500, 600),
    least: int = 384,
    most: int = 600,
) -> TransformFn:
    """Return a transform that cuts a window of any size out of a picture, as DETR does before its pictures are resized.

    It happens with a `probability`. The picture is first resized to `longest` and one of the `shortest` sides; those of
    the window are then drawn from `least` to `most`, or what there is of the picture. DETR (arXiv:2005.12872), section
    4, technical details.
    """
    resize = Resize([(longest, side) for side in shortest], library=library)

    def crop(record: Record) -> Record:
        if _random() >= probability:
            return record
        record = resize(record)
        sides = record["image"].shape[-2:]
        height, width = (_randint(min(side, least), min(side, most)) for side in sides)
        top, left = _randint(0, sides[0] - height), _randint(0, sides[1] - width)
        return _cropped(record, top, left, height, width)

    return crop


def expand(
    *, fill: tuple[float, float, float], ratio: tuple[float, float] = (1.0, 4.0), probability: float = 0.5
) -> TransformFn:
    """Return a transform that puts a picture anywhere on a canvas of colour `fill` (RGB), so that objects look small.

    It happens with a `probability`; the canvas is larger by a factor drawn from `ratio`. SSD (arXiv:1512.02325),
    section 3.6.
    """

    def place(record: Record) -> Record:
        if _random() >= probability:
            return record
        height, width = record["image"].shape[-2:]
        factor = _uniform(*ratio)
        left, top = int(_uniform(0, width * factor - width)), int(_uniform(0, height * factor - height))
        padding = [left, top, int(width * factor) - width - left, int(height * factor) - height - top]
        colors: dict[str, Any] = {"image": list(fill), "semantic": UNLABELLED}
        return {
            key: functional.pad(value, padding, fill=colors.get(key, 0))
            if isinstance(value, tv_tensors.TVTensor)
            else value
            for key, value in record.items()
        }

    return place


def min_iou_crop(*, ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9), least: float = 0.3) -> TransformFn:
    """Return a transform that cuts out a window that every object overlaps by an IoU drawn from `ious`, or by any.

    The picture may stay whole, too, with the same chance as each of these. Sides of the window are drawn from `least`
    times those of the picture on, one at most twice the other. Objects whose middle is not in the window are dropped;
    of `IOU_CROP_TRIES` windows one must keep an object, or another IoU is drawn. SSD (arXiv:1512.02325), section 2.2.
    """
    choices = (None, *ious, 0.0)

    def crop(record: Record) -> Record:
        height, width = record["image"].shape[-2:]
        everything = torch.cat([record[key].as_subclass(torch.Tensor) for key in ("boxes", "ignored")])
        while (min_iou := choices[_randint(0, len(choices) - 1)]) is not None:
            for _ in range(IOU_CROP_TRIES):
                window = _window(height, width, least)
                if window is None:
                    continue
                overlaps = pairwise_iou(everything, window[None])
                inside = _middle_in(record["boxes"], window)
                if bool((overlaps >= min_iou).all()) and (not len(everything) or bool(inside.any())):
                    left, top, right, bottom = (int(side) for side in window)
                    kept = _only(record, inside)
                    return _cropped(kept, top, left, bottom - top, right - left)
        return record

    return crop


def _window(height: int, width: int, least: float) -> torch.Tensor | None:
    """Return a window (left, top, right, bottom) of whole pixels, or None for one that is too long or empty."""
    new_width, new_height = _uniform(least * width, width), _uniform(least * height, height)
    left, top = _uniform(0, width - new_width), _uniform(0, height - new_height)
    window = torch.tensor([int(left), int(top), int(left + new_width), int(top + new_height)], dtype=torch.float32)
    fits = 0.5 <= new_height / new_width <= 2 and bool((window[2:] > window[:2]).all())
    return window if fits else None


def _middle_in(boxes: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Return which boxes [G,4] have their middle in a window [4]."""
    corners = boxes.as_subclass(torch.Tensor)
    middles = (corners[:, :2] + corners[:, 2:]) / 2
    return ((middles > window[:2]) & (middles < window[2:])).all(1)


def _only(record: Record, kept: torch.Tensor) -> Record:
    """Return `record` with those objects that are `kept` [G], and crowd regions as they are."""
    objects = {
        key: tv_tensors.wrap(value.as_subclass(torch.Tensor)[kept], like=value)
        if isinstance(value, tv_tensors.TVTensor)
        else value[kept]
        for key, value in record.items()
        if key in OF_OBJECTS
    }
    return {**record, **objects}


def _cropped(record: Record, top: int, left: int, height: int, width: int) -> Record:
    return {
        key: functional.crop(value, top, left, height, width) if isinstance(value, tv_tensors.TVTensor) else value
        for key, value in record.items()
    }


class PhotometricDistortion:
    """Changes brightness, contrast, saturation and hue and swaps channels, each at even odds, as SSD does.

    Brightness moves by up to 32 of 255, contrast and saturation by 0.5 to 1.5, hue by up to 18 degrees;
    contrast comes first or last. In float32, clipped to 0..255 at the end. SSD (arXiv:1512.02325), section
    2.2.
    """

    def __call__(self, record: Record) -> Record:
        """Change the pixels of `record`."""
        pixels: NDArray[Any] = to_pixels(record["image"]).astype(np.float32)
        if _coin():
            pixels += _uniform(-32, 32)
        contrast = _uniform(0.5, 1.5) if _coin() else 1.0
        contrast_first = _coin()
        if contrast_first:
            pixels *= contrast
        saturation = _uniform(0.5, 1.5) if _coin() else 1.0
        hue = _uniform(-18, 18) if _coin() else 0.0
        if saturation != 1.0 or hue:
            hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
            hsv[..., 1] = hsv[..., 1] * saturation
            hsv[..., 0] = (hsv[..., 0] + hue) % 360
            pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if not contrast_first:
            pixels *= contrast
        if _coin():
            pixels = pixels[..., torch.randperm(3).numpy()]
        return {**record, "image": to_image((pixels + 0.5).clip(0, 255).astype(np.uint8))}


def photometric() -> PhotometricDistortion:
    """Return a `PhotometricDistortion`."""
    return PhotometricDistortion()


def _random() -> float:
    return float(torch.rand(()))


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * _random()


def _randint(low: int, high: int) -> int:
    """Draw a whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, ()))


def _coin() -> bool:
    return _randint(0, 1) == 1
