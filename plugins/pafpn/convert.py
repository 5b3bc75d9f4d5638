"""The neck PAFPN of MMDetection, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group


def mmdet_pafpn(group: Group) -> dict[str, Any]:
    """Return the neck of a PAFPN, whose arguments are those of an FPN."""
    return {**parts.fpn(group), "name": "pafpn"}
