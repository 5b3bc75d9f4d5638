"""Fast, Faster and Mask R-CNN of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides
from detcli.convert.mmdet_stages import box_head, box_selection, first_stage, mask_head


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config with a StandardRoIHead: an RPN makes it Faster R-CNN, masks Mask R-CNN."""
    train, test = model.group("train_cfg"), model.group("test_cfg")
    roi_head = model.group("roi_head")
    roi_head.expect("shared_head", None)
    roi_head.ignore("init_cfg", "pretrained")
    model.expect("bbox_head", None)
    second_stage = _second_stage(roi_head, train.group("rcnn"), test.group("rcnn"), strides)
    if not model.has("rpn_head"):
        if "mask_head" in second_stage:
            raise roi_head.unsupported("mask_head")
        return {"name": "fast_rcnn", "roi_head": second_stage}
    name = "mask_rcnn" if "mask_head" in second_stage else "faster_rcnn"
    return {"name": name, "rpn_head": first_stage(model, strides), "roi_head": second_stage}


def _second_stage(roi_head: Group, train: Group, test: Group, strides: Strides) -> dict[str, Any]:
    """Return the second stage, with a head of masks or without."""
    extractor = parts.roi_extractor(roi_head, "bbox_roi_extractor", strides)
    translated = {
        "name": "standard",
        "roi_extractor": extractor,
        "bbox_head": box_head(roi_head.group("bbox_head"), extractor),
        "assigner": parts.assigner(train),
        "sampler": parts.sampler(train),
        **box_selection(test),
    }
    if not roi_head.has("mask_head"):
        train.ignore("mask_size")
        return translated
    extractor = parts.roi_extractor(roi_head, "mask_roi_extractor", strides)
    train.expect("mask_size", 2 * extractor["output_size"])
    test.expect("mask_thr_binary", 0.5)
    masks = {"mask_roi_extractor": extractor, "mask_head": mask_head(roi_head.group("mask_head"), extractor)}
    return translated | masks
