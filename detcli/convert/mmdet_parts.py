"""The parts of MMDetection's models in our terms: backbones, necks, anchors, losses, assigners, RoI extractors.

An argument is only passed over (`Group.ignore`) when it changes no number once the weights are loaded; where there is
no counterpart here, only the value that changes nothing is let through (`Group.expect`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from detcli.convert.mmdet_group import Group
from detcli.errors import DetcliError
from detcli.registry import find, names, resolve

Strides: TypeAlias = tuple[int, ...] | None
"""The strides of a model's levels, lowest first; None where the backbone or neck is a plugin's."""


def part(group: Group, known: Mapping[str, Callable[[Group], Any]], slot: str) -> Any:
    """Return what the translator of the group's type makes of it; `slot` is what an error calls it.

    Raises `DetcliError` that names the type when neither `known` nor a plugin has it.
    """
    return translator(group, known, slot)(group)


def translator(group: Group, known: Mapping[str, Callable[..., Any]], slot: str) -> Callable[..., Any]:
    """Return the translator of the group's type, one of `known` or a plugin's; raises `DetcliError` as `part` does."""
    kind = group.kind
    if kind in known:
        return known[kind]
    if f"mmdet/{kind}" in names("converters"):
        found: Callable[..., Any] = resolve(find("converters", f"mmdet/{kind}").ref)
        return found
    listed = f" (there is {', '.join(known)})" if known else ""
    raise DetcliError(
        f"its config has {'an' if slot[0] in 'aeiou' else 'a'} {slot} of type {kind!r}, which is not supported{listed}."
    )


def norm(group: Group, key: str = "norm_cfg", default: str = "none") -> str:
    """Return what a head or neck normalises with: "none", "bn", "syncbn" or "gn"; `default` when it does not say."""
    if key not in group.values:
        return default
    if not group.has(key):
        return "none"
    settings = group.group(key)
    settings.expect("requires_grad", True)
    settings.expect("eps", 1e-5)
    return _norm_kind(settings)


def conv_norm(group: Group) -> str:
    """Return what a head or neck normalises with, and how its convolutions are made for it: also "gn_ws"."""
    return _with_convs(group, norm(group))


def _with_convs(group: Group, kind: str) -> str:
    """Return the kind of norm that goes with the convolutions of a `conv_cfg`."""
    if not group.has("conv_cfg"):
        return kind
    if group.group("conv_cfg").kind != "ConvWS" or kind != "gn":
        raise group.unsupported("conv_cfg")
    return "gn_ws"


def _norm_kind(settings: Group) -> str:
    kinds = {"BN": "bn", "SyncBN": "syncbn", "GN": "gn"}
    if settings.kind not in kinds:
        raise settings.unsupported("type")
    if settings.kind == "GN":
        settings.expect("num_groups", 32)
    return kinds[settings.kind]


def residual_network(group: Group) -> dict[str, Any]:
    """Return the arguments that all backbones have that are made as ResNet is, of other blocks."""
    settings = group.group("norm_cfg") if group.has("norm_cfg") else Group({"type": "BN"}, group.place("norm_cfg"))
    frozen = group.integer("frozen_stages", -1, least=-1)
    if frozen == 0:  # the stem alone
        raise group.unsupported("frozen_stages")
    num_stages = group.integer("num_stages", 4, least=1, most=4)
    out_stages = tuple(index + 1 for index in group.integers("out_indices", (0, 1, 2, 3)))
    if not set(out_stages) <= {1, 2, 3, 4} or max(out_stages, default=0) != num_stages:
        raise group.unsupported("num_stages" if max(out_stages, default=0) > num_stages else "out_indices")
    strides = group.integers("strides", (1, 2, 2, 2))
    dilations = group.integers("dilations", (1, 1, 1, 1))
    if min(len(strides), len(dilations)) < num_stages:
        raise group.wrong("strides", f"a list of {num_stages} numbers")
    group.expect("in_channels", 3)
    group.expect("stem_channels", None, 64)
    group.expect("base_channels", 64)
    group.ignore("init_cfg", "pretrained", "with_cp", "zero_init_residual")
    return {
        "depth": group.integer("depth"),
        "norm": _with_convs(group, _norm_kind(settings)),
        "norm_trained": settings.flag("requires_grad", True),
        "norm_eps": settings.number("eps", 1e-5),
        "norm_eval": group.flag("norm_eval", True),
        "frozen_stages": max(frozen, 0),
        "out_stages": out_stages,
        "strides": strides,
        "dilations": dilations,
        **_deformable(group),
    }


def _deformable(group: Group) -> dict[str, Any]:
    """Return the arguments of a backbone whose convolutions are deformable; none when they are not."""
    stages = _stages(group, "stage_with_dcn", chosen=False)
    if not group.has("dcn"):
        return {}
    settings = group.group("dcn")
    versions = {"DCN": "v1", "DCNv2": "v2"}
    if settings.kind not in versions:
        raise settings.unsupported("type")
    settings.expect("fallback_on_stride", False)
    name = "deformable_groups" if "deformable_groups" in settings.values else "deform_groups"
    return {
        "dcn": versions[settings.kind],
        "dcn_stages": stages,
        "dcn_groups": settings.integer(name, 1, least=1),
    }


def _stages(group: Group, key: str, *, chosen: bool) -> tuple[int, ...]:
    """Return the stages that a list of True and False chooses; absent, all are `chosen` or none."""
    flags = group.take(key) if group.has(key) else (chosen,) * 4
    if not (isinstance(flags, list | tuple) and len(flags) <= 4 and all(type(flag) is bool for flag in flags)):
        raise group.wrong(key, "a list of True and False")
    return tuple(stage for stage, flag in enumerate(flags, 1) if flag)


def _attention(group: Group) -> dict[str, Any]:
    """Return the arguments of a backbone whose blocks have attention, a plugin of theirs; none when they have none."""
    group.expect("gen_attention", None)
    group.ignore("stage_with_gen_attention")
    layers = group.groups("plugins") if group.has("plugins") else []
    # In early versions, global context has arguments of its own.
    stages = _stages(group, "stage_with_gcb", chosen=False)
    if group.has("gcb"):
        context = Group(group.take("gcb"), group.place("gcb"))
        context = Group({**context.values, "type": "ContextBlock"}, context.where)
        found = {"attention": part(context, {}, "layer of blocks"), "attention_stages": stages, "attention_after": 3}
        context.check()
        return found
    if not layers:
        return {}
    layer, *others = layers
    if others:
        raise group.unsupported("plugins")
    positions = {f"after_conv{number}": number for number in (1, 2, 3)}
    if layer.text("position") not in positions:
        raise layer.unsupported("position")
    found = {
        "attention": part(layer.group("cfg"), {}, "layer of blocks"),
        "attention_stages": _stages(layer, "stages", chosen=True),
        "attention_after": positions[layer.text("position")],
    }
    layer.check()
    return found


def _resnet(group: Group) -> dict[str, Any]:
    """Return ResNet and ResNeXt by the name of a backbone here that has the same weights' shapes and input."""
    wide = group.kind == "ResNeXt"
    group.expect("deep_stem", False)
    group.expect("avg_down", False)
    args = {
        "style": group.text("style", "pytorch"),
        "groups": group.integer("groups", 1, least=1) if wide else 1,
        "width_per_group": group.integer("base_width", 4, least=1) if wide else 64,
        **residual_network(group),
        **_attention(group),
    }
    init = group.take("init_cfg")
    checkpoint = group.take("pretrained") or (init.get("checkpoint") if isinstance(init, Mapping) else "")
    return {"name": _backbone_name(args, str(checkpoint)), **args}


