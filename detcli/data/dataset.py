"""Opens a dataset and gives samples: a picture as the network takes it, with its target."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from detcli import registry
from detcli.config import DataConfig, InputConfig
from detcli.data.annotations import PIXEL_CENTRE, Annotations, Category, PanopticData, Source, bitmaps
from detcli.data.coco import CocoSource
from detcli.data.images import Pixels
from detcli.data.panoptic import encode_ids, segments_info
from detcli.data.proposals import Proposals
from detcli.data.sampling import repeat_factors
from detcli.data.semantic import SemanticMaps
from detcli.data.sources import (
    match_classes,
    open_source,
    present,
    proposals_for,
    require_keypoints,
    require_masks,
    require_segments,
)
from detcli.data.transforms import (
    RandomCrop,
    RandomFlip,
    Record,
    Resize,
    TransformFn,
    keypoint_order,
    resize_pixels,
    resized,
    to_image,
)
from detcli.errors import DetcliError
from detcli.structures import ClassMap, ImageInfo, Target


@dataclass(slots=True)
class Sample:
    """One picture, uint8 [3,H,W] RGB at the network's size, and its target; no target in prediction."""

    image: torch.Tensor
    target: Target | None
    info: ImageInfo


class Preprocess:
    """Brings one picture to the size that the network takes in evaluation and prediction."""

    def __init__(self, config: DataConfig) -> None:
        self.scale = config.test_resize
        self.library = config.resize_with
        self.keep_ratio = config.keep_ratio

    def __call__(self, image: Pixels, *, image_id: int = 0, name: str = "") -> Sample:
        """Return the sample of `image`, uint8 [H,W,3] RGB."""
        size = image.shape[0], image.shape[1]
        pixels = resize_pixels(image, resized(size, self.scale, self.keep_ratio), self.library)
        info = ImageInfo(image_id, name, size, (pixels.shape[0], pixels.shape[1]))
        return Sample(to_image(pixels).as_subclass(torch.Tensor), None, info)


