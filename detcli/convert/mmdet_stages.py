"""The stages of MMDetection's two-stage models in our terms: RPN, boxes and masks of RoIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides


def first_stage(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the RPN of a model of two stages."""
    train, test = model.group("train_cfg"), model.group("test_cfg")
    head = parts.rpn_head(model, train.group("rpn"), strides)
    tested = parts.proposals(test.group("rpn"))
    trained = parts.proposals(train.group("rpn_proposal")) if train.has("rpn_proposal") else tested
    if trained.nms_threshold != tested.nms_threshold:
        raise train.unsupported("rpn_proposal")
    return {
        **head,
        "train_nms_pre": trained.nms_pre,
        "train_proposals": trained.max_per_image,
        "test_nms_pre": tested.nms_pre,
        "test_proposals": tested.max_per_image,
        "nms_threshold": trained.nms_threshold,
    }


def box_head(
    head: Group,
    extractor: dict[str, Any],
    *,
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2),
    class_agnostic: bool = False,
) -> dict[str, Any]:
    """Return a head of classes and boxes, with a box coder of deviations `stds`, on what an RoI extractor gives it."""
    layers = class_head(head, extractor)
    if head.flag("reg_class_agnostic", False) != class_agnostic:
        raise head.unsupported("reg_class_agnostic")
    head.expect("with_reg", True)
    head.expect("reg_predictor_cfg", {"type": "Linear"})
    return {
        **layers,
        "name": "conv_fc",
        "loss_bbox": parts.loss(head, "loss_bbox", {"type": "SmoothL1Loss"}),
        "decode_before_loss": head.flag("reg_decoded_bbox", False),
        "coder_style": parts.coder_style(head, stds),
    }


