"""The context block of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert.mmdet_group import Group


def mmdet_context_block(group: Group) -> dict[str, Any]:
    """Return the attention of a ContextBlock."""
    group.expect("pooling_type", "att")
    group.expect("fusion_types", ("channel_add",), ["channel_add"])
    return {"name": "context_block", "ratio": group.number("ratio")}
