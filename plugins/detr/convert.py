"""DETR of MMDetection, in our terms: names, and configs of 2.10 and later."""

from __future__ import annotations

from typing import Any

from detcli.convert import mmdet_parts as parts
from detcli.convert.mmdet_group import Group
from detcli.convert.mmdet_parts import Strides
from detcli.convert.rules import Rule

TRANSFORMER = r"(bbox_head\.transformer\.\w+\.layers\.\d+)"

MMDET = (
    Rule(rf"{TRANSFORMER}\.self_attn\.(.*)", r"\1.attentions.0.\2"),
    Rule(rf"{TRANSFORMER}\.multihead_attn\.(.*)", r"\1.attentions.1.\2"),
    Rule(rf"{TRANSFORMER}\.ffn\.(.*)", r"\1.ffns.0.\2"),
    Rule(r"bbox_head\.transformer\.decoder\.norm\.(.*)", r"bbox_head.transformer.decoder.post_norm.\1"),
)
"""Names before MMDetection 2.10."""

ENCODER_ORDER = ("self_attn", "norm", "ffn", "norm")
DECODER_ORDER = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")


def mmdet_head(model: Group, strides: Strides) -> dict[str, Any]:
    """Return the model of a config whose `bbox_head` is a DETRHead."""
    head, train, test = parts.dense_head(model)
    head.expect("num_reg_fcs", 2)
    head.expect("sync_cls_avg_factor", False)
    head.ignore("num_classes", "in_channels", "init_cfg")
    transformer = head.group("transformer")
    encoder, decoder = transformer.group("encoder"), transformer.group("decoder")
    decoder.expect("return_intermediate", True)
    layer = _layer(encoder, ENCODER_ORDER)
    if _layer(decoder, DECODER_ORDER) != layer:
        raise decoder.unsupported("transformerlayers")
    positions = head.group("positional_encoding")
    if positions.kind != "SinePositionalEncoding" or not positions.flag("normalize", False):
        raise positions.unsupported("type" if positions.flag("normalize", False) else "normalize")
    positions.expect("num_feats", layer["channels"] // 2)
    classes = Group(head.take("loss_cls"), head.place("loss_cls"))
    if classes.number("class_weight") != 1:  # then it also weighs objects, and divides by another number
        raise classes.unsupported("class_weight")
    plain = {key: value for key, value in classes.values.items() if key not in ("class_weight", "bg_cls_weight")}
    unweighted = Group({"loss_cls": plain}, head.where)
    loss_cls = parts.loss(unweighted, "loss_cls")
    unweighted.check()
    if loss_cls["name"] != "cross_entropy" or loss_cls["sigmoid"]:
        raise classes.unsupported("use_sigmoid" if loss_cls["name"] == "cross_entropy" else "type")
    num_queries = head.integer("num_query", 100, least=1)
    return {
        "name": "detr",
        "num_queries": num_queries,
        **layer,
        "encoder_layers": encoder.integer("num_layers", least=1, most=64),
        "decoder_layers": decoder.integer("num_layers", least=1, most=64),
        "assigner": parts.assigner(train),
        "loss_cls": loss_cls,
        "loss_bbox": parts.loss(head, "loss_bbox"),
        "loss_iou": parts.loss(head, "loss_iou"),
        "background_weight": classes.number("bg_cls_weight", 1.0),
        "max_per_image": test.integer("max_per_img", num_queries),
    }


def _layer(stack: Group, order: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of the layers of an encoder or decoder, whose operations must be in this order."""
    layer = stack.group("transformerlayers")
    if layer.take("operation_order") not in (list(order), order):
        raise layer.unsupported("operation_order")
    attentions = layer.take("attn_cfgs")
    # One dict is for all attentions of a layer.
    attentions = attentions if isinstance(attentions, list | tuple) and attentions else [attentions]
    found = [_attention(Group(attention, layer.place("attn_cfgs"))) for attention in attentions]
    dropout = layer.number("ffn_dropout", 0.0)
    if any(attention != {**found[0], "dropout": dropout} for attention in found):
        raise layer.unsupported("attn_cfgs")
    return {**found[0], "ffn_channels": layer.integer("feedforward_channels", least=1)}


def _attention(group: Group) -> dict[str, Any]:
    if group.kind != "MultiheadAttention":
        raise group.unsupported("type")
    result = {
        "channels": group.integer("embed_dims", least=1),
        "heads": group.integer("num_heads", least=1),
        "dropout": group.number("dropout", 0.0),
    }
    group.check()
    return result