SHAPES = ("depth", "style", "groups", "width_per_group", "norm")
"""The arguments of a ResNet that say which weights fit it."""
PLAIN: dict[str, Any] = {"style": "pytorch", "groups": 1, "width_per_group": 64, "norm": "bn"}


def _backbone_name(args: Mapping[str, Any], checkpoint: str) -> str:
    """Return the named backbone with these weights, or "resnet" where none has a name.

    Those of Detectron and Detectron2 are alike but for the pixel mean: their pretrained weights tell them apart.
    """
    # Batch norms have the same weights, whoever shares their statistics.
    shapes = {key: "bn" if args[key] == "syncbn" else args[key] for key in SHAPES}
    fitting = []
    for name in names("backbones"):
        known = find("backbones", name)
        if known.ref == find("backbones", "resnet").ref and "depth" in known.args:
            presets = {**PLAIN, **known.args}
            if all(presets[key] == shapes[key] for key in SHAPES):
                fitting.append(name)
    of_detectron = "detectron/" in checkpoint or checkpoint in ("open-mmlab://resnet50_caffe", DETECTRON_R101)
    contributed = checkpoint.startswith("open-mmlab://contrib/")
    fitting.sort(
        key=lambda name: (name.endswith("_detectron") != of_detectron, name.endswith("_contrib") != contributed)
    )
    return fitting[0] if fitting else "resnet"


