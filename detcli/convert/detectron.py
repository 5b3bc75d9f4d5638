"""Checkpoints of Detectron (Caffe2): its detectors and the ImageNet backbones that it starts from (.pkl).

A detector is ``{"blobs", "cfg"}``; the oldest ones and backbones are the blobs alone. The background is class 0 there;
batch norms are fused into a scale and a bias (`_bn_s`, `_bn_b`), so that their mean is 0 and their variance exactly 1.
The heads that all levels of a pyramid share have the number of its lowest level. Blobs are named after the last block
of a stage, whichever that is. Facts: Detectron2's checkpoint/c2_model_loading.py; Detectron's utils/net.py for box
weights; its modeling/retinanet_heads.py and modeling/FPN.py for what Detectron2 does not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detcli.convert.rules import (
    BACKGROUND_LAST,
    BOXES_WITHOUT_BACKGROUND,
    WITHOUT_BACKGROUND,
    Added,
    Change,
    Rule,
    Unwrapped,
    drop_background,
    is_weights,
    left_out,
    only_tensors,
)

OWN_NAME = re.compile(r"(conv1|res[2-5]_\d+_branch\w+|conv_rpn(_fpn\d)?|cls_score)_w")
"""A name that no other code base has."""

PARTS = {"w": "weight", "b": "bias"}

NORMS = {
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "rm": "running_mean",
    "running_mean": "running_mean",
    "riv": "running_var",
    "running_var": "running_var",
}

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""What box deltas are divided by here; see `_box_change`."""

FUSED = "its statistics are fused into its scale and bias there"

DROPPED = (
    Rule(r".*_momentum", None, why="the momentum of the optimiser, for training to go on there"),
    Rule(r"(fc1000|pred)_[wb]", None, why="the classifier of ImageNet's classes"),
    Rule(r"conv1_b", None, why="a batch norm follows the stem, which takes its mean out again"),
    Rule(r"kps_score_[wb]", None, why="it enlarges bilinearly, and is not learned"),
)


def recognises(content: Any, path: Path) -> bool:
    """Return whether `content` is a checkpoint or an ImageNet backbone of Detectron."""
    if not isinstance(content, Mapping):
        return False
    blobs = _blobs(content)
    return is_weights(blobs) and any(OWN_NAME.fullmatch(name) for name in blobs)


def unwrap(content: Any) -> Unwrapped:
    """Return the blobs of a checkpoint; its meta has `box_weights` (what dx, dy, dw, dh were divided by), where known.

    Raises `DetcliError` for blobs that are no tensors, and for tensors in a place that is not known.
    """
    blobs = only_tensors(_blobs(content), "a checkpoint of Detectron")
    if blobs.keys() == content.keys():
        return Unwrapped(blobs)
    reasons = {"cfg": "the settings of training there; box weights are taken from it"}
    dropped = left_out(content, ("blobs", "model"), reasons, "Detectron")
    meta = {}
    if isinstance(content.get("cfg"), str):
        meta["box_weights"] = _box_weights(content["cfg"])
    return Unwrapped(blobs, meta, dropped)


