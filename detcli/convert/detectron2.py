"""Checkpoints of Detectron2: model-zoo files (.pkl), those of its checkpointer (.pth) and ImageNet backbones.

A model-zoo file is ``{"model", "__author__"}``; with ``"matching_heuristics"``, each of its names is the end of a
model's name, and of several that fit, the longest counts (Detectron2's checkpoint/c2_model_loading.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detcli.convert.rules import Entry, Rule, Unwrapped, is_weights, left_out, only_tensors

OWN_NAME = re.compile(r"proposal_generator\.|backbone\.(bottom_up|fpn_)|(backbone\.)?(stem\.conv1|res[2-5]\.\d+)\.")
"""A name that no other code base has."""

BODY = r"(?:backbone\.)?(?:bottom_up\.)?"
"""What comes before the name of a ResNet's layer, with FPN, without it, and in a file of a backbone alone."""

PREFIXES = {
    "bottom_up": "backbone",
    "fpn": "backbone",
    "top_block": "backbone",
    "rpn_head": "proposal_generator",
    "anchor_generator": "proposal_generator",
    "objectness_logits": "proposal_generator.rpn_head",
    "anchor_deltas": "proposal_generator.rpn_head",
    "box_head": "roi_heads",
    "box_predictor": "roi_heads",
    "mask_head": "roi_heads",
    "keypoint_head": "roi_heads",
    "cls_subnet": "head",
    "bbox_subnet": "head",
}
"""Where a part of this name is, which a shortened name starts with."""

REASONS = {
    "optimizer": "the state of the optimiser, for training to go on there",
    "scheduler": "the state of the schedule, for training to go on there",
    "trainer": "the state of the training loop, for training to go on there",
}


def recognises(content: Any, path: Path) -> bool:
    """Return whether `content` is a checkpoint of Detectron2, of Detectron2's own layers."""
    if not isinstance(content, Mapping) or content.get("__author__") == "Caffe2":
        return False
    weights = content.get("model", content)
    return is_weights(weights) and ("__author__" in content or any(OWN_NAME.match(name) for name in weights))


def unwrap(content: Any) -> Unwrapped:
    """Return the weights of a checkpoint, shortened names completed.

    Raises `DetcliError` for weights that are no tensors, and for tensors in a place that is not known.
    """
    if "model" not in content:
        return Unwrapped(only_tensors(content, "a checkpoint of Detectron2"))
    tensors = only_tensors(content["model"], "a checkpoint of Detectron2")
    dropped = left_out(content, ("model",), REASONS, "Detectron2")
    if content.get("matching_heuristics"):
        tensors, shorter = _complete(tensors)
        dropped += shorter
    return Unwrapped(tensors, {}, dropped)


