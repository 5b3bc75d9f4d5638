"""Names of Detectron2, for twelve of its models."""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from detcli.plugins.retinanet.convert import DETECTRON2

from detcli.convert import detectron, detectron2, mmdet, torchvision
from detcli.convert.rules import rename
from detcli.errors import DetcliError
from detcli.nn.weights import COUNTER
from detcli.registry import build

SHAPES = Path(__file__).parent / "data" / "detectron2_shapes.json.gz"
PKL = Path("model_final_f10217.pkl")


@cache
def shapes():
    return json.loads(gzip.decompress(SHAPES.read_bytes()))


def weights(name):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes()[name].items()}


def converted(tensors):
    return rename(tensors, (*DETECTRON2, *detectron2.rules(tensors)), "it")


def theirs(name):
    """Return what each of our names is called in a model."""
    return {entry.ours: entry.theirs for entry in converted(weights(name))[1].entries}


@pytest.mark.parametrize("name", [
    "faster_rcnn_R_50_C4_1x", "retinanet_R_50_FPN_1x", "rpn_R_50_FPN_1x", "mask_rcnn_R_50_C4_1x",
    "mask_rcnn_R_50_DC5_1x", "mask_rcnn_R_50_FPN_1x", "keypoint_rcnn_R_50_FPN_1x", "panoptic_fpn_R_50_1x",
    "cascade_mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_FPN_1x_dconv_c3-c5", "mask_rcnn_R_50_FPN_3x_gn",
    "mask_rcnn_R_50_FPN_3x_syncbn",
])  # fmt: skip
def test_every_name_has_one_here_and_no_tensor_changes(name):
    given = weights(name)
    tensors, report = converted(given)
    assert len(tensors) == len(given)
    assert all(tensors[entry.ours] is given[entry.theirs] for entry in report.entries)
    first = {key.split(".")[0] for key in tensors}
    assert first <= {"backbone", "neck", "rpn_head", "bbox_head", "roi_head", "semantic_head"}
    assert not [key for key in tensors if ".norm." in key]


C4 = {
    "backbone": {"name": "resnet", "out_stages": [3, 4]},
    "neck": None,
    "shared_head": True,
    "rpn_head": {"name": "rpn", "anchor_scales": [2, 4, 8, 16, 32]},
    "roi_head": {"name": "standard", "bbox_head": {"name": "conv_fc", "fcs": 0}},
}


@pytest.mark.parametrize(
    ("name", "model", "num_classes"),
    [
        ("faster_rcnn_R_50_C4_1x", {"name": "faster_rcnn", **C4}, 80),
        ("keypoint_rcnn_R_50_FPN_1x", {"name": "keypoint_rcnn"}, 1),
        ("mask_rcnn_R_50_FPN_1x", {"name": "mask_rcnn"}, 80),
        ("panoptic_fpn_R_50_1x", {"name": "panoptic_fpn"}, 80),
        ("retinanet_R_50_FPN_1x", {"name": "retinanet"}, 80),
        ("rpn_R_50_FPN_1x", {"name": "rpn"}, 1),
    ],
)
def test_names_and_shapes_are_those_of_our_models(name, model, num_classes):
    with torch.device("meta"):
        ours = build("models", model, num_classes=num_classes).state_dict()
    shapes = {key: value.shape for key, value in ours.items() if not key.endswith(COUNTER)}
    assert {key: value.shape for key, value in converted(weights(name))[0].items()} == shapes


