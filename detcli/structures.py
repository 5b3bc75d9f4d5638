"""What passes between data, models and evaluation: batches, targets, detections and class maps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

UNLABELLED = 255
"""The semantic label of pixels that nobody has labelled, and of padding."""


@dataclass(slots=True)
class ClassMap:
    """Class names and the dataset's own category ids, both in label order (label 0 first).

    `stuff` and `stuff_ids` are those of its stuff, whose labels come after; `keypoints` are the names of an object's
    keypoints.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    stuff: tuple[str, ...] = ()
    stuff_ids: tuple[int, ...] = ()
    keypoints: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def things_and_stuff(self) -> tuple[str, ...]:
        """All names in label order."""
        return self.names + self.stuff


@dataclass(slots=True)
class ImageInfo:
    """Where a picture comes from and what was done to its size; sizes are (height, width) in pixels.

    `seed` is what its random transforms were drawn from.
    """

    image_id: int
    name: str
    original_size: tuple[int, int]
    size: tuple[int, int]
    seed: int = 0


@dataclass(slots=True)
class Target:
    """The ground truth of one image, in the pixels of the network's input.

    boxes [G,4] float32 xyxy; labels [G] int64 in 0..classes-1; masks [G,H,W] uint8 of 0 and 1, at the size of the
    padded batch once batched; ignored [I,4] boxes of crowd regions; proposals [P,4] boxes for models that are given
    theirs, best first; semantic [H,W] uint8 labels of things and, after them, of stuff, `UNLABELLED` elsewhere;
    keypoints [G,K,3] (x, y, visibility: 0 unlabelled or outside, 1 hidden, 2 visible).
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    ignored: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    proposals: Tensor | None = None
    semantic: Tensor | None = None
    keypoints: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """Return a copy with every tensor on `device`."""
        return Target(*(_move(value, device, non_blocking) for value in _fields(self)))


@dataclass(slots=True)
class Batch:
    """Images and, in training, their targets.

    images [N,3,H,W], uint8 until `normalized`, padded on the right and at the bottom; sizes [N,2] int64 (height,
    width) of each image before padding; seeds [N] int64, what is drawn at random for each image comes from its own.
    """

    images: Tensor
    sizes: Tensor
    targets: list[Target] | None = None
    infos: list[ImageInfo] = field(default_factory=list)
    seeds: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def each_seed(self) -> list[Tensor | None]:
        """Return the seed of each image, a scalar, or None where images have none."""
        return [None] * len(self) if self.seeds is None else list(self.seeds)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy with every tensor on `device`."""
        targets = None if self.targets is None else [target.to(device, non_blocking) for target in self.targets]
        images, sizes, seeds = (_move(value, device, non_blocking) for value in (self.images, self.sizes, self.seeds))
        return Batch(images, sizes, targets, self.infos, seeds)

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory (the data loader calls this)."""
        targets = self.targets and [Target(*(_pin(value) for value in _fields(target))) for target in self.targets]
        return Batch(self.images.pin_memory(), self.sizes.pin_memory(), targets, self.infos, _pin(self.seeds))

    def normalized(self, mean: Tensor, std: Tensor, bgr: bool = False) -> Batch:
        """Return a copy with float32 images (pixel - mean) / std and zeros in the padding.

        mean and std [3] are in the channel order that the network sees; `bgr` flips the order of RGB pixels first.
        """
        pixels = self.images.flip(1) if bgr else self.images
        images = (pixels.float() - mean[:, None, None]) / std[:, None, None]
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < self.sizes[:, :1]
        columns = torch.arange(width, device=images.device) < self.sizes[:, 1:]
        images = images * (rows[:, None, :, None] & columns[:, None, None, :])
        return replace(self, images=images)


@dataclass(slots=True)
class Panoptic:
    """A picture cut into segments of things and stuff, none of them over another.

    segments [H,W] int32 is the number of each pixel's segment, from 1, or 0 where there is none; labels [S] int64 of
    the segments, in the order of their numbers, those of stuff after those of things; scores [S] in 0..1, 1 for stuff.
    """

    segments: Tensor
    labels: Tensor
    scores: Tensor

    def to(self, device: torch.device | str) -> Panoptic:
        """Return a copy with every tensor on `device`."""
        return Panoptic(self.segments.to(device), self.labels.to(device), self.scores.to(device))


@dataclass(slots=True)
class Detections:
    """What a model found in one image, best score first.

    boxes [D,4] float32 xyxy in pixels; scores [D] in 0..1; labels [D] int64. Masks come in one of three forms: crops
    [D,S,S] of probabilities inside each box, maps [D,h,w] of probabilities on the whole image at any resolution, or
    masks [D,H,W] of 0 and 1 for the whole image. keypoints [D,K,3] (x, y, score).

    Of the whole image, an index on detections leaves these as they are: semantic [C,h,w] logits of the pixels' classes,
    as the network has them; panoptic, what they and the detections were merged to.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask_crops: Tensor | None = None
    mask_maps: Tensor | None = None
    masks: Tensor | None = None
    keypoints: Tensor | None = None
    semantic: Tensor | None = None
    panoptic: Panoptic | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Detections:
        *each, semantic, panoptic = _fields(self)
        chosen: list[Any] = [None if value is None else value[index] for value in each]
        return Detections(*[*chosen, semantic, panoptic])

    def to(self, device: torch.device | str) -> Detections:
        """Return a copy with every tensor on `device`."""
        return Detections(*(_move(value, device) for value in _fields(self)))


def _fields(item: Target | Detections) -> list[Any]:
    return [getattr(item, name) for name in item.__dataclass_fields__]


def _move(value: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    if isinstance(value, Panoptic):
        return value.to(device)
    return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value


def _pin(value: Any) -> Any:
    return value.pin_memory() if isinstance(value, Tensor) else value