def rules(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> tuple[Rule, ...]:
    """Return the rules of names of a checkpoint.

    FPN's levels count from its lowest here. A norm is called after its kind here: one without statistics is a group
    norm. The mask head of a cascade is that of its first stage here.
    """
    alone = is_backbone(tensors)
    levels = [int(number) for name in tensors for number in re.findall(r"^backbone\.fpn_lateral(\d)\.", name)]
    lowest = min(levels, default=2)
    masks = "roi_head.mask_head" + (".0" if any(name.startswith("roi_heads.box_head.0.") for name in tensors) else "")
    return (
        Rule(r"pixel_(mean|std)", None, why="the pixel mean and deviation, which the config has"),
        Rule(
            r"(proposal_generator\.)?anchor_generator\.cell_anchors\.\d+",
            None,
            why="the shapes of anchors, which follow from the config",
        ),
        Rule(rf"{BODY}stem\.fc\.(weight|bias)", None, why="the classifier of ImageNet's classes"),
        *_resnet(BODY, "" if alone else "backbone.", (2, 3, 4, 5), _norm(tensors, rf"{BODY}(stem|res\d)\.")),
        *_fpn(lowest, _norm(tensors, r"backbone\.fpn_")),
        Rule(r"proposal_generator\.rpn_head\.conv\.(.*)", r"rpn_head.rpn_conv.\1"),
        Rule(r"proposal_generator\.rpn_head\.objectness_logits\.(.*)", r"rpn_head.rpn_cls.\1"),
        Rule(r"proposal_generator\.rpn_head\.anchor_deltas\.(.*)", r"rpn_head.rpn_reg.\1"),
        *_resnet(r"roi_heads\.", "roi_head.shared_head.", (5,), _norm(tensors, r"roi_heads\.res5\.")),
        *_box_head(_norm(tensors, r"roi_heads\.box_head\.")),
        *_convs(r"roi_heads\.mask_head\.mask_fcn", f"{masks}.convs", _norm(tensors, r"roi_heads\.mask_head\.")),
        Rule(r"roi_heads\.mask_head\.deconv\.(.*)", rf"{masks}.upsample.\1"),
        Rule(r"roi_heads\.mask_head\.predictor\.(.*)", rf"{masks}.conv_logits.\1"),
        *_convs(r"roi_heads\.keypoint_head\.conv_fcn", "roi_head.keypoint_head.convs", "bn"),
        Rule(r"roi_heads\.keypoint_head\.score_lowres\.(.*)", r"roi_head.keypoint_head.upsample.\1"),
        *_semantic_head(_norm(tensors, r"sem_seg_head\.")),
    )


def is_backbone(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of a ResNet alone."""
    return all(re.match(rf"{BODY}(stem|res\d)\.", name) for name in tensors)


def _norm(tensors: Mapping[str, Tensor], part: str) -> str:
    """Return what norms of a part, whose names start with the pattern `part`, are called here."""
    norms = [name for name in tensors if re.match(part, name) and ".norm." in name]
    return "bn" if not norms or any(name.endswith(".running_var") for name in norms) else "gn"


def _resnet(theirs: str, ours: str, stages: tuple[int, ...], norm: str) -> tuple[Rule, ...]:
    """Return the rules of a ResNet's stages (and stem); `theirs` is a pattern of what comes before, `ours` a text."""
    found = [
        Rule(rf"{theirs}stem\.conv1\.weight", f"{ours}conv1.weight"),
        Rule(rf"{theirs}stem\.conv1\.norm\.(\w+)", rf"{ours}{norm}1.\1"),
    ]
    for stage in stages:
        block, layer = rf"{theirs}res{stage}\.(\d+)\.", rf"{ours}layer{stage - 1}.\1."
        found += [
            Rule(rf"{block}shortcut\.weight", rf"{layer}downsample.0.weight"),
            Rule(rf"{block}shortcut\.norm\.(\w+)", rf"{layer}downsample.1.\2"),
            Rule(rf"{block}conv(\d)\.weight", rf"{layer}conv\2.weight"),
            Rule(rf"{block}conv(\d)\.norm\.(\w+)", rf"{layer}{norm}\2.\3"),
            Rule(rf"{block}conv2_offset\.(weight|bias)", rf"{layer}conv2.conv_offset.\2"),
        ]
    return tuple(found)


def _fpn(lowest: int, norm: str) -> tuple[Rule, ...]:
    """Return the rules of a pyramid whose lowest level has this number."""
    found = []
    for level in range(lowest, 8):
        number = level - lowest
        for theirs, ours in (("lateral", "lateral_convs"), ("output", "fpn_convs")):
            found += [
                Rule(rf"backbone\.fpn_{theirs}{level}\.(weight|bias)", rf"neck.{ours}.{number}.conv.\1"),
                Rule(rf"backbone\.fpn_{theirs}{level}\.norm\.(\w+)", rf"neck.{ours}.{number}.{norm}.\1"),
            ]
        found.append(Rule(rf"backbone\.top_block\.p{level}\.(weight|bias)", rf"neck.fpn_convs.{number}.conv.\1"))
    return tuple(found)


def _convs(theirs: str, ours: str, norm: str) -> tuple[Rule, ...]:
    """Return the rules of convolutions that count from 1 there and from 0 here."""
    return tuple(
        rule
        for number in range(1, 9)
        for rule in (
            Rule(rf"{theirs}{number}\.(weight|bias)", rf"{ours}.{number - 1}.conv.\1"),
            Rule(rf"{theirs}{number}\.norm\.(\w+)", rf"{ours}.{number - 1}.{norm}.\1"),
        )
    )


def _box_head(norm: str) -> tuple[Rule, ...]:
    """Return the rules of the box head, and of those of a cascade, which have numbers."""
    stages = [("", ""), *((rf"{stage}\.", f"{stage}.") for stage in range(3))]
    return tuple(
        rule
        for theirs, ours in stages
        for rule in (
            *_convs(rf"roi_heads\.box_head\.{theirs}conv", f"roi_head.bbox_head.{ours}shared_convs", norm),
            *(
                Rule(
                    rf"roi_heads\.box_head\.{theirs}fc{number}\.(.*)",
                    rf"roi_head.bbox_head.{ours}shared_fcs.{number - 1}.\1",
                )
                for number in range(1, 5)
            ),
            Rule(rf"roi_heads\.box_predictor\.{theirs}cls_score\.(.*)", rf"roi_head.bbox_head.{ours}fc_cls.\1"),
            Rule(rf"roi_heads\.box_predictor\.{theirs}bbox_pred\.(.*)", rf"roi_head.bbox_head.{ours}fc_reg.\1"),
        )
    )


def _semantic_head(norm: str) -> tuple[Rule, ...]:
    """Return the rules of Panoptic FPN's head of stuff, named here as in MMDetection."""
    found = [Rule(r"sem_seg_head\.predictor\.(.*)", r"semantic_head.conv_logits.\1")]
    for level in range(2, 6):
        # Convolutions and enlargements take turns there.
        for number in range(3):
            theirs = rf"sem_seg_head\.p{level}\.{2 * number}\."
            ours = f"semantic_head.conv_upsample_layers.{level - 2}.conv.{number}"
            found += [
                Rule(rf"{theirs}(weight|bias)", rf"{ours}.conv.\1"),
                Rule(rf"{theirs}norm\.(\w+)", rf"{ours}.{norm}.\1"),
            ]
    return tuple(found)


def _complete(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Entry]]:
    """Return tensors by whole names, and those that are left out since a longer name ends as theirs does.

    A layer of a ResNet stands alone: whether it is inside a pyramid makes no difference to the rules.
    """
    whole = {name: _whole(name) for name in tensors}
    longest: dict[str, str] = {}
    for name in tensors:
        longest[whole[name]] = max(longest.get(whole[name], ""), name, key=len)
    dropped = [
        Entry(name, None, why=f"{longest[whole[name]]} is a longer name that ends so")
        for name in tensors
        if longest[whole[name]] != name
    ]
    return {key: tensors[name] for key, name in longest.items()}, dropped


def _whole(name: str) -> str:
    first = "fpn" if name.startswith("fpn_") else name.split(".")[0]
    while first in PREFIXES:
        name = f"{PREFIXES[first]}.{name}"
        first = name.split(".")[0]
    return re.sub(rf"^{BODY}(?=(?:stem|res\d)\.)", "", name)
