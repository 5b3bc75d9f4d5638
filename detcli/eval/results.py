"""From what a network found to detections in the original picture and to COCO results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from torch import Tensor

from detcli.data.annotations import PIXEL_CENTRE
from detcli.data.panoptic import encode_ids
from detcli.nn.masks import paste_masks, paste_regions, resize_masks, resize_regions
from detcli.structures import ClassMap, Detections, ImageInfo, Panoptic


def rescale_boxes(detections: Detections, info: ImageInfo) -> Detections:
    """Return the detections in pixels of the original picture, clipped to it, without empty boxes.

    Keypoints move with the boxes. Mask crops and maps stay what they are: `to_coco` and
    `detcli.visual.draw` take them so.
    """
    height, width = info.original_size
    scale = detections.boxes.new_tensor([width / info.size[1], height / info.size[0]])
    corners = detections.boxes.reshape(-1, 2, 2) * scale
    corners = corners.clamp(min=0).minimum(corners.new_tensor([width, height]))
    keypoints = detections.keypoints
    if keypoints is not None:
        keypoints = keypoints.clone()
        keypoints[..., :2] *= scale
    result = replace(detections, boxes=corners.flatten(1), keypoints=keypoints)
    return result[(corners[:, 1] > corners[:, 0]).all(-1)]


def rescale(detections: Detections, info: ImageInfo) -> Detections:
    """Return the detections in pixels of the original picture, with masks [D,H,W] of the whole picture.

    H*W bytes for each detection with a mask; `rescale_boxes` keeps crops and maps instead.
    """
    return paste(rescale_boxes(detections, info), info)


def paste(detections: Detections, info: ImageInfo) -> Detections:
    """Return detections in pixels of the original picture, masks [D,H,W] of all of it in place of crops or maps."""
    if detections.mask_crops is not None:
        masks = paste_masks(detections.mask_crops, detections.boxes, info.original_size)
    elif detections.mask_maps is not None:
        masks = resize_masks(detections.mask_maps, info.original_size)
    else:
        return detections
    return replace(detections, mask_crops=None, mask_maps=None, masks=masks)


def to_coco(detections: Detections, info: ImageInfo, classes: ClassMap) -> list[dict[str, Any]]:
    """Return COCO results: image_id, category_id, bbox (x, y, width, height), score, segmentation and keypoints.

    `detections` are in pixels of the original picture. The segmentation, for models with masks, is compressed
    run lengths with `counts` as str. Keypoints are x, y and score in turn, in numbers of pixels as COCO has them.
    """
    boxes = detections.boxes.double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    found = zip(boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    results: list[dict[str, Any]] = [
        {"image_id": info.image_id, "category_id": classes.ids[label], "bbox": box, "score": score}
        for box, score, label in found
    ]
    if any(form is not None for form in (detections.masks, detections.mask_crops, detections.mask_maps)):
        for result, (left, top, mask) in zip(results, mask_regions(detections, info.original_size), strict=True):
            result["segmentation"] = run_lengths(mask, left, top, info.original_size)
    if detections.keypoints is not None:
        for result, keypoints in zip(results, _in_pixel_numbers(detections.keypoints).flatten(1).tolist(), strict=True):
            result["keypoints"] = keypoints
    return results


def to_coco_panoptic(panoptic: Panoptic, info: ImageInfo, classes: ClassMap) -> dict[str, Any]:
    """Return the segments of a picture as a result in COCO's panoptic format, with the bytes of its PNG file, "png"."""
    ids = (*classes.ids, *classes.stuff_ids)
    return {
        "image_id": info.image_id,
        "file_name": f"{PurePath(info.name).stem}.png",
        "segments_info": [
            {"id": number, "category_id": ids[label]} for number, label in enumerate(panoptic.labels.tolist(), 1)
        ],
        "png": encode_ids(panoptic.segments.cpu().numpy()),
    }


def _in_pixel_numbers(keypoints: Tensor) -> Tensor:
    """Return keypoints [D,K,3] (x, y, score) counted from the centre of the first pixel."""
    return keypoints.double().cpu() - torch.tensor([PIXEL_CENTRE, PIXEL_CENTRE, 0.0])


def mask_regions(
    detections: Detections, size: tuple[int, int]
) -> Iterator[tuple[int, int, NDArray[np.bool_ | np.uint8]]]:
    """Yield the mask of each detection as (left, top, mask [h,w]) in a picture of `size` (height, width)."""
    if detections.masks is not None:
        yield from ((0, 0, mask) for mask in detections.masks.cpu().numpy())
    elif detections.mask_crops is not None:
        for left, top, mask in paste_regions(detections.mask_crops, detections.boxes, size):
            yield left, top, mask.numpy()
    elif detections.mask_maps is not None:
        for left, top, mask in resize_regions(detections.mask_maps, size):
            yield left, top, mask.numpy()


def run_lengths(mask: NDArray[np.bool_ | np.uint8], left: int, top: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return the COCO run lengths of a picture that is `mask` [h,w] at (left, top) and 0 elsewhere.

    size is (height, width) of the picture.
    """
    height, width = size
    # Run lengths go down the columns. With a zero at both ends of each column, runs begin and end where
    # values change; a run that ends where the next one begins (at the foot of a column) goes on.
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    columns[:, 1:-1] = mask.T
    change = np.diff(columns, axis=1)
    begins, ends = ((left + x) * height + top + y for x, y in (np.nonzero(change == 1), np.nonzero(change == -1)))
    edges = np.setxor1d(begins, ends, assume_unique=True)
    counts = np.diff(np.r_[0, edges, height * width]).tolist()
    if counts[-1] == 0:
        counts.pop()
    encoded = mask_utils.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