DETECTRON_R101 = "open-mmlab://resnet101_caffe"

BACKBONES: dict[str, Callable[[Group], dict[str, Any]]] = {"ResNet": _resnet, "ResNeXt": _resnet}


def fpn(group: Group) -> dict[str, Any]:
    """Return the neck of an FPN."""
    extra = group.take("add_extra_convs", False)
    on_inputs = group.flag("extra_convs_on_inputs", True)
    if extra is True:
        extra = "on_input" if on_inputs else "on_output"
    if extra not in (False, "on_input", "on_lateral", "on_output"):
        raise group.unsupported("add_extra_convs")
    levels = len(group.integers("in_channels"))
    group.expect("end_level", -1, levels - 1)
    group.expect("no_norm_on_lateral", False)
    group.expect("act_cfg", None)
    group.expect("activation", None)
    group.ignore("init_cfg")
    return {
        "name": "fpn",
        "out_channels": group.integer("out_channels"),
        "num_outs": group.integer("num_outs", least=1, most=16),
        "start_level": group.integer("start_level", 0, most=levels - 1),
        "extra": extra or "pool",
        "relu_before_extra": group.flag("relu_before_extra_convs", False),
        "upsample": _upsampling(group),
        "norm": conv_norm(group),
    }


def _upsampling(group: Group) -> str:
    if not group.has("upsample_cfg"):
        return "nearest"
    settings = group.group("upsample_cfg")
    mode = settings.text("mode", "nearest")
    if mode not in ("nearest", "bilinear"):
        raise settings.unsupported("mode")
    return mode


NECKS: dict[str, Callable[[Group], dict[str, Any]]] = {"FPN": fpn}


def level_strides(backbone: Mapping[str, Any], neck: Mapping[str, Any] | None) -> Strides:
    """Return the strides of the levels that the heads see."""
    if find("backbones", backbone["name"]).ref != find("backbones", "resnet").ref or (neck and neck["name"] != "fpn"):
        return None
    every = tuple(accumulate(backbone["strides"], operator.mul, initial=4))[1:]
    strides = tuple(every[stage - 1] for stage in backbone["out_stages"])
    if neck is None:
        return strides
    strides = strides[neck["start_level"] :]
    return strides + tuple(strides[-1] * 2**step for step in range(1, neck["num_outs"] - len(strides) + 1))


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors of a head: their scales in strides, or the base and number of its octave's, ratios and style."""

    scales: tuple[float, ...]
    octave_base_scale: float | None
    scales_per_octave: int
    ratios: tuple[float, ...]
    style: str


def anchors(head: Group, strides: Strides) -> Anchors:
    """Return what a head's anchor generator makes at levels of `strides`."""
    group = head.group("anchor_generator")
    styles = {"AnchorGenerator": "exact", "LegacyAnchorGenerator": "v1"}
    if group.kind not in styles:
        raise group.unsupported("type")
    group.expect("center_offset", 0.0 if styles[group.kind] == "exact" else 0.5)
    group.expect("scale_major", True)
    group.expect("centers", None)
    group.expect("base_sizes", None, list(strides or ()))
    group.ignore("use_box_type")
    check_strides(group, strides)
    base, steps = None, 1
    if group.has("octave_base_scale"):
        group.expect("scales", None)
        base, steps = group.number("octave_base_scale"), group.integer("scales_per_octave", 1, least=1, most=64)
        scales = tuple(base * 2 ** (step / steps) for step in range(steps))
    else:
        group.expect("scales_per_octave", None)
        scales = group.numbers("scales")
    return Anchors(scales, base, steps, group.numbers("ratios"), styles[group.kind])


def check_strides(group: Group, strides: Strides, key: str = "strides") -> None:
    """Refuse strides that are not those of the levels; here a model takes them from its neck."""
    given = group.integers(key)
    if strides is not None and given != strides:
        raise group.unsupported(key)


