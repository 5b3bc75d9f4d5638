"""RegNets of pycls (.pyth), backbones alone, under the names of a ResNet.

A file is ``{"model_state", ...}``. Facts: MMDetection's tools/model_converters/regnet2mmdet.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detcli.convert.rules import Rule, Unwrapped, is_weights, left_out, only_tensors

BLOCK = re.compile(r"s(\d)\.b(\d+)\.f\.")

REASONS = {"optimizer_state": "the state of the optimiser, for training to go on there"}


def recognises(content: Any, path: Path) -> bool:
    """Return whether `content` is a file of pycls with a network in stages of blocks."""
    weights = content.get("model_state") if isinstance(content, Mapping) else None
    return weights is not None and is_weights(weights) and any(BLOCK.match(name) for name in weights)


def unwrap(content: Any) -> Unwrapped:
    """Return the weights of a file.

    Raises `DetcliError` for weights that are no tensors, and for tensors in a place that is not known.
    """
    weights = only_tensors(content["model_state"], "a file of pycls")
    return Unwrapped(weights, {}, left_out(content, ("model_state",), REASONS, "pycls"))


def rules(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> tuple[Rule, ...]:
    """Return the rules of names of a RegNet; its stages and blocks count from 1 there, and its blocks from 0 here."""
    found = [
        Rule(r"head\.fc\.(weight|bias)", None, why="the classifier of ImageNet's classes"),
        Rule(r"stem\.conv\.weight", "conv1.weight"),
        Rule(r"stem\.bn\.(\w+)", r"bn1.\1"),
    ]
    blocks = {match.groups() for name in tensors if (match := BLOCK.match(name))}
    for stage, block in sorted(blocks):
        theirs, ours = rf"s{stage}\.b{block}\.", f"layer{stage}.{int(block) - 1}"
        found += [
            Rule(rf"{theirs}proj\.weight", f"{ours}.downsample.0.weight"),
            Rule(rf"{theirs}bn\.(\w+)", rf"{ours}.downsample.1.\1"),
        ]
        for number, letter in enumerate("abc", 1):
            found += [
                Rule(rf"{theirs}f\.{letter}\.weight", f"{ours}.conv{number}.weight"),
                Rule(rf"{theirs}f\.{letter}_bn\.(\w+)", rf"{ours}.bn{number}.\1"),
            ]
    return tuple(found)


def is_backbone(tensors: Mapping[str, Tensor]) -> bool:
    """Return True: pycls has no detectors."""
    return True
