"""What the recipes of several methods share: the settings of Detectron2, of Detectron and of MMDetection 0.

Everything is a piece of a recipe, as data; each plugin puts together what its models have. The numbers are those of
Detectron2's configs, of Detectron's configs/12_2017_baselines and detectron/core/config.py, and of MMDetection's
configs before version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def combined(*pieces: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings laid over each other, the last on top: groups are merged, all else is replaced."""
    whole: dict[str, Any] = {}
    for piece in pieces:
        for key, value in piece.items():
            below = whole.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping) and "name" not in value:
                value = combined(below, value)
            whole[key] = value
    return whole


OPENMMLAB = "https://download.openmmlab.com/pretrain/third_party/"
"""Where MMDetection's backbones are, with weights of ImageNet."""

CAFFE_INPUT: dict[str, Any] = {"input": {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "channels": "bgr"}}
"""What comes with backbones that were trained in Caffe or Caffe2, in MMDetection and Detectron2."""

SIX_SIZES: dict[str, Any] = {"resize": [(1333, side) for side in (640, 672, 704, 736, 768, 800)]}
"""Multi-scale training, one of six sizes."""

UNPADDED: dict[str, Any] = {"pad_divisor": 1}
"""Images of models without a pyramid are padded to the largest of their batch, and no further."""

C4: dict[str, Any] = {"out_stages": (3, 4)}
"""A backbone whose fourth stage works on RoIs, on the map of the third."""

DC5: dict[str, Any] = {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2), "out_stages": (4,)}
"""A backbone whose last map has stride 16, too."""

ONE_MAP_ANCHORS: dict[str, Any] = {"anchor_scales": (2.0, 4.0, 8.0, 16.0, 32.0)}
"""An RPN without a pyramid: anchors of all sizes on one map of stride 16."""

ONE_MAP_RPN: dict[str, Any] = {
    **ONE_MAP_ANCHORS,
    "train_nms_pre": 12000,
    "train_proposals": 2000,
    "test_nms_pre": 6000,
}
"""Such an RPN in a model of two stages."""

ONE_MAP: dict[str, Any] = {"neck": None, "rpn_head": ONE_MAP_RPN}

SHARED_MASKS: dict[str, Any] = {"roi_head": {"mask_roi_extractor": None, "mask_head": {"convs": 0, "channels": 256}}}
"""Masks from the features that boxes come from, by a deconvolution alone."""

EVERY_BEST_ANCHOR: dict[str, Any] = {"min_positive": 0.0, "low_quality_gt": "best"}
"""Detectron and Detectron2: the best anchors of an object are trained, however bad, for their own best object."""

DETECTRON2_RESIZE: dict[str, Any] = {"resize_with": "pillow"}

DETECTRON2_DATA: dict[str, Any] = {**SIX_SIZES, **DETECTRON2_RESIZE}

DETECTRON2_SCHED: dict[str, Any] = {"warmup_iters": 1000}

UNCLAMPED: dict[str, Any] = {"clamp_below": False}
"""Detectron and Detectron2: boxes may shrink as much as they like."""

NO_LOW_QUALITY: dict[str, Any] = {"roi_head": {"assigner": {"match_low_quality": False}}}
"""MMDetection alone matches objects with RoIs that overlap them little, where it learns masks."""

SHARED_HEAD: dict[str, Any] = {"shared_head": True, "roi_head": {"bbox_head": {"fcs": 0}}}
"""The last stage of the backbone on RoIs, and boxes from the mean of what it says."""

DETECTRON2_OPTIM: dict[str, Any] = {"norm_decay": 0.0}

DETECTRON2_RPN: dict[str, Any] = {
    "assigner": EVERY_BEST_ANCHOR,
    "loss_divisor": "capacity",
    "train_padding": True,
    **UNCLAMPED,
}

DETECTRON2_TWO_STAGE: dict[str, Any] = {"rpn_head": DETECTRON2_RPN, "roi_head": {"bbox_head": UNCLAMPED}}

DETECTRON2_MASKS: dict[str, Any] = combined(DETECTRON2_TWO_STAGE, NO_LOW_QUALITY)