def coder_style(head: Group, stds: tuple[float, ...]) -> str:
    """Return the style of a head's box coder, whose deltas must have deviations `stds` and no mean."""
    if not head.has("bbox_coder"):
        raise DetcliError(f"its config has no {head.place('bbox_coder')}.")
    group = head.group("bbox_coder")
    styles = {"DeltaXYWHBBoxCoder": "exact", "LegacyDeltaXYWHBBoxCoder": "v1"}
    if group.kind not in styles:
        raise group.unsupported("type")
    for key, wanted in (("target_means", (0.0, 0.0, 0.0, 0.0)), ("target_stds", stds)):
        if group.numbers(key, wanted) != wanted:
            raise group.unsupported(key)
    group.expect("clip_border", True)
    group.expect("add_ctr_clamp", False)
    group.ignore("ctr_clamp", "use_box_type")
    return styles[group.kind]


def _cross_entropy(group: Group) -> dict[str, Any]:
    for key, neutral in (
        ("use_mask", False),
        ("class_weight", None),
        ("ignore_index", None),
        ("avg_non_ignore", False),
    ):
        group.expect(key, neutral)
    return {"name": "cross_entropy", "sigmoid": group.flag("use_sigmoid", False)}


def _focal(group: Group) -> dict[str, Any]:
    group.expect("activated", False)
    if not group.flag("use_sigmoid", True):
        raise group.unsupported("use_sigmoid")
    return {"name": "focal", "alpha": group.number("alpha", 0.25), "gamma": group.number("gamma", 2.0)}


def _iou(group: Group) -> dict[str, Any]:
    group.ignore("eps")
    mode = "linear" if group.flag("linear", False) else group.text("mode", "log")
    if mode not in ("log", "linear"):
        raise group.unsupported("mode")
    return {"name": "iou", "mode": mode}


def _giou(group: Group) -> dict[str, Any]:
    group.ignore("eps")
    return {"name": "giou"}


def _bounded_iou(group: Group) -> dict[str, Any]:
    group.expect("eps", 1e-3)
    return {"name": "bounded_iou", "beta": group.number("beta", 0.2)}


LOSSES: dict[str, Callable[[Group], dict[str, Any]]] = {
    "CrossEntropyLoss": _cross_entropy,
    "FocalLoss": _focal,
    "SmoothL1Loss": lambda group: {"name": "smooth_l1", "beta": group.number("beta", 1.0)},
    "L1Loss": lambda group: {"name": "l1"},
    "IoULoss": _iou,
    "GIoULoss": _giou,
    "BoundedIoULoss": _bounded_iou,
}


