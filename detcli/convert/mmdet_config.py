"""MMDetection's configs as ours: from the Python text in a checkpoint to a partial run config.

`parse` turns the text into plain values, and runs nothing. `translate` says in our terms what a config of MMDetection
0.x to 3.x says. A config is a promise about numbers: what has no counterpart here is an error that names it.

A head that belongs to one paper is translated by that paper's plugin: its manifest names, in the slot ``converters``
under ``mmdet/TYPE``, a function that takes the model's `Group` and the strides of its levels and returns the model.
Backbones, necks, losses, assigners and RoI extractors of plugins are found in the same way; their functions take the
part's own `Group`, and those of RoI extractors the strides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from detcli.convert import mmdet_training as training
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import BACKBONES, NECKS, level_strides, part, translator
from detcli.convert.mmdet_text import parse as parse
from detcli.errors import DetcliError
from detcli.registry import find
from detcli.signature import read


def translate(
    config: Mapping[str, Any], notes: list[str] | None = None, *, legacy: bool | None = None
) -> dict[str, Any]:
    """Return the partial run config of an MMDetection config: model, input, data, optim, sched and train.

    `legacy` says that it is of MMDetection 0.x or 1.x, whose anchors, box coder and RoIAlign are then asked for; None:
    its form decides. What only concerns training or evaluation and has no counterpart here is left out and put into
    `notes`, or an error without them. Raises `DetcliError` that names the type or argument that is not supported.
    """
    whole = Group(config, "")
    model = _normal_model(whole, legacy)
    train, test = training.dataset(config, "train"), training.dataset(config, "test")
    result = {"model": _model(Group(model, "model")), "input": training.input(whole, train, test)}
    parts: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
        ("data", "evaluation", lambda: training.test_data(test)),
        ("data", "training", lambda: training.train_data(train, result.get("data", {}).get("keep_ratio", True))),
        ("optim", "training", lambda: training.optim(config)),
        ("sched", "training", lambda: training.sched(config, train.times)),
        ("train", "training", lambda: training.train(config)),
        ("data", "training", lambda: training.sampling(config, train)),
    ]
    for section, purpose, translated in parts:
        try:
            result[section] = {**result.get(section, {}), **translated()}
        except DetcliError as error:
            if notes is None:
                raise
            notes.append(f"for {purpose}: {error}")
    return {section: values for section, values in result.items() if values}


def _model(model: Group) -> dict[str, Any]:
    """Return the model; its head's translator decides which it is."""
    for place in ("roi_head", "bbox_head", "rpn_head"):
        if model.has(place):
            head = Group(model.values[place], model.place(place))
            break
    else:
        raise DetcliError(f"its config has a model of type {model.kind!r}, which is not supported.")
    model.ignore("pretrained", "init_cfg", "data_preprocessor")
    translate_head = translator(head, {}, "head")
    backbone = part(model.group("backbone"), BACKBONES, "backbone")
    neck = part(model.group("neck"), NECKS, "neck") if model.has("neck") else None
    translated = translate_head(model, level_strides(backbone, neck))
    model.check()
    name = translated["name"]
    has_neck = any(parameter.slot == "necks" for parameter in read(find("models", name).ref))
    return {**translated, "name": name, "backbone": backbone, **({"neck": neck} if neck or has_neck else {})}


# Versions: what a config of 1.x and 3.x says, in the form of 2.x.

TWO_STAGE = {
    **dict.fromkeys(("FastRCNN", "FasterRCNN", "MaskRCNN", "TwoStageDetector"), "StandardRoIHead"),
    "CascadeRCNN": "CascadeRoIHead",
    "HybridTaskCascade": "HybridTaskCascadeRoIHead",
}
"""The type of the RoI head that 2.x has in each model of 1.x with two stages."""

ROI_PARTS = (
    *("bbox_roi_extractor", "bbox_head", "mask_roi_extractor", "mask_head", "shared_head"),
    *("num_stages", "interleaved", "mask_info_flow", "semantic_roi_extractor", "semantic_head"),
)