def rules(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> tuple[Rule, ...]:
    """Return the rules of names of a checkpoint; without a pyramid and fully connected layers, it is a C4 model."""
    body = "" if is_backbone(tensors) else "backbone."
    c4 = "cls_score_w" in tensors and not any(name.startswith(("fc6_", "fpn_", "head_conv")) for name in tensors)
    fused = not any(re.search(r"_bn_(rm|riv|running_mean|running_var)$", name) for name in tensors)
    levels = [int(number) for name in tensors for number in re.findall(r"^fpn_inner_res(\d)_", name)]
    box_change = _box_change((meta or {}).get("box_weights", BOX_WEIGHTS))
    return (
        *DROPPED,
        *_resnet(body, "roi_head.shared_head." if c4 else body, fused),
        *_fpn(min(levels, default=2)),
        *_layer(r"conv_rpn(?:_fpn\d)?", "rpn_head.rpn_conv"),
        *_layer(r"rpn_cls_logits(?:_fpn\d)?", "rpn_head.rpn_cls"),
        *_layer(r"rpn_bbox_pred(?:_fpn\d)?", "rpn_head.rpn_reg"),
        *_layer("fc6", "roi_head.bbox_head.shared_fcs.0"),
        *_layer("fc7", "roi_head.bbox_head.shared_fcs.1"),
        *_layer("cls_score", "roi_head.bbox_head.fc_cls", BACKGROUND_LAST),
        *_layer("bbox_pred", "roi_head.bbox_head.fc_reg", box_change),
        *_convs("head_conv", "roi_head.bbox_head.shared_convs"),
        *_convs(r"_\[mask\]_fcn", "roi_head.mask_head.convs"),
        *_layer("conv5_mask", "roi_head.mask_head.upsample"),
        *_layer("mask_fcn_logits", "roi_head.mask_head.conv_logits", WITHOUT_BACKGROUND),
        *_convs("conv_fcn", "roi_head.keypoint_head.convs"),
        *_layer("kps_score_lowres", "roi_head.keypoint_head.upsample"),
    )


def is_backbone(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of a ResNet alone, with its classifier or without it."""
    return all(re.match(r"(res_)?conv1_|res\d_|fc1000_|pred_", name) for name in tensors)


def _blobs(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the blobs of a file: Detectron's own, one that Detectron2 has marked as such, or a bare one."""
    key = "model" if content.get("__author__") == "Caffe2" else "blobs"
    blobs = content.get(key, content)
    return blobs if isinstance(blobs, Mapping) else content


def _layer(theirs: str, ours: str, change: Change | None = None) -> tuple[Rule, ...]:
    """Return the rules of a layer's weight and bias; `theirs` is a pattern without groups."""
    return tuple(Rule(f"{theirs}_{short}", f"{ours}.{part}", change) for short, part in PARTS.items())


def _norms(theirs: str, ours: str, batch: str, group: str, fused: bool) -> tuple[Rule, ...]:
    """Return the rules of the norm after a layer, in the module `ours` (with a dot, or nothing).

    A fused batch norm gets statistics beside its scale.
    """
    statistics = (
        Added(f"{ours}{batch}.running_mean", torch.zeros_like, FUSED),
        Added(f"{ours}{batch}.running_var", torch.ones_like, FUSED),
    )
    return tuple(
        rule
        for short, part in NORMS.items()
        for rule in (
            Rule(f"{theirs}_bn_{short}", f"{ours}{batch}.{part}", adds=statistics if fused and short == "s" else ()),
            Rule(f"{theirs}_gn_{short}", f"{ours}{group}.{part}"),
        )
    )


def _resnet(body: str, last: str, fused: bool) -> tuple[Rule, ...]:
    """Return the rules of a ResNet, whose stem and first stages are in `body` here and whose last one is in `last`."""
    found = [
        Rule(r"conv1_w", f"{body}conv1.weight"),
        *_norms("res_conv1", body, "bn1", "gn1", fused),
        *_norms("conv1", body, "bn1", "gn1", fused),
    ]
    for stage in range(2, 6):
        block = rf"{last if stage == 5 else body}layer{stage - 1}.\1."
        for branch, number in (("2a", 1), ("2b", 2), ("2c", 3)):
            theirs = rf"res{stage}_(\d+)_branch{branch}"
            found.append(Rule(f"{theirs}_w", f"{block}conv{number}.weight"))
            found += _norms(theirs, block, f"bn{number}", f"gn{number}", fused)
        theirs = rf"res{stage}_(\d+)_branch1"
        found.append(Rule(f"{theirs}_w", f"{block}downsample.0.weight"))
        found += _norms(theirs, block, "downsample.1", "downsample.1", fused)
    return tuple(found)


def _fpn(lowest: int) -> tuple[Rule, ...]:
    """Return the rules of a pyramid on the stages from `lowest` up to 5."""
    found: list[Rule] = []
    for stage in range(lowest, 6):
        for theirs, ours in (
            (rf"fpn_inner_res{stage}_\d+_sum(?:_lateral)?", f"neck.lateral_convs.{stage - lowest}"),
            (rf"fpn_res{stage}_\d+_sum", f"neck.fpn_convs.{stage - lowest}"),
        ):
            found += [*_layer(theirs, f"{ours}.conv"), *_norms(theirs, f"{ours}.", "bn", "gn", fused=False)]
    for level in (6, 7):
        found += _layer(f"fpn_{level}", f"neck.fpn_convs.{level - lowest}.conv")
    return tuple(found)


def _convs(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Return the rules of convolutions that count from 1 there and from 0 here."""
    return tuple(
        rule
        for number in range(1, 9)
        for rule in (
            *_layer(f"{theirs}{number}", f"{ours}.{number - 1}.conv"),
            *_norms(f"{theirs}{number}", f"{ours}.{number - 1}.", "bn", "gn", fused=False),
        )
    )


def _box_weights(cfg: str) -> tuple[float, ...]:
    """Return MODEL.BBOX_REG_WEIGHTS of a config's text; models from before there was that setting had 1, 1, 1, 1."""
    number = r"\s*(?:-\s*)?([0-9.]+)\s*,?"
    match = re.search(rf"BBOX_REG_WEIGHTS:\s*(?:!!python/tuple)?\s*[\[(]?{number * 4}", cfg)
    return tuple(float(value) for value in match.groups()) if match else (1.0, 1.0, 1.0, 1.0)


def _box_change(weights: tuple[float, ...]) -> Change:
    """Return how the regressor changes that was trained with deltas divided by `weights`, to give the same boxes."""
    if tuple(weights) == BOX_WEIGHTS:
        return BOXES_WITHOUT_BACKGROUND
    factors = [ours / theirs for ours, theirs in zip(BOX_WEIGHTS, weights, strict=True)]
    listed = ", ".join(f"{factor:g}" for factor in factors)
    name = f"{BOXES_WITHOUT_BACKGROUND.name}, deltas times {listed}"
    return Change(name, _scaled(factors))


def _scaled(factors: list[float]) -> Callable[[Tensor], Tensor]:
    def scale(tensor: Tensor) -> Tensor:
        kept = drop_background(tensor, rows=4)
        by_row = tensor.new_tensor(factors).repeat(len(kept) // 4)
        return kept * by_row.reshape(-1, *[1] * (tensor.ndim - 1))

    return scale
