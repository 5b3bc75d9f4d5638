"""Test-time augmentation: a picture is looked at in several sizes and mirrored, and what is found is merged.

Boxes of all views, in pixels of the picture, go through one non-maximum suppression for each class. Masks and keypoints
of two-stage models then come from the merged boxes: their heads look at these in every view, and the mean of the masks'
probabilities and of the keypoints' logits is what counts. So do Detectron2's GeneralizedRCNNWithTTA, for boxes
and masks, and Detectron (`TEST.BBOX_AUG` with its unions, `TEST.MASK_AUG` with SOFT_AVG, `TEST.KPS_AUG` with HM_AVG).
The masks and keypoints of other models are those that each detection came with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detcli.config import RunConfig
from detcli.data import Preprocess, collate
from detcli.data.dataset import Sample
from detcli.data.images import Pixels
from detcli.data.transforms import keypoint_order, to_image, to_pixels
from detcli.engine.device import Precision, autocast
from detcli.engine.model import Normalizer
from detcli.errors import UsageError
from detcli.eval.results import rescale_boxes
from detcli.nn.cascade_roi_head import CascadeRoIHead
from detcli.nn.detector import Detector, TwoStageDetector
from detcli.nn.postprocess import suppress
from detcli.nn.roi_head import ObjectMaps, RoIHead
from detcli.structures import Batch, ClassMap, Detections, ImageInfo, Target

NMS_THRESHOLD = 0.5
MAX_PER_IMAGE = 100
"""What stands in for the settings of a model that has none, as those without non-maximum suppression."""

KEPT_BYTES = 2**31
"""The most bytes of features that are kept from the boxes for the masks; beyond them, they are computed again."""

OFF = "`--set eval.tta.scales=[1] --set eval.tta.flip=false`"


@dataclass(frozen=True, slots=True)
class View:
    """A picture in one size, its info's, and perhaps mirrored left and right.

    `mirrored_keypoints` is the position whose point each keypoint takes in the mirror.
    """

    info: ImageInfo
    flipped: bool
    mirrored_keypoints: tuple[int, ...] = ()

    def boxes(self, boxes: Tensor) -> Tensor:
        """Return boxes [D,4] xyxy of the original picture in pixels of the view."""
        (height, width), (rows, columns) = self.info.original_size, self.info.size
        boxes = boxes * boxes.new_tensor([columns / width, rows / height]).repeat(2)
        return self._mirrored(boxes) if self.flipped else boxes

    def original(self, detections: Detections) -> Detections:
        """Return detections in the view in pixels of the original picture, as `rescale_boxes` does."""
        if self.flipped:
            detections = replace(
                detections,
                boxes=self._mirrored(detections.boxes),
                mask_crops=None if detections.mask_crops is None else self.unflipped(detections.mask_crops),
                mask_maps=None if detections.mask_maps is None else self.unflipped(detections.mask_maps),
                keypoints=None if detections.keypoints is None else self._unflipped_points(detections.keypoints),
            )
        return rescale_boxes(detections, self.info)

    def unflipped(self, maps: Tensor) -> Tensor:
        """Return maps [...,H,W] of the view, or of boxes in it, as the original picture has them."""
        return maps.flip(-1) if self.flipped else maps

    def unflipped_keypoints(self, maps: Tensor) -> Tensor:
        """Return maps of keypoints [D,K,S,S] of boxes in the view as the original picture has them."""
        return maps[:, list(self.mirrored_keypoints)].flip(-1) if self.flipped else maps

    def _mirrored(self, boxes: Tensor) -> Tensor:
        left, top, right, bottom = boxes.unbind(-1)
        width = self.info.size[1]
        return torch.stack([width - right, top, width - left, bottom], dim=-1)

    def _unflipped_points(self, keypoints: Tensor) -> Tensor:
        keypoints = keypoints[:, list(self.mirrored_keypoints)]
        keypoints[..., 0] = self.info.size[1] - keypoints[..., 0]
        return keypoints


@dataclass(frozen=True, slots=True)
class Looked:
    """The views of one size, and the maps [V,C,h,w] that their RoIs are pooled from where these were kept."""

    preprocess: Preprocess
    views: list[View]
    features: Sequence[Tensor] | None


class Augmented:
    """A model, in eval mode, that detects in the views of a picture that `config.eval.tta` asks for.

    Raises `UsageError` where `check` does.
    """

    def __init__(
        self, model: Detector, config: RunConfig, classes: ClassMap, device: torch.device, precision: Precision = "fp32"
    ) -> None:
        check(model, config, classes)
        self.model = model
        self.config = config
        self.device = device
        self.precision: Precision = precision
        self._normalize = Normalizer(config.input, device)
        self._flip = config.eval.tta.flip
        self._sizes = [
            Preprocess(config.data.model_copy(update={"test_resize": scale}))
            for scale in config.eval.tta.sizes(config.data.test_resize)
        ]
        self._mirrored_keypoints = tuple(keypoint_order(classes.keypoints))
        self._nms_threshold, self._max_per_image = merging(config)

    @torch.inference_mode()
    def __call__(self, pixels: Pixels, proposals: Tensor | None = None) -> Detections:
        """Return what is found in a picture, uint8 RGB [H,W,3], in its own pixels.

        `proposals` [P,4] are those of a model that takes its own, best first, in the same pixels.
        """
        several = len(self._sizes) > 1 or self._flip
        again = several and looks_again(self.model) and bool({"mask", "keypoint"} & set(self.model.tasks))
        found: list[Detections] = []
        looked: list[Looked] = []
        spare = KEPT_BYTES if again else 0
        for preprocess in self._sizes:
            # Views of one size are one batch, and all that is on the device at a time but for what is kept.
            views, batch = self._views(preprocess, pixels, proposals)
            with autocast(self.device, self.precision):
                features, detections = self._boxes(batch) if again else ((), self.model(batch))
            found += [view.original(one) for view, one in zip(views, detections, strict=True)]
            spare -= sum(level.nbytes for level in features)
            looked.append(Looked(preprocess, views, features if spare >= 0 else None))
            del features, batch
        merged = merge(found, self._nms_threshold, self._max_per_image)
        return self._described(merged, looked, pixels) if again else merged

    def _views(
        self, preprocess: Preprocess, pixels: Pixels, proposals: Tensor | None = None
    ) -> tuple[list[View], Batch]:
        """Return the views of one size, and what the network gets of them."""
        sample = preprocess(pixels)
        samples, views = [sample], [View(sample.info, False)]
        if self._flip:
            mirrored = np.asarray(cv2.flip(to_pixels(sample.image), 1), np.uint8)
            samples.append(Sample(to_image(mirrored).as_subclass(torch.Tensor), None, sample.info))
            views.append(View(sample.info, True, self._mirrored_keypoints))
        if proposals is not None:
            labels = torch.zeros(0, dtype=torch.int64)
            for view, own in zip(views, samples, strict=True):
                own.target = Target(torch.zeros(0, 4), labels, proposals=view.boxes(proposals))
        batch = collate(samples, self.config.input.pad_divisor)
        return views, self._normalize(batch, self.config.train.channels_last)

    def _boxes(self, batch: Batch) -> tuple[Sequence[Tensor], list[Detections]]:
        """Return the maps that RoIs of each view are pooled from, and its detections without masks and keypoints."""
        assert isinstance(self.model, TwoStageDetector)
        levels = self.model.features(batch.images)
        features = self.model.roi_head.features(levels)
        return features, self.model.roi_head.detect_boxes(features, self.model.proposals(levels, batch), batch)

    def _described(self, merged: Detections, looked: Sequence[Looked], pixels: Pixels) -> Detections:
        """Return merged detections with the masks and keypoints that a two-stage model's heads see in all views."""
        assert isinstance(self.model, TwoStageDetector)
        masks: Tensor | None = None
        keypoints: Tensor | None = None
        number = sum(len(size.views) for size in looked)
        for size in looked:
            given = [replace(merged, boxes=view.boxes(merged.boxes)) for view in size.views]
            with autocast(self.device, self.precision):
                features = size.features
                if features is None:
                    levels = self.model.features(self._views(size.preprocess, pixels)[1].images)
                    features = self.model.roi_head.features(levels)
                maps: ObjectMaps = self.model.roi_head.object_maps(features, given)
            for place, view in enumerate(size.views):
                part = slice(place * len(merged), (place + 1) * len(merged))
                if maps.masks is not None:
                    own = view.unflipped(maps.masks[part].float()) / number
                    masks = own if masks is None else masks + own
                if maps.keypoints is not None:
                    own = view.unflipped_keypoints(maps.keypoints[part].float()) / number
                    keypoints = own if keypoints is None else keypoints + own
        if keypoints is not None:
            keypoints = self.model.roi_head.keypoint_head.find(keypoints, merged.boxes)
        return replace(merged, mask_crops=masks, keypoints=keypoints)