class DetectionDataset(Dataset[Sample]):
    """Pictures and targets of one split; `classes` are in label order, with the data's own category ids."""

    def __init__(
        self,
        source: Source,
        classes: ClassMap,
        labels: NDArray[np.int64],
        transforms: Sequence[TransformFn],
        *,
        indices: NDArray[np.int64],
        masks: bool = False,
        semantic: bool = False,
        maps: SemanticMaps | None = None,
        proposals: Proposals | None = None,
        min_side: float = 0.0,
        bad: Literal["raise", "replace", "blank"] = "raise",
    ) -> None:
        """Serve the pictures `indices` of `source`.

        `labels` [categories] is the label of each of the source's categories, -1 for those that are left out.
        Objects with a side of `min_side` pixels or less are left out of targets, too. With `maps`, pixels' labels are
        theirs.
        `bad`: a picture that can't be read raises, is replaced by the next one, or is blank (black).
        """
        self.source = source
        self.classes = classes
        self.indices = indices
        self._labels = labels
        self._transforms = transforms
        self._masks = masks
        self._semantic = semantic
        self._maps = maps
        self._proposals = proposals
        self._min_side = min_side
        self._bad = bad
        # In shared memory, so that all worker processes together name a bad picture once.
        self._found_bad = torch.zeros(len(indices), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(range(len(self))[index], 0)

    @property
    def has_masks(self) -> bool:
        """Whether objects have masks."""
        return self.source.has_masks

    @property
    def has_keypoints(self) -> bool:
        """Whether objects have keypoints."""
        return any(category.keypoints for category in self.source.categories)

    @property
    def has_segments(self) -> bool:
        """Whether pictures are cut into segments of things and stuff."""
        return isinstance(self.source, PanopticData)

    @property
    def image_ids(self) -> list[int]:
        """The dataset's own ids of its pictures."""
        ids: list[int] = self.source.image_ids[self.indices].tolist()
        return ids

    @property
    def aspect_ratios(self) -> NDArray[np.float64]:
        """Width divided by height of each picture."""
        sizes = self.source.sizes[self.indices]
        ratios: NDArray[np.float64] = sizes[:, 1] / sizes[:, 0]
        return ratios

    def repeats(self, config: DataConfig) -> NDArray[np.float64] | None:
        """Return how often each picture is shown in an epoch, or None when each is shown once."""
        if not config.repeat_threshold:
            return None
        factors = repeat_factors(*self._objects(), len(self), config.repeat_threshold)
        return np.ceil(factors) if config.repeat_rounding == "up" else factors

    def picture(self, image_id: int) -> Pixels:
        """Return the picture with that id as it is in the dataset: uint8 [H,W,3] RGB."""
        return self._read(self._place(image_id))[0]

    def unchanged(self) -> DetectionDataset:
        """Return the dataset with its pictures in their own size and without other transforms."""
        same = copy.copy(self)
        same._transforms = ()
        return same

    def again(self, info: ImageInfo) -> Sample:
        """Return the sample that `info` describes as it was, random transforms included."""
        return self.sample(self._place(info.image_id), info.seed)

    def annotations(self, index: int) -> Annotations:
        """Return the annotations of picture `index`, in its own pixels."""
        return self.source.annotations(int(self.indices[index]))

    def sample(self, index: int, seed: int) -> Sample:
        """Return picture `index` with the random part of its transforms drawn from `seed`.

        Raises `DetcliError` when it can't be read.
        """
        with _seeded(seed):
            index, image, annotations = self._readable(index)
            record = self._record(index, image, annotations)
            for transform in self._transforms:
                record = transform(record)
        position = int(self.indices[index])
        size = record["image"].shape[-2], record["image"].shape[-1]
        image_id, name = int(self.source.image_ids[position]), self.source.file_name(position)
        info = ImageInfo(image_id, name, annotations.size, size, seed)
        return Sample(record["image"].as_subclass(torch.Tensor), _target(record), info)

    def ground_truth(self) -> dict[str, Any]:
        """Return the annotations as a COCO dict, in pixels of the upright pictures, crowd regions included.

        Annotations are numbered from 1, since pycocotools takes an id of 0 for no match. Pictures that turned
        out to be unreadable have none.
        """
        bad = {image_id for image_id, is_bad in zip(self.image_ids, self._found_bad.tolist(), strict=True) if is_bad}
        if not bad:
            return self._ground_truth
        kept = [item for item in self._ground_truth["annotations"] if item["image_id"] not in bad]
        return {**self._ground_truth, "annotations": kept}

    def segments(self) -> dict[str, Any]:
        """Return the segments of all pictures in COCO's panoptic format, each with the bytes of its PNG file, "png"."""
        assert isinstance(self.source, PanopticData)
        source: PanopticData = self.source
        images, annotations = [], []
        for index, image_id in zip(self.indices.tolist(), self.image_ids, strict=True):
            found = source.segments(index)
            height, width = found.ids.shape
            name = self.source.file_name(index)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            annotations.append(
                {
                    "image_id": image_id,
                    "file_name": f"{Path(name).stem}.png",
                    "segments_info": segments_info(found),
                    "png": encode_ids(found.ids),
                }
            )
        categories = [
            {"id": category.id, "name": category.name, "isthing": int(thing)}
            for thing, kind in ((True, self.source.categories), (False, source.stuff))
            for category in kind
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    @cached_property
    def _ground_truth(self) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for index, image_id in enumerate(self.image_ids):
            annotations = self.annotations(index)
            height, width = annotations.size
            name = self.source.file_name(int(self.indices[index]))
            images.append({"id": image_id, "file_name": name, "height": height, "width": width, **annotations.facts})
            objects += _coco_objects(annotations, image_id, self.source.categories, len(objects))
        categories: list[dict[str, Any]] = [
            {"id": category.id, "name": category.name}
            | ({"keypoints": list(category.keypoints)} if category.keypoints else {})
            | ({"frequency": category.frequency} if category.frequency else {})
            for category in self.source.categories
        ]
        return {"images": images, "annotations": objects, "categories": categories}

    def _objects(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the position of the picture, and the label, of each annotated object whose class is known."""
        if isinstance(self.source, CocoSource):
            place = np.full(len(self.source.image_ids), -1)
            place[self.indices] = np.arange(len(self))
            pictures, categories = place[self.source.store.images], self.source.store.categories
        else:
            found = [self.annotations(index).categories for index in range(len(self))]
            pictures = np.repeat(np.arange(len(self)), [len(categories) for categories in found])
            categories = np.concatenate(found)
        labels = self._labels[categories]
        kept = (pictures >= 0) & (labels >= 0)
        return pictures[kept], labels[kept]

    def _place(self, image_id: int) -> int:
        return int(np.flatnonzero(self.source.image_ids[self.indices] == image_id)[0])

    def _read(self, index: int) -> tuple[Pixels, Annotations]:
        """Read picture `index`; with `bad` set to blank, it is black where it can't be read."""
        try:
            return self.source.read(int(self.indices[index]))
        except DetcliError as error:
            if self._bad != "raise" and not self._found_bad[index]:
                self._found_bad[index] = 1
                warnings.warn(f"left out: {error}", stacklevel=2)
            if self._bad != "blank":
                raise
        annotations = self.annotations(index)
        return np.zeros((*annotations.size, 3), np.uint8), annotations

    def _readable(self, index: int) -> tuple[int, Pixels, Annotations]:
        """Read picture `index` or, with `bad` set to replace, the next one that can be read."""
        for step in range(len(self)):
            place = (index + step) % len(self)
            try:
                return place, *self._read(place)
            except DetcliError:
                if self._bad != "replace":
                    raise
        raise DetcliError(f"none of the pictures of {self.source.name} can be read.")

    def _record(self, index: int, image: Pixels, annotations: Annotations) -> Record:
        """Return the picture and what can be trained on, as tensors that transforms take."""
        height, width = annotations.size
        left, top, box_width, box_height = annotations.xywh.T
        xyxy = np.stack([left, top, left + box_width, top + box_height], axis=1)
        inside = (left < width) & (top < height) & (xyxy[:, 2] > 0) & (xyxy[:, 3] > 0)
        labels = self._labels[annotations.categories]
        known = inside & (labels >= 0)
        sides = np.minimum(box_width, box_height)
        kept = known & ~annotations.crowd & (sides >= 1) & (sides > self._min_side)
        record: Record = {
            "image": to_image(image),
            "boxes": _boxes(xyxy[kept], annotations.size),
            "labels": torch.from_numpy(labels[kept]),
            "ignored": _boxes(xyxy[inside & annotations.crowd], annotations.size),
        }
        if self._masks:
            segmentations = [annotations.segmentations[row] for row in np.flatnonzero(kept)]
            record["masks"] = tv_tensors.Mask(torch.from_numpy(bitmaps(segmentations, annotations.size)))
        semantic = annotations.semantic
        if self._maps is not None:
            semantic = self._maps.read(self.source.file_name(int(self.indices[index])), annotations.size)
        if self._semantic and semantic is not None:
            record["semantic"] = tv_tensors.Mask(torch.from_numpy(semantic))
        most = max((len(category.keypoints) for category in self.source.categories), default=0)
        if most:
            points = torch.zeros(int(kept.sum()), most, 3)
            points[:, : annotations.keypoints.shape[1]] = torch.from_numpy(annotations.keypoints[kept])
            record["keypoints"] = tv_tensors.KeyPoints(points[..., :2], canvas_size=annotations.size)
            record["visibility"] = points[..., 2]
        if self._proposals is not None:
            image_id = int(self.source.image_ids[self.indices[index]])
            record["proposals"] = _boxes(self._proposals[image_id][0], annotations.size)
        return record


def open_dataset(
    config: DataConfig,
    split: Literal["train", "val"],
    input: InputConfig,
    classes: ClassMap | None = None,
    *,
    masks: bool = False,
    keypoints: bool = False,
    semantic: bool = False,
    augment: bool = True,
) -> DetectionDataset:
    """Open the `split` of the data that `config` names.

    With `classes` (a checkpoint's, or those of the training data) labels are theirs: the data's categories
    are matched by name, or by id where no name matches. `masks`, `keypoints` and `semantic` say
    what targets must have; to be evaluated on, data may lack the latter two. Pictures without objects (with a labelled
    keypoint, where these are asked for) are left out of training unless `keep_empty`; without `augment`, the train
    split is served as the val split is. The pixel mean of `input` is what transforms may fill with (argument `fill`,
    RGB).

    Raises `UsageError` when `config` names no dataset, `DetcliError` when its files are not what they should
    be.
    """
    training = split == "train" and augment
    panoptic = semantic and not config.semantic
    source = open_source(config, split, segmentations=masks or split == "val", panoptic=panoptic, keypoints=keypoints)
    if not source.filled.any():
        raise DetcliError(
            f"{source.name} has no annotations to {'train' if training else 'evaluate'} on: "
            f"no box of an object in any of its {len(source.image_ids)} pictures."
        )
    if masks:
        require_masks(source)
    if training and keypoints:
        require_keypoints(source)
    if training and panoptic:
        require_segments(source)
    data_classes, labels = match_classes(source, classes)
    if not panoptic:
        data_classes = replace(data_classes, stuff=(), stuff_ids=())
    if not keypoints:
        data_classes = replace(data_classes, keypoints=())
    indices = np.arange(len(source.image_ids))
    if training and not config.keep_empty:
        indices = indices[source.filled]
        if keypoints and isinstance(source, CocoSource):
            indices = np.intersect1d(indices, source.store.images[source.store.pointed()])
            if not len(indices):
                raise DetcliError(f"{source.name} has no picture of an object with a labelled keypoint.")
        if config.min_side and isinstance(source, CocoSource):
            indices = np.intersect1d(indices, source.store.images[source.store.trainable(config.min_side)])
    if isinstance(source, CocoSource):
        indices = present(source, indices, config.skip_bad_images)
    proposals_file = config.proposals if split == "train" else config.val_proposals
    proposals = proposals_for(proposals_file, source, indices) if proposals_file else None
    transforms: list[TransformFn] = [Resize([config.test_resize], "value", config.resize_with, config.keep_ratio)]
    if training:
        transforms = _training_transforms(config, input, source.categories)
    return DetectionDataset(
        source,
        data_classes,
        labels,
        transforms,
        indices=indices,
        masks=masks,
        semantic=semantic,
        maps=SemanticMaps(config.semantic, source, indices) if training and semantic and config.semantic else None,
        proposals=proposals,
        min_side=config.min_side if training else 0.0,
        bad=("replace" if training else "blank") if config.skip_bad_images else "raise",
    )


def _training_transforms(config: DataConfig, input: InputConfig, categories: list[Category]) -> list[TransformFn]:
    fill = input.mean if input.channels == "rgb" else input.mean[::-1]
    names = next((category.keypoints for category in categories if category.keypoints), ())
    context = {"fill": fill, "library": config.resize_with}
    transforms: list[TransformFn] = []
    transforms += [registry.build("transforms", part, **context) for part in config.before_resize]
    transforms.append(Resize(config.resize, config.resize_mode, config.resize_with, config.keep_ratio))
    if config.crop:
        transforms.append(RandomCrop(config.crop))
    if config.flip:
        transforms.append(RandomFlip(config.flip, keypoint_order(names)))
    return transforms + [registry.build("transforms", part, **context) for part in config.transforms]


def _boxes(xyxy: NDArray[Any], size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    boxes = torch.from_numpy(np.asarray(xyxy, np.float32).reshape(-1, 4).copy())
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)


def _target(record: Record) -> Target:
    """Return what is left of the objects in the picture, boxes clipped to it."""
    height, width = record["image"].shape[-2:]
    boxes, kept = _clipped(record["boxes"])
    masks, keypoints = record.get("masks"), record.get("keypoints")
    target = Target(boxes[kept], record["labels"][kept])
    if masks is not None:
        plain = masks.as_subclass(torch.Tensor)
        target.masks = plain if kept.all() else plain[kept]
    if keypoints is not None:
        points = keypoints.as_subclass(torch.Tensor)
        inside = ((points > 0) & (points < points.new_tensor([width, height]))).all(-1)
        target.keypoints = torch.cat([points, (record["visibility"] * inside)[..., None]], dim=-1)[kept]
    ignored, kept = _clipped(record["ignored"])
    target.ignored = ignored[kept]
    if "proposals" in record:
        proposals, kept = _clipped(record["proposals"])
        target.proposals = proposals[kept]
    if "semantic" in record:
        target.semantic = record["semantic"].as_subclass(torch.Tensor)
    return target


def _clipped(boxes: tv_tensors.BoundingBoxes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes clipped to their picture, and which of them still have an area."""
    clipped = functional.clamp_bounding_boxes(boxes).as_subclass(torch.Tensor)
    return clipped, (clipped[:, 2:] > clipped[:, :2]).all(dim=1)


def _coco_objects(
    annotations: Annotations, image_id: int, categories: list[Category], count: int
) -> list[dict[str, Any]]:
    objects = []
    for row in range(len(annotations)):
        category = categories[int(annotations.categories[row])]
        item: dict[str, Any] = {
            "id": count + row + 1,
            "image_id": image_id,
            "category_id": category.id,
            "bbox": annotations.xywh[row].tolist(),
            "area": float(annotations.areas[row]),
            "iscrowd": int(annotations.crowd[row]),
        }
        segmentation = annotations.segmentations[row]
        if isinstance(segmentation, dict):
            item["segmentation"] = {**segmentation, "counts": segmentation["counts"].decode()}
        elif segmentation:
            item["segmentation"] = [polygon.tolist() for polygon in segmentation]
        if category.keypoints:
            keypoints = annotations.keypoints[row, : len(category.keypoints)].copy()
            keypoints[keypoints[:, 2] > 0, :2] -= PIXEL_CENTRE
            item |= {
                "keypoints": keypoints.reshape(-1).tolist(),
                "num_keypoints": int((keypoints[:, 2] > 0).sum()),
            }
        objects.append(item)
    return objects


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` within; the generators then go on as if nothing had been drawn.

    They are torch's of the CPU, and those of Python and NumPy, from which transforms of others may draw.
    """
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