def loss(head: Group, key: str, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the loss under `key` of a head; `default` is what that head has in MMDetection when it is absent."""
    group = head.group(key) if default is None or key in head.values else Group(default, head.place(key))
    head.ignore(key)
    group.expect("reduction", "mean")
    translated: dict[str, Any] = part(group, LOSSES, "loss")
    return {**translated, "weight": group.number("loss_weight", 1.0)}


def _max_iou(group: Group) -> dict[str, Any]:
    group.expect("ignore_wrt_candidates", True)
    group.expect("iou_calculator", None, {"type": "BboxOverlaps2D"})
    group.ignore("gpu_assign_thr")
    return {
        "name": "max_iou",
        "positive": group.number("pos_iou_thr"),
        "negative": group.number("neg_iou_thr"),
        "min_positive": group.number("min_pos_iou", 0.0),
        "match_low_quality": group.flag("match_low_quality", True),
        "claim_all": group.flag("gt_max_assign_all", True),
        "ignore_iof": group.number("ignore_iof_thr", -1),
    }


def _atss_assigner(group: Group) -> dict[str, Any]:
    group.expect("alpha", None)
    group.expect("iou_calculator", None, {"type": "BboxOverlaps2D"})
    group.expect("ignore_iof_thr", -1)
    return {"name": "atss", "topk": group.integer("topk")}


def _hungarian(group: Group) -> dict[str, Any]:
    classes, boxes, overlaps = (group.group(key) for key in ("cls_cost", "reg_cost", "iou_cost"))
    scores = {"ClassificationCost": "softmax", "FocalLossCost": "focal"}
    if classes.kind not in scores:
        raise classes.unsupported("type")
    classes.expect("alpha", 0.25)
    classes.expect("gamma", 2, 2.0)
    if boxes.kind != "BBoxL1Cost":
        raise boxes.unsupported("type")
    forms = {"xywh": "cxcywh", "xyxy": "xyxy"}
    if boxes.text("box_format", "xyxy") not in forms:
        raise boxes.unsupported("box_format")
    if overlaps.kind != "IoUCost":
        raise overlaps.unsupported("type")
    overlaps.expect("iou_mode", "giou")
    return {
        "name": "hungarian",
        "class_score": scores[classes.kind],
        "box_form": forms[boxes.text("box_format", "xyxy")],
        "class_cost": classes.number("weight", 1.0),
        "box_cost": boxes.number("weight", 1.0),
        "iou_cost": overlaps.number("weight", 1.0),
    }


ASSIGNERS: dict[str, Callable[[Group], dict[str, Any]]] = {
    "MaxIoUAssigner": _max_iou,
    "ATSSAssigner": _atss_assigner,
    "HungarianAssigner": _hungarian,
}


def assigner(train: Group) -> dict[str, Any]:
    """Return the assigner of a `train_cfg`, whose other settings must be neutral."""
    train.ignore("debug")
    train.expect("pos_weight", -1)
    translated: dict[str, Any] = part(train.group("assigner"), ASSIGNERS, "assigner")
    return translated


def sampler(train: Group) -> dict[str, Any]:
    """Return the sampler of a `train_cfg`."""
    group = train.group("sampler")
    if group.kind != "RandomSampler":
        raise group.unsupported("type")
    return {
        "name": "random",
        "num": group.integer("num"),
        "positive_fraction": group.number("pos_fraction"),
        "add_gt": group.flag("add_gt_as_proposals", True),
        "negative_ratio": group.number("neg_pos_ub", -1),
    }


def no_sampler(train: Group) -> None:
    """Refuse a sampler of a `train_cfg` that does not take everything."""
    if train.has("sampler") and train.group("sampler").kind != "PseudoSampler":
        raise train.unsupported("sampler")


def anchor_border(train: Group) -> int | None:
    """Return how many pixels a trained anchor may reach beyond its image; None: any number."""
    border = train.integer("allowed_border", -1, least=-1)
    return border if border >= 0 else None


def nms_threshold(group: Group) -> float:
    """Return the IoU of a `test_cfg`'s NMS."""
    nms = group.group("nms")
    if nms.text("type", "nms") != "nms":
        raise nms.unsupported("type")
    nms.expect("class_agnostic", False)
    nms.ignore("split_thr")
    return nms.number("iou_thr") if "iou_thr" in nms.values else nms.number("iou_threshold")


def selection(test: Group) -> dict[str, Any]:
    """Return how the detections of a dense head are chosen, from its `test_cfg`."""
    test.expect("min_bbox_size", 0)
    return {
        "score_threshold": test.number("score_thr"),
        "nms_pre": test.integer("nms_pre", least=1),
        "nms_threshold": nms_threshold(test),
        "max_per_image": test.integer("max_per_img"),
    }


def dense_head(model: Group) -> tuple[Group, Group, Group]:
    """Return the head, `train_cfg` and `test_cfg` of a model of one stage."""
    return model.group("bbox_head"), model.group("train_cfg"), model.group("test_cfg")


def tower(head: Group, default_norm: str) -> dict[str, Any]:
    """Return the arguments of the convolutions that a dense head starts with."""
    head.expect("conv_cfg", None)
    head.ignore("num_classes", "init_cfg", "train_cfg", "test_cfg")
    return {
        "stacked_convs": head.integer("stacked_convs", 4),
        "feat_channels": width(head, "feat_channels"),
        "norm": norm(head, default=default_norm),
    }


def atss_layers(head: Group, train: Group, strides: Strides) -> dict[str, Any]:
    """Return the arguments of a head with the layers of ATSS: one square anchor a location, boxes compared decoded."""
    made = anchors(head, strides)
    generator = head.group("anchor_generator")
    if made.style != "exact":
        raise generator.unsupported("type")
    if made.ratios != (1.0,):
        raise generator.unsupported("ratios")
    if len(made.scales) != 1:
        raise generator.unsupported("scales" if made.octave_base_scale is None else "scales_per_octave")
    if coder_style(head, (0.1, 0.1, 0.2, 0.2)) != "exact":
        raise head.unsupported("bbox_coder")
    if anchor_border(train) is not None:
        raise train.unsupported("allowed_border")
    head.expect("pred_kernel_size", 3)
    head.expect("reg_decoded_bbox", True)
    no_sampler(train)
    return {**tower(head, "gn"), "anchor_scale": made.scales[0]}


def width(head: Group, key: str) -> int | None:
    """Return how wide a head's convolutions are, by its `key`; None: as its input."""
    channels = head.integer(key, 256)
    return None if channels == head.integer("in_channels", 256) else channels


CROSS_ENTROPY = {"type": "CrossEntropyLoss", "use_sigmoid": True}
RPN_SMOOTH_L1 = {"type": "SmoothL1Loss", "beta": 1 / 9}


def rpn_head(model: Group, train: Group, strides: Strides) -> dict[str, Any]:
    """Return the RPN of a model, trained as its `train_cfg.rpn` says, without how its proposals are chosen."""
    head = model.group("rpn_head")
    if head.kind != "RPNHead":
        raise head.unsupported("type")
    head.expect("num_convs", 1)
    head.expect("num_classes", 1)
    head.expect("reg_decoded_bbox", False)
    head.ignore("init_cfg")
    made = anchors(head, strides)
    return {
        "name": "rpn",
        "channels": width(head, "feat_channels"),
        "anchor_scales": made.scales,
        "anchor_ratios": made.ratios,
        "anchor_border": anchor_border(train),
        "anchor_style": made.style,
        "assigner": assigner(train),
        "sampler": sampler(train),
        "loss_cls": loss(head, "loss_cls", CROSS_ENTROPY),
        "loss_bbox": loss(head, "loss_bbox", RPN_SMOOTH_L1),
        "coder_style": coder_style(head, (1.0, 1.0, 1.0, 1.0)),
    }


@dataclass(frozen=True, slots=True)
class Proposals:
    """How many boxes of a level enter NMS, its IoU, and how many leave it."""

    nms_pre: int
    nms_threshold: float
    max_per_image: int


def proposals(group: Group) -> Proposals:
    """Return how proposals are chosen, from `rpn_proposal` or a `test_cfg`'s `rpn`, in the spelling of any version."""
    group.expect("min_bbox_size", 0)
    group.expect("nms_across_levels", False)
    count = group.integer("max_num" if "max_num" in group.values else "max_per_img")
    # With no more of each level than of all, the limit of a level changes nothing.
    if group.integer("nms_post", count) < count:
        raise group.unsupported("nms_post")
    threshold = group.number("nms_thr") if "nms_thr" in group.values else nms_threshold(group)
    return Proposals(group.integer("nms_pre", least=1), threshold, count)


def roi_extractor(head: Group, key: str, strides: Strides) -> dict[str, Any]:
    """Return the RoI extractor of a head; translators of a plugin's take the strides of the levels, too."""
    group = head.group(key)
    found: dict[str, Any] = translator(group, {"SingleRoIExtractor": _single_level}, "RoI extractor")(group, strides)
    return found


def _single_level(group: Group, strides: Strides) -> dict[str, Any]:
    settings = {"finest_scale": group.integer("finest_scale", 56)}
    layer = group.group("roi_layer")
    modulated = {"DeformRoIPoolPack": False, "ModulatedDeformRoIPoolPack": True}
    if layer.kind not in modulated:
        return {"name": "roi_align", **roi_align(group, strides), **settings}
    layer.ignore("output_channels")
    return {
        "name": "deform_roi_pool",
        "output_size": layer.integer("output_size"),
        "sampling_ratio": layer.integer("sampling_ratio", 0),
        "modulated": modulated[layer.kind],
        "gamma": layer.number("gamma", 0.1),
        "fc_channels": layer.integer("deform_fc_channels", 1024, least=1),
        **_levels(group, strides),
        **settings,
    }


def roi_align(group: Group, strides: Strides) -> dict[str, Any]:
    """Return the arguments of an RoI extractor by RoIAlign, and of the levels that it works on."""
    layer = group.group("roi_layer")
    if layer.kind != "RoIAlign":
        raise layer.unsupported("type")
    layer.expect("pool_mode", "avg")
    layer.expect("clockwise", False)
    layer.ignore("use_torchvision")
    return {
        "output_size": layer.integer("out_size" if "out_size" in layer.values else "output_size"),
        "sampling_ratio": layer.integer("sample_num" if "sample_num" in layer.values else "sampling_ratio", 0),
        "aligned": layer.flag("aligned", True),
        **_levels(group, strides),
    }


def _levels(group: Group, strides: Strides) -> dict[str, Any]:
    """Return the argument of an extractor that works on other levels than the lowest four."""
    group.ignore("out_channels", "init_cfg")
    used = group.integers("featmap_strides")
    if strides is not None and used != strides[: len(used)]:
        raise group.unsupported("featmap_strides")
    return {} if strides is not None and len(used) == min(4, len(strides)) else {"num_levels": len(used)}
