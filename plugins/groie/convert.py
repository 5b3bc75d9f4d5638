"""The RoI extractor of MMDetection that GRoIE is, in our terms."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides


def mmdet_groie(group: Group, strides: Strides) -> dict[str, Any]:
    """Return the RoI extractor of a GenericRoIExtractor."""
    group.expect("aggregation", "sum")
    before, after = group.group("pre_cfg"), group.group("post_cfg")
    if before.kind != "ConvModule":
        raise before.unsupported("type")
    kernel_size = before.integer("kernel_size")
    before.expect("padding", kernel_size // 2)
    before.expect("norm_cfg", None)
    before.expect("conv_cfg", None)
    before.expect("act_cfg", {"type": "ReLU"})
    before.expect("stride", 1)
    before.ignore("in_channels", "out_channels", "inplace")
    if after.kind != "GeneralizedAttention":
        raise after.unsupported("type")
    after.expect("spatial_range", -1)
    after.expect("kv_stride", 2)
    after.expect("q_stride", 1)
    after.expect("position_embedding_dim", -1)
    after.expect("position_magnitude", 1)
    if after.text("attention_type", "1111") != "0100":
        raise after.unsupported("attention_type")
    after.ignore("in_channels")
    return {
        "name": "groie",
        **parts.roi_align(group, strides),
        "kernel_size": kernel_size,
        "num_heads": after.integer("num_heads", 9, least=1),
    }
