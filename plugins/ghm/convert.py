"""The losses GHM-C and GHM-R of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert.mmdet_group import Group


def mmdet_ghm_c(group: Group) -> dict[str, Any]:
    """Return the loss of a GHMC."""
    group.expect("use_sigmoid", True)
    return {"name": "ghm_c", **_density(group)}


def mmdet_ghm_r(group: Group) -> dict[str, Any]:
    """Return the loss of a GHMR."""
    return {"name": "ghm_r", "mu": group.number("mu", 0.02), **_density(group)}


def _density(group: Group) -> dict[str, Any]:
    return {"bins": group.integer("bins", 10, least=1), "momentum": group.number("momentum", 0.0)}
