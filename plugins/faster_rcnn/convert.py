"""Fast, Faster and Mask R-CNN of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config with a StandardRoIHead: an RPN makes it Faster R-CNN, masks Mask R-CNN."""
    train, test = model.group("train_cfg"), model.group("test_cfg")
    roi_head = model.group("roi_head")
    roi_head.expect("shared_head", None)
    roi_head.ignore("init_cfg", "pretrained")
    model.expect("bbox_head", None)
    boxes, coder_style = _box_stage(roi_head, train.group("rcnn"), test.group("rcnn"), strides)
    if not model.has("rpn_head"):
        if roi_head.has("mask_head"):
            raise roi_head.unsupported("mask_head")
        return {"name": "fast_rcnn", **boxes, "coder_style": coder_style}
    first, first_style = _first_stage(model, train, test, strides)
    if first_style != coder_style:
        raise roi_head.group("bbox_head").unsupported("bbox_coder")
    both = {**first, **boxes, "coder_style": coder_style}
    if not roi_head.has("mask_head"):
        return {"name": "faster_rcnn", **both}
    return {
        "name": "mask_rcnn",
        **both,
        **_mask_stage(model, roi_head, train.group("rcnn"), test.group("rcnn"), strides),
    }


def _first_stage(model: Group, train: Group, test: Group, strides: Strides) -> tuple[dict[str, Any], str]:
    """Return the arguments of the RPN, and the style of its box coder."""
    head = parts.proposal_head(model, train.group("rpn"), strides)
    tested = parts.proposals(test.group("rpn"))
    trained = parts.proposals(train.group("rpn_proposal")) if train.has("rpn_proposal") else tested
    if trained.nms_threshold != tested.nms_threshold:
        raise train.unsupported("rpn_proposal")
    args = {
        **head.anchor_args,
        "rpn_assigner": head.assigner,
        "rpn_sampler": head.sampler,
        "rpn_loss_cls": head.loss_cls,
        "rpn_loss_bbox": head.loss_bbox,
        "train_nms_pre": trained.nms_pre,
        "train_proposals": trained.max_per_image,
        "test_nms_pre": tested.nms_pre,
        "test_proposals": tested.max_per_image,
        "proposal_nms_threshold": trained.nms_threshold,
    }
    return args, head.coder_style


def _box_stage(roi_head: Group, train: Group, test: Group, strides: Strides) -> tuple[dict[str, Any], str]:
    """Return the arguments of the box head and its training, and the style of its box coder."""
    head = roi_head.group("bbox_head")
    if head.kind != "Shared2FCBBoxHead":
        raise head.unsupported("type")
    extractor = parts.roi_extractor(roi_head, "bbox_roi_extractor", strides)
    head.expect("roi_feat_size", extractor["output_size"])
    head.expect("num_shared_fcs", 2)
    head.expect("reg_class_agnostic", False)
    head.expect("with_avg_pool", False)
    head.expect("with_cls", True)
    head.expect("with_reg", True)
    head.expect("norm_cfg", None)
    head.expect("conv_cfg", None)
    head.expect("reg_predictor_cfg", {"type": "Linear"})
    head.expect("cls_predictor_cfg", {"type": "Linear"})
    head.ignore("in_channels", "num_classes", "conv_out_channels", "init_cfg")
    train.ignore("mask_size")
    args = {
        "roi_extractor": extractor,
        "fc_channels": head.integer("fc_out_channels", 1024),
        "assigner": parts.assigner(train),
        "sampler": parts.sampler(train),
        "loss_cls": parts.loss(head, "loss_cls", {"type": "CrossEntropyLoss"}),
        "loss_bbox": parts.loss(head, "loss_bbox", {"type": "SmoothL1Loss"}),
        "decode_before_loss": head.flag("reg_decoded_bbox", False),
        "score_threshold": test.number("score_thr"),
        "nms_threshold": parts.nms_threshold(test),
        "max_per_image": test.integer("max_per_img"),
    }
    return args, parts.coder_style(head, (0.1, 0.1, 0.2, 0.2))


def _mask_stage(model: Group, roi_head: Group, train: Group, test: Group, strides: Strides) -> dict[str, Any]:
    """Return the arguments of the mask head."""
    head = roi_head.group("mask_head")
    if head.kind != "FCNMaskHead":
        raise head.unsupported("type")
    extractor = parts.roi_extractor(roi_head, "mask_roi_extractor", strides)
    train.expect("mask_size", 2 * extractor["output_size"])
    test.expect("mask_thr_binary", 0.5)
    head.expect("roi_feat_size", extractor["output_size"])
    head.expect("conv_kernel_size", 3)
    head.expect("conv_cfg", None)
    head.expect("norm_cfg", None)
    head.expect("class_agnostic", False)
    head.expect("upsample_cfg", {"type": "deconv", "scale_factor": 2})
    head.expect("upsample_method", "deconv")
    head.expect("upsample_ratio", 2)
    head.expect("predictor_cfg", {"type": "Conv"})
    if head.has("loss_mask"):
        loss = head.group("loss_mask")
        loss.expect("type", "CrossEntropyLoss")
        loss.expect("use_mask", True)
        loss.expect("use_sigmoid", False)
        loss.expect("reduction", "mean")
        loss.expect("loss_weight", 1.0)
    head.ignore("in_channels", "num_classes", "init_cfg")
    # Here the convolutions of both stages are as wide.
    if head.integer("conv_out_channels", 256) != model.group("rpn_head").integer("feat_channels", 256):
        raise head.unsupported("conv_out_channels")
    return {"mask_roi_extractor": extractor, "mask_convs": head.integer("num_convs", 4)}