DETECTRON2_CASCADE: dict[str, Any] = {
    "rpn_head": {**DETECTRON2_RPN, "anchor_border": None, "loss_bbox": "l1", "train_proposals": 2000},
    "roi_head": {
        "name": "cascade",
        "bbox_head": {"loss_bbox": "l1", **UNCLAMPED},
        "stage_stds": (
            (0.1, 0.1, 0.2, 0.2),
            (0.05, 0.05, 0.1, 0.1),
            (0.03333333333333333, 0.03333333333333333, 0.06666666666666667, 0.06666666666666667),
        ),
        "stage_weights": (1.0, 1.0, 1.0),
        "resample": False,
        "roi_gradient": 0.3333333333333333,
        "mask_head": "fcn",
        "mask_stages": 1,
        "score_average": "probabilities",
    },
}
"""Stages of boxes, and masks of the first one's."""

DETECTRON2_ONE_MAP: dict[str, Any] = combined(ONE_MAP, {"rpn_head": {"anchor_order": "scale"}})

DETECTRON2_C4: dict[str, Any] = combined(SHARED_HEAD, {"roi_head": {"roi_extractor": {"output_size": 14}}})

DETECTRON_OPTIM: dict[str, Any] = {"bias_lr": 2.0, "bias_decay": 0.0}

DETECTRON_OPTIM_ONE_IMAGE: dict[str, Any] = {**DETECTRON_OPTIM, "lr": 0.01, "batch": 8}
"""Where a GPU has memory for one image, and the schedule is twice as long."""

DETECTRON_SCHED: dict[str, Any] = {"warmup_ratio": 1 / 3}

DETECTRON_ANCHORS: dict[str, Any] = {"anchor_style": "detectron", "anchor_border": 0}

DETECTRON_RPN_LOSS: dict[str, Any] = {"name": "smooth_l1", "beta": 1 / 9}

DETECTRON_RPN: dict[str, Any] = {
    **DETECTRON_ANCHORS,
    "assigner": EVERY_BEST_ANCHOR,
    "loss_bbox": DETECTRON_RPN_LOSS,
    "loss_divisor": "capacity",
    "train_proposals": 2000,
    **UNCLAMPED,
}

DETECTRON_ONE_MAP: dict[str, Any] = combined(ONE_MAP, {"rpn_head": {"loss_divisor": "sampled"}})

DETECTRON_ROI_ALIGN: dict[str, Any] = {"sampling_ratio": 2, "aligned": False, "last_pixel": True}

DETECTRON_BOXES: dict[str, Any] = {
    "roi_head": {
        "roi_extractor": DETECTRON_ROI_ALIGN,
        "bbox_head": {"loss_bbox": {"name": "smooth_l1", "beta": 1.0}, **UNCLAMPED},
    }
}

DETECTRON_TWO_STAGE: dict[str, Any] = combined({"rpn_head": DETECTRON_RPN}, DETECTRON_BOXES)

DETECTRON_MASKS: dict[str, Any] = combined(DETECTRON_TWO_STAGE, NO_LOW_QUALITY)

DETECTRON_C4: dict[str, Any] = combined(
    SHARED_HEAD, {"roi_head": {"roi_extractor": {"output_size": 14, "sampling_ratio": 0}}}
)

LEGACY_OPTIM: dict[str, Any] = {"clip_norm": 35.0}

LEGACY_SCHED: dict[str, Any] = {"warmup_ratio": 1 / 3}

LEGACY_STYLES: dict[str, Any] = {"anchor_style": "v1", "coder_style": "v1"}

LEGACY_ROI_ALIGN: dict[str, Any] = {"sampling_ratio": 2, "aligned": False}

LEGACY_BOXES: dict[str, Any] = {
    "roi_head": {"roi_extractor": LEGACY_ROI_ALIGN, "bbox_head": {"loss_bbox": "smooth_l1", "coder_style": "v1"}}
}

LEGACY_MASKS: dict[str, Any] = {"roi_head": {"mask_roi_extractor": LEGACY_ROI_ALIGN}}

LEGACY_RPN: dict[str, Any] = {
    **LEGACY_STYLES,
    "loss_bbox": {"name": "smooth_l1", "beta": 1 / 9},
    "train_proposals": 2000,
}

MASK_ROI_HEAD: dict[str, Any] = {
    "name": "standard",
    "assigner": {"name": "max_iou", "positive": 0.5, "negative": 0.5, "min_positive": 0.5},
    "mask_roi_extractor": {"name": "roi_align", "output_size": 14},
    "mask_head": "fcn",
}
"""The second stage of Mask R-CNN, as MMDetection has it."""

CASCADE_RPN_HEAD: dict[str, Any] = {
    "name": "rpn",
    "anchor_border": 0,
    "loss_bbox": {"name": "smooth_l1", "beta": 0.1111111111111111},
    "train_proposals": 2000,
}
"""The first stage of cascades, as MMDetection has it."""