def _normal_model(whole: Group, legacy: bool | None) -> dict[str, Any]:
    """Return the model in the form of MMDetection 2.x."""
    model = dict(whole.group("model").values)
    for key in ("train_cfg", "test_cfg"):
        # In 3.x the ones outside are the training loops.
        if model.get(key) is None:
            model[key] = whole.values.get(key)
    if isinstance(model.get("backbone"), Mapping) and model.get("pretrained"):
        model["backbone"] = {"pretrained": model["pretrained"], **model["backbone"]}
    if legacy is None:
        heads = [head for head in (model.get("rpn_head"), model.get("bbox_head")) if isinstance(head, Mapping)]
        flat = any(key in head for head in heads for key in ("anchor_strides", "anchor_ratios", "target_means"))
        counts_background = any(head.get("num_classes") in (21, 81) for head in heads)
        legacy = "roi_head" not in model and (flat or counts_background or "bbox_roi_extractor" in model)
    if "bbox_roi_extractor" in model:
        kind = model.get("type")
        if not isinstance(kind, str) or kind not in TWO_STAGE:
            raise DetcliError(f"its config has a model of type {kind!r}, which is not supported.")
        roi_head = {key: model.pop(key) for key in ROI_PARTS if key in model}
        model["roi_head"] = {"type": TWO_STAGE[kind], **roi_head}
        if isinstance(model["train_cfg"], Mapping) and "stage_loss_weights" in model["train_cfg"]:
            model["train_cfg"] = train = dict(model["train_cfg"])
            model["roi_head"]["stage_loss_weights"] = train.pop("stage_loss_weights")
    for key in ("rpn_head", "bbox_head"):
        if isinstance(model.get(key), Mapping):
            model[key] = _normal_head(model[key], legacy)
    if isinstance(model["train_cfg"], Mapping):
        model["train_cfg"], early = _without_losses(model["train_cfg"])
        for key, losses in early.items():
            if isinstance(model.get(key), Mapping):
                model[key] = {**model[key], **losses}
                model[key].pop("use_sigmoid_cls", None)
    if isinstance(model.get("roi_head"), Mapping):
        model["roi_head"] = _normal_roi_head(model["roi_head"], legacy)
    return model


def _without_losses(train: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return a `train_cfg` without the losses that it had before 0.6, and those of each head."""
    rest, losses = dict(train), {}
    if isinstance(rest.get("rpn"), Mapping) and "smoothl1_beta" in rest["rpn"]:
        rest["rpn"] = dict(rest["rpn"])
        smooth_l1 = {"type": "SmoothL1Loss", "beta": rest["rpn"].pop("smoothl1_beta")}
        losses["rpn_head"] = {"loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True}, "loss_bbox": smooth_l1}
    if "smoothl1_beta" in rest and "gamma" in rest:
        smooth_l1 = {"type": "SmoothL1Loss", "beta": rest.pop("smoothl1_beta")}
        focal = {"type": "FocalLoss", "gamma": rest.pop("gamma"), "alpha": rest.pop("alpha", 0.25)}
        losses["bbox_head"] = {"loss_cls": focal, "loss_bbox": smooth_l1}
    return rest, losses


def _normal_head(head: Mapping[str, Any], legacy: bool) -> dict[str, Any]:
    """Return a head whose anchors and box coder have settings of their own."""
    result = dict(head)
    moved = {"anchor_scales": "scales", "anchor_ratios": "ratios", "anchor_strides": "strides"}
    moved |= {"anchor_base_sizes": "base_sizes"}
    moved |= {key: key for key in ("octave_base_scale", "scales_per_octave")}
    generator = {new: result.pop(old) for old, new in moved.items() if old in result}
    if generator:
        kind = {"type": "LegacyAnchorGenerator", "center_offset": 0.5} if legacy else {"type": "AnchorGenerator"}
        result["anchor_generator"] = {"ratios": [0.5, 1.0, 2.0], **generator, **kind}
    coder = {key: result.pop(key) for key in ("target_means", "target_stds") if key in result}
    if coder or generator:
        result["bbox_coder"] = {"type": "LegacyDeltaXYWHBBoxCoder" if legacy else "DeltaXYWHBBoxCoder", **coder}
    return result


def _normal_roi_head(head: Mapping[str, Any], legacy: bool) -> dict[str, Any]:
    result = dict(head)
    boxes = result.get("bbox_head")
    if isinstance(boxes, Mapping):
        result["bbox_head"] = _normal_box_head(boxes, legacy)
    elif isinstance(boxes, list | tuple):
        result["bbox_head"] = [_normal_box_head(box, legacy) if isinstance(box, Mapping) else box for box in boxes]
    for key in ("bbox_roi_extractor", "mask_roi_extractor", "semantic_roi_extractor"):
        extractor = result.get(key)
        if legacy and isinstance(extractor, Mapping) and isinstance(extractor.get("roi_layer"), Mapping):
            result[key] = {**extractor, "roi_layer": {"aligned": False, **extractor["roi_layer"]}}
    return result


def _normal_box_head(head: Mapping[str, Any], legacy: bool) -> dict[str, Any]:
    box = _normal_head(head, legacy)
    if box.get("type") == "SharedFCBBoxHead":
        box |= {"type": "Shared2FCBBoxHead", "num_shared_fcs": box.pop("num_fcs", 2)}
    return box