def check(model: Detector, config: RunConfig, classes: ClassMap) -> None:
    """Raise `UsageError` where views of a picture can't be merged.

    They can't be for segments of things and stuff, nor mirrored where nobody knows which keypoints are left and right.
    """
    if "panoptic" in model.tasks:
        raise UsageError(
            f"{config.recipe} cuts pictures into segments, for which there is no test-time augmentation: "
            f"leave out `--with tta`, or turn it off with {OFF}."
        )
    if config.eval.tta.flip and "keypoint" in model.tasks and not classes.keypoints:
        raise UsageError(
            "the keypoints of this model have no names, so nobody knows which are left and right in a mirror: "
            "`--set eval.tta.flip=false`."
        )


def looks_again(model: Detector) -> bool:
    """Tell whether the heads of a model give masks and keypoints to any boxes.

    Those of two-stage models do, but for a second stage with a `detect` of its own, which may need more than features.
    """
    if not isinstance(model, TwoStageDetector):
        return False
    own = type(model.roi_head).detect
    return own is RoIHead.detect or own is CascadeRoIHead.detect


def merging(config: RunConfig) -> tuple[float, int]:
    """Return the IoU above which the worse of two boxes goes, and how many detections stay at most.

    They are those of the model's last stage unless `config.eval.tta` has them.
    """
    tta, model = config.eval.tta, config.model
    last = model.get("roi_head") or model.get("rpn_head") or model
    threshold, limit = tta.nms_threshold, tta.max_per_image
    if threshold is None:
        threshold = last.get("nms_threshold", NMS_THRESHOLD)
    if limit is None:
        limit = last.get("max_per_image", last.get("test_proposals", MAX_PER_IMAGE))
    return float(threshold), int(limit)


