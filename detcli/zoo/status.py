"""How far detcli is with a published row, computed from what there is: nobody writes a status down."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any, Literal

from detcli.config import RunConfig
from detcli.errors import unknown
from detcli.plugin import PartConfig
from detcli.registry import find, names, split
from detcli.signature import REQUIRED, read
from detcli.zoo.names import weights_url
from detcli.zoo.rows import DATA, Row
from detcli.zoo.training import LEGACY, training

Status = Literal["listed", "builds", "converts", "verified"]

STATUSES = ("listed", "builds", "converts", "verified")
"""In their order; each needs the one before.

listed: its row is data here. builds: a command builds its model, which differs from the row's in nothing but its
training; of a row that compares backbones, the backbone. converts: its weights are linked, and there are rules for
their names. verified: a model of this config, converted from its origin's own file format, gives the numbers that the
origin's code gave (`nox -s parity`).
"""

CONVERTERS = {"detectron2": "detectron2", "detectron": "detectron", "mmdet-v0": "legacy-v1", "mmdet-v2": "mmdet"}
"""What `detcli convert` calls the origin of each document's weights, those of `LEGACY` aside."""

SAME_NAMES = ("mmdet", "legacy-v1")
"""Sources whose names are those of all models here."""

SHARED_PARTS = ("rpn", "fast_rcnn", "faster_rcnn", "mask_rcnn", "keypoint_rcnn", "panoptic_fpn")
"""Models of shared parts alone, which every source has rules for; the plugins of others bring theirs."""

PARITY = DATA / "parity.json"
"""What came of the reference cases: written by the session ``parity``, never by hand."""


def status(row: Row) -> Status:
    """Return how far detcli is with `row`, without torch."""
    found = training(row)
    if found.config is None or not found.exact:
        return "listed"
    origin = CONVERTERS["mmdet-v0" if row.method == LEGACY else row.source]
    if not weights_url(row) or not _has_rules(origin, row.model):
        return "builds"
    return "verified" if digest(found.config) in _passed() else "converts"


def reached(row: Row, wanted: str) -> bool:
    """Return whether `row` has the status `wanted` or a later one; raises `UsageError` for one that there is not."""
    if wanted not in STATUSES:
        raise unknown("status", wanted, STATUSES, "detcli zoo list --help")
    return STATUSES.index(status(row)) >= STATUSES.index(wanted)


def digest(config: RunConfig) -> str:
    """Return what stands for a config's model and input: equal where both are equal in every argument.

    What is as its default is left out, so that a builder's new argument changes no digest.
    """
    parts = {
        "model": _chosen("models", config.model),
        "input": config.input.model_dump(mode="json", exclude_defaults=True),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _chosen(slot: str, config: PartConfig) -> dict[str, Any]:
    """Return the name of a part and those of its arguments that are not as they would be without being given."""
    name, given = split(config)
    part = find(slot, name)
    chosen: dict[str, Any] = {"name": name}
    for parameter in read(part.ref):
        if parameter.name not in given:
            continue
        default = part.args.get(parameter.name, parameter.default)
        values = [given[parameter.name], None if default is REQUIRED else default]
        if parameter.slot:
            values = [value if value is None else _chosen(parameter.slot, value) for value in values]
        value, usual = map(_as_json, values)
        if value != usual:
            chosen[parameter.name] = value
    return chosen


def _as_json(value: Any) -> Any:
    """Return `value` as JSON reads it again, with lists for tuples."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _has_rules(source: str, model: str) -> bool:
    return model in SHARED_PARTS or source in SAME_NAMES or f"{source}/{model}" in names("converters")


def parity_cases() -> dict[str, Any]:
    """Return what came of each reference case, by its name: as tests/parity/session.py writes it."""
    cases: dict[str, Any] = json.loads(PARITY.read_text(encoding="utf-8")) if PARITY.is_file() else {}
    return cases


@cache
def _passed() -> frozenset[str]:
    """Return the digests of the models whose reference cases pass."""
    return frozenset(case["config"] for case in parity_cases().values() if case["passes"])
