"""Checkpoints of MMDetection 2 and 3, whose names are ours, and of backbones in its formats.

A file is ``{"meta", "state_dict", ...}``. Where a moving average of the weights was kept, the names of the model hold
the average when a checkpoint is written, in both versions, and the raw weights are beside them (mmdet's
core/hook/ema.py; mmengine's hooks/ema_hook.py, `before_save_checkpoint`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detcli.convert.rules import Rule, Unwrapped, is_weights, left_out, only_tensors

DETECTOR = re.compile(
    r"(neck|rpn_head|bbox_head|roi_head|mask_head|segm_head|shared_head|semantic_head|grid_head|mask_iou_head)\."
)
"""How the names of a detector's parts start, other than its backbone's."""

RAW_WEIGHTS = "the weights of the last step: those by the model's own names are their moving average"

REASONS = {
    "optimizer": "the state of the optimiser, for training to go on there",
    "param_schedulers": "the state of the schedules, for training to go on there",
    "message_hub": "the log of training",
    "ema_state_dict": RAW_WEIGHTS,
}

BACKBONE_ONLY = (
    Rule(r"(?:backbone\.)?(?:head\.)?(?:fc|head)\..*", None, why="the classifier of ImageNet's classes"),
    Rule(r"(?:backbone\.)?conv1\.bias", None, why="a batch norm follows the stem, which takes its mean out again"),
)

RENAMED = (
    # Deformable convolutions before mmcv 1.1 kept their offsets' convolution beside them.
    Rule(r"(.*)\.conv2_offset\.(weight|bias)", r"\1.conv2.conv_offset.\2"),
)
"""Names that changed between versions, of shared parts."""

SSD = (
    *(
        Rule(rf"backbone\.extra\.{number}\.(.*)", rf"neck.extra_layers.{number // 2}.{number % 2}.conv.\1")
        for number in range(10)
    ),
    Rule(r"backbone\.l2_norm\.weight", r"neck.l2_norm.weight"),
    Rule(r"bbox_head\.(cls|reg)_convs\.(\d)\.(weight|bias)", r"bbox_head.\1_convs.\2.0.\3"),
)
"""Names of SSD before MMDetection 2.14, whose backbone had the extra layers, too."""


def recognises(content: Any, path: Path) -> bool:
    """Return whether `content` is a checkpoint of MMDetection 2 or 3, or a backbone as MMDetection has them."""
    return has_weights(content) and not is_version_1(content)


def unwrap(content: Any) -> Unwrapped:
    """Return the weights of a checkpoint; its meta are `classes`, `config` (text), `name` and `version`, where known.

    Raises `DetcliError` for weights that are no tensors, and for tensors in a place that is not known.
    """
    tensors = only_tensors(content["state_dict"], "a checkpoint of MMDetection")
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    dropped = left_out(content, ("meta", "state_dict"), REASONS, "MMDetection")
    return Unwrapped(tensors, _meta(content), dropped)


def rules(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> tuple[Rule, ...]:
    """Return the rules of names of a checkpoint: most names are ours already."""
    if is_backbone(tensors):
        return (*BACKBONE_ONLY, *RENAMED, Rule(r"(?:backbone\.)?(.*)", r"\1"))
    return (
        Rule(r"ema_.*", None, why=RAW_WEIGHTS),
        Rule(r"data_preprocessor\..*", None, why="the pixel mean and deviation, which the config has"),
        *(SSD if any(name.startswith("backbone.extra.") for name in tensors) else ()),
        *RENAMED,
        Rule(r"(.*)", r"\1"),
    )


def is_backbone(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of a backbone alone."""
    return not any(DETECTOR.match(name) for name in tensors)


def has_weights(content: Any) -> bool:
    """Return whether `content` has weights where MMDetection keeps them."""
    return isinstance(content, Mapping) and is_weights(content.get("state_dict"))


def is_version_1(content: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint of MMDetection is of its versions 0 or 1.

    The version alone does not tell: a file that MMDetection's tool has upgraded still names the version it had.
    """
    names = [name.removeprefix("module.") for name in content["state_dict"]]
    if any(name.startswith("roi_head.") for name in names):
        return False
    meta = _meta(content)
    version = re.match(r"\d+", meta.get("version", ""))
    if version is not None:
        upgraded = re.search(r"\b(anchor_generator|bbox_coder|roi_head)\s*=", meta.get("config", ""))
        return int(version[0]) < 2 and not upgraded
    two_stage = {"rpn_head", "bbox_head"} <= {name.split(".")[0] for name in names}
    return two_stage or any(re.match(r"bbox_head\.((\d+\.)?shared_(fcs|convs)|fcos_\w+)\.", name) for name in names)


def _meta(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says about itself, by the same keys for all versions."""
    theirs = content.get("meta")
    if not isinstance(theirs, Mapping):
        return {}
    dataset = theirs.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    config = theirs.get("config") or theirs.get("cfg")
    found = {
        "classes": theirs.get("CLASSES") or dataset.get("classes") or dataset.get("CLASSES"),
        # Files of version 1 have the path of each config on a line before its text.
        "config": re.sub(r"(?m)^[^\s=#'\"()]+\.py$\n?", "", config) if isinstance(config, str) else None,
        "name": theirs.get("exp_name") or theirs.get("experiment_name"),
        "version": theirs.get("mmdet_version"),
    }
    if isinstance(found["classes"], str):
        found["classes"] = (found["classes"],)
    return {key: value for key, value in found.items() if value}