def merge(found: Sequence[Detections], nms_threshold: float, max_per_image: int) -> Detections:
    """Return the best detections of several views, all in pixels of the original picture, best first.

    A detection goes when its IoU with a better one of its label is above the threshold; those of a single view stay as
    they are. Masks and keypoints stay with their detections; maps of masks get the resolution of the finest.
    """
    if len(found) == 1:
        return found[0]
    boxes, scores, labels = (
        torch.cat([getattr(part, name) for part in found]) for name in ("boxes", "scores", "labels")
    )
    keep, scores = suppress(boxes, scores, labels, nms_threshold, max_per_image)
    merged = Detections(boxes[keep], scores, labels[keep])
    crops = [part.mask_crops for part in found if part.mask_crops is not None]
    if crops:
        merged.mask_crops = torch.cat(crops)[keep]
    keypoints = [part.keypoints for part in found if part.keypoints is not None]
    if keypoints:
        merged.keypoints = torch.cat(keypoints)[keep]
    maps = [part.mask_maps for part in found if part.mask_maps is not None]
    if maps:
        finest = max((part.shape[-2:] for part in maps), key=torch.Size.numel)
        rows = [row for part in maps for row in part]
        chosen = [
            functional.interpolate(rows[index][None, None].float(), finest, mode="bilinear", align_corners=False)[0, 0]
            for index in keep.tolist()
        ]
        merged.mask_maps = torch.stack(chosen) if chosen else maps[0].new_zeros(0, *finest)
    return merged