def class_head(head: Group, extractor: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a head of classes, or of classes and boxes, on what an RoI extractor gives it."""
    layers = {"Shared2FCBBoxHead": (0, 2), "Shared4Conv1FCBBoxHead": (4, 1)}
    if head.kind not in layers:
        raise head.unsupported("type")
    convs, fcs = layers[head.kind]
    head.expect("roi_feat_size", extractor["output_size"])
    head.expect("num_shared_convs", convs)
    head.expect("num_shared_fcs", fcs)
    norm = parts.conv_norm(head)
    head.expect("with_avg_pool", False)
    head.expect("with_cls", True)
    head.expect("cls_predictor_cfg", {"type": "Linear"})
    head.ignore("in_channels", "num_classes", "conv_out_channels", "init_cfg")
    return {
        **({"convs": convs, "fcs": fcs, "norm": norm} if convs else {}),
        "channels": head.integer("fc_out_channels", 1024),
        "loss_cls": parts.loss(head, "loss_cls", {"type": "CrossEntropyLoss"}),
    }


def box_selection(test: Group) -> dict[str, Any]:
    """Return how detections are chosen, from `test_cfg.rcnn`."""
    return {
        "score_threshold": test.number("score_thr"),
        "nms_threshold": parts.nms_threshold(test),
        "max_per_image": test.integer("max_per_img"),
    }


def mask_head(head: Group, extractor: dict[str, Any], kind: str = "FCNMaskHead") -> dict[str, Any]:
    """Return a head of masks, of a type, on what an RoI extractor gives it."""
    if head.kind != kind:
        raise head.unsupported("type")
    head.expect("roi_feat_size", extractor["output_size"])
    head.expect("conv_kernel_size", 3)
    norm = parts.conv_norm(head)
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
    head.ignore("num_classes", "init_cfg")
    return {
        "name": {"FCNMaskHead": "fcn", "HTCMaskHead": "htc"}[kind],
        "convs": head.integer("num_convs", 4),
        "channels": parts.width(head, "conv_out_channels"),
        "norm": norm,
    }


def cascade(model: Group, strides: Strides, mask_kind: str) -> dict[str, Any]:
    """Return the second stage of a config with a cascade of heads of boxes, and of masks of a type or none.

    What differs between stages must be their IoUs, box coders and weights alone.
    """
    roi_head, train, test = model.group("roi_head"), model.group("train_cfg"), model.group("test_cfg").group("rcnn")
    roi_head.expect("shared_head", None)
    roi_head.ignore("init_cfg", "pretrained")
    model.expect("bbox_head", None)
    model.group("test_cfg").expect("keep_all_stages", False)
    extractor = parts.roi_extractor(roi_head, "bbox_roi_extractor", strides)
    heads, trained = roi_head.groups("bbox_head"), train.groups("rcnn")
    weights = roi_head.numbers("stage_loss_weights")
    roi_head.expect("num_stages", len(heads))
    if not heads or not len(heads) == len(trained) == len(weights):
        raise roi_head.wrong("bbox_head", "a list of as many heads as there are stage_loss_weights and train_cfg.rcnn")
    stds = [_deviations(head) for head in heads]
    layers = [box_head(head, extractor, stds=own, class_agnostic=True) for head, own in zip(heads, stds, strict=True)]
    for head, values in zip(heads, layers, strict=True):
        if values["coder_style"] != layers[0]["coder_style"]:
            raise head.unsupported("bbox_coder")
        if values != layers[0]:
            raise roi_head.unsupported("bbox_head")
    ious, chosen = zip(*map(_stage_training, trained), strict=True)
    if any(values != chosen[0] for values in chosen):
        raise train.unsupported("rcnn")
    translated = {
        "roi_extractor": extractor,
        "bbox_head": layers[0],
        "stage_ious": ious,
        "stage_stds": tuple(stds),
        "stage_weights": weights,
        **chosen[0],
        **box_selection(test),
    }
    if roi_head.has("mask_head"):
        translated |= _cascade_masks(model, trained, strides, mask_kind)
    for stage in trained:
        stage.ignore("mask_size")
    for group in (*heads, *trained):
        group.check()
    return translated


def _stage_training(stage: Group) -> tuple[float, dict[str, Any]]:
    """Return the IoU that RoIs of a stage are chosen by, and the arguments of their choice."""
    assigner = parts.assigner(stage)
    iou, low_quality = assigner.get("positive"), assigner.get("match_low_quality")
    same = {"positive": iou, "negative": iou, "min_positive": iou, "match_low_quality": low_quality}
    if iou is None or assigner != {"name": "max_iou", "claim_all": True, "ignore_iof": -1.0, **same}:
        raise stage.unsupported("assigner")
    return iou, {"match_low_quality": low_quality, "sampler": parts.sampler(stage)}


def _deviations(head: Group) -> tuple[float, ...]:
    return head.group("bbox_coder").numbers("target_stds") if head.has("bbox_coder") else ()


def _cascade_masks(model: Group, trained: list[Group], strides: Strides, kind: str) -> dict[str, Any]:
    """Return the masks of a cascade, whose heads are alike."""
    roi_head = model.group("roi_head")
    extractor = parts.roi_extractor(roi_head, "mask_roi_extractor", strides)
    for stage in trained:
        stage.expect("mask_size", 2 * extractor["output_size"])
    model.group("test_cfg").group("rcnn").expect("mask_thr_binary", 0.5)
    if isinstance(roi_head.values["mask_head"], Mapping):  # for all stages
        heads = [roi_head.group("mask_head")]
    else:
        heads = roi_head.groups("mask_head")
        if len(heads) != len(trained):
            raise roi_head.wrong("mask_head", "a head for each stage")
    for number, head in enumerate(heads):
        head.expect("with_conv_res", number > 0)
    layers = [mask_head(head, extractor, kind) for head in heads]
    for head in heads:
        head.check()
    if any(values != layers[0] for values in layers):
        raise roi_head.unsupported("mask_head")
    return {"mask_roi_extractor": extractor, "mask_head": layers[0]}