def test_resnet_and_pyramid():
    names = theirs("mask_rcnn_R_50_FPN_1x")
    assert names["backbone.bn1.running_var"] == "backbone.bottom_up.stem.conv1.norm.running_var"
    assert names["backbone.layer4.0.downsample.0.weight"] == "backbone.bottom_up.res5.0.shortcut.weight"
    assert names["backbone.layer1.2.bn3.bias"] == "backbone.bottom_up.res2.2.conv3.norm.bias"
    assert names["neck.lateral_convs.0.conv.bias"] == "backbone.fpn_lateral2.bias"
    assert names["roi_head.bbox_head.shared_fcs.1.weight"] == "roi_heads.box_head.fc2.weight"
    assert names["roi_head.mask_head.convs.3.conv.weight"] == "roi_heads.mask_head.mask_fcn4.weight"
    assert names["rpn_head.rpn_reg.bias"] == "proposal_generator.rpn_head.anchor_deltas.bias"


def test_levels_count_from_the_lowest():
    names = theirs("retinanet_R_50_FPN_1x")
    assert names["neck.lateral_convs.0.conv.weight"] == "backbone.fpn_lateral3.weight"
    assert names["neck.fpn_convs.2.conv.weight"] == "backbone.fpn_output5.weight"
    assert names["neck.fpn_convs.4.conv.bias"] == "backbone.top_block.p7.bias"
    assert names["bbox_head.reg_convs.3.conv.weight"] == "head.bbox_subnet.6.weight"
    assert names["bbox_head.retina_cls.weight"] == "head.cls_score.weight"


def test_the_last_stage_of_c4_works_on_rois():
    names = theirs("mask_rcnn_R_50_C4_1x")
    assert names["roi_head.shared_head.layer4.0.downsample.1.weight"] == "roi_heads.res5.0.shortcut.norm.weight"
    assert names["backbone.layer3.5.conv3.weight"] == "backbone.res4.5.conv3.weight"
    assert not any(name.startswith("backbone.layer4") for name in names)


def test_norms_are_called_after_their_kind():
    group, batch = theirs("mask_rcnn_R_50_FPN_3x_gn"), theirs("mask_rcnn_R_50_FPN_3x_syncbn")
    for kind, names in (("gn", group), ("bn", batch)):
        assert names[f"backbone.{kind}1.weight"] == "backbone.bottom_up.stem.conv1.norm.weight"
        assert names[f"neck.fpn_convs.3.{kind}.bias"] == "backbone.fpn_output5.norm.bias"
        assert names[f"roi_head.bbox_head.shared_convs.3.{kind}.weight"] == "roi_heads.box_head.conv4.norm.weight"
        assert names[f"roi_head.mask_head.convs.0.{kind}.weight"] == "roi_heads.mask_head.mask_fcn1.norm.weight"
    assert batch["neck.lateral_convs.1.bn.num_batches_tracked"] == "backbone.fpn_lateral3.norm.num_batches_tracked"


def test_other_heads():
    cascade = theirs("cascade_mask_rcnn_R_50_FPN_1x")
    assert cascade["roi_head.bbox_head.2.shared_fcs.0.weight"] == "roi_heads.box_head.2.fc1.weight"
    assert cascade["roi_head.bbox_head.1.fc_reg.bias"] == "roi_heads.box_predictor.1.bbox_pred.bias"
    keypoints = theirs("keypoint_rcnn_R_50_FPN_1x")
    assert keypoints["roi_head.keypoint_head.convs.7.conv.weight"] == "roi_heads.keypoint_head.conv_fcn8.weight"
    assert keypoints["roi_head.keypoint_head.upsample.bias"] == "roi_heads.keypoint_head.score_lowres.bias"
    stuff = theirs("panoptic_fpn_R_50_1x")
    assert stuff["semantic_head.conv_upsample_layers.3.conv.2.gn.bias"] == "sem_seg_head.p5.4.norm.bias"
    assert stuff["semantic_head.conv_logits.weight"] == "sem_seg_head.predictor.weight"
    deformable = theirs("mask_rcnn_R_50_FPN_1x_dconv_c3-c5")
    offset = "backbone.layer2.0.conv2.conv_offset.weight"
    assert deformable[offset] == "backbone.bottom_up.res3.0.conv2_offset.weight"


