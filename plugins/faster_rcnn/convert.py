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
    boxes = _box_stage(roi_head, train.group("rcnn"), test.group("rcnn"), strides)
    if not model.has("rpn_head"):
        if roi_head.has("mask_head"):
            raise roi_head.unsupported("mask_head")
        return {"name": "fast_rcnn", **boxes}
    both = {"rpn_head": first_stage(model, strides), **boxes}
    if not roi_head.has("mask_head"):
        return {"name": "faster_rcnn", **both}
    masks = _mask_stage(roi_head, train.group("rcnn"), test.group("rcnn"), strides)
    if "norm" in boxes and boxes["norm"] != masks.get("norm", "none"):
        raise roi_head.group("mask_head").unsupported("norm_cfg")
    return {"name": "mask_rcnn", **both, **masks}


def _box_stage(roi_head: Group, train: Group, test: Group, strides: Strides) -> dict[str, Any]:
    """Return the arguments of the box head and its training."""
    head = roi_head.group("bbox_head")
    extractor = parts.roi_extractor(roi_head, "bbox_roi_extractor", strides)
    train.ignore("mask_size")
    return {
        "roi_extractor": extractor,
        **box_head(head, extractor),
        "assigner": parts.assigner(train),
        "sampler": parts.sampler(train),
        "decode_before_loss": head.flag("reg_decoded_bbox", False),
        "coder_style": parts.coder_style(head, (0.1, 0.1, 0.2, 0.2)),
        **box_selection(test),
    }


def _mask_stage(roi_head: Group, train: Group, test: Group, strides: Strides) -> dict[str, Any]:
    """Return the arguments of the mask head."""
    extractor = parts.roi_extractor(roi_head, "mask_roi_extractor", strides)
    train.expect("mask_size", 2 * extractor["output_size"])
    test.expect("mask_thr_binary", 0.5)
    return {"mask_roi_extractor": extractor, **mask_head(roi_head.group("mask_head"), extractor)}
