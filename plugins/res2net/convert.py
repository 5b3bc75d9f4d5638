"""The backbone Res2Net of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group


def mmdet_res2net(group: Group) -> dict[str, Any]:
    """Return the backbone of a Res2Net."""
    group.expect("style", "pytorch")
    group.expect("deep_stem", True)
    group.expect("avg_down", True)
    group.expect("plugins", None)
    args = {
        **parts.residual_network(group),
        "scales": group.integer("scales", 4, least=2),
        "base_width": group.integer("base_width", 26, least=1),
    }
    name = f"res2net{args['depth']}"
    return {"name": name if name in ("res2net50", "res2net101") else "res2net", **args}