def test_constants_are_dropped_with_a_reason():
    constants = (
        "pixel_mean",
        "pixel_std",
        "proposal_generator.anchor_generator.cell_anchors.0",
        "anchor_generator.cell_anchors.4",
    )
    more = {name: torch.zeros(3) for name in constants}
    tensors, report = converted(weights("mask_rcnn_R_50_FPN_1x") | more)
    assert tensors.keys() == theirs("mask_rcnn_R_50_FPN_1x").keys()
    assert [entry.theirs for entry in report.dropped] == list(constants)
    assert all(entry.why for entry in report.dropped)


def test_files_of_the_model_zoo_and_of_the_checkpointer():
    given = weights("retinanet_R_50_FPN_1x")
    zoo = {"model": given, "__author__": "Detectron2 Model Zoo"}
    saved = {"model": given, "optimizer": {"state": {}}, "scheduler": {}, "iteration": 89999}
    for content, left in ((zoo, ["__author__"]), (saved, ["optimizer", "scheduler", "iteration"]), (given, [])):
        assert detectron2.recognises(content, PKL)
        assert not any(source.recognises(content, PKL) for source in (detectron, mmdet, torchvision))
        unwrapped = detectron2.unwrap(content)
        assert unwrapped.tensors == given
        assert [entry.theirs for entry in unwrapped.dropped] == left
    for other in (
        {},
        [],
        {"model": {}},
        {"state_dict": given},
        {"model": {"roi_heads.box_head.fc6.weight": torch.ones(1)}},
    ):
        assert not detectron2.recognises(other, PKL)
    with pytest.raises(DetcliError, match="tensors under ema"):
        detectron2.unwrap(zoo | {"ema": given})


def test_shortened_names_are_matched_by_their_ends_and_the_longest_counts():
    full = weights("mask_rcnn_R_50_FPN_1x")
    prefixes = ("backbone.bottom_up.", "backbone.", "proposal_generator.", "roi_heads.")
    short = {next(name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)): name for name in full}
    assert len(short) == len(full)
    extra = {"bottom_up.res2.0.conv1.weight": torch.ones(1)}
    content = {
        "model": {name: full[whole] for name, whole in short.items()} | extra,
        "__author__": "someone",
        "matching_heuristics": True,
    }
    unwrapped = detectron2.unwrap(content)
    expected, _ = converted(full)
    found, _ = converted(unwrapped.tensors)
    assert found.keys() == expected.keys()
    changed = "backbone.layer1.0.conv1.weight"
    assert found[changed] is extra["bottom_up.res2.0.conv1.weight"]
    assert all(found[name] is expected[name] for name in found if name != changed)
    dropped = {entry.theirs: entry.why for entry in unwrapped.dropped}
    assert dropped["res2.0.conv1.weight"] == "bottom_up.res2.0.conv1.weight is a longer name that ends so"


def test_a_backbone_of_imagenet():
    body = {
        name.removeprefix("backbone.bottom_up."): value
        for name, value in weights("mask_rcnn_R_50_FPN_1x").items()
        if name.startswith("backbone.bottom_up.")
    }
    classifier = {"stem.fc.weight": torch.ones(1), "stem.fc.bias": torch.ones(1)}
    content = {"model": body | classifier, "__author__": "torchvision", "matching_heuristics": True}
    assert detectron2.recognises(content, Path("R-50.pkl"))
    unwrapped = detectron2.unwrap(content)
    assert detectron2.is_backbone(unwrapped.tensors)
    assert not detectron2.is_backbone(weights("mask_rcnn_R_50_FPN_1x"))
    tensors, report = rename(unwrapped.tensors, detectron2.rules(unwrapped.tensors), "it")
    assert {"conv1.weight", "bn1.running_mean", "layer4.2.bn3.weight"} < tensors.keys()
    assert len(tensors) == len(body)
    assert {entry.theirs for entry in report.dropped} == set(classifier)
