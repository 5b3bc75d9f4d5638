"""Detectron's blobs against the tensors that Detectron2 makes of them."""

import gzip
import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from detcli.plugins.retinanet.convert import DETECTRON, DETECTRON2

from detcli.convert import detectron, detectron2
from detcli.convert.rules import rename
from detcli.engine.model import build_model
from detcli.errors import DetcliError
from detcli.zoo.names import resolve as find_row
from detcli.zoo.training import training

DATA = Path(__file__).parent / "data" / "detectron"
MODELS = ("e2e_faster_rcnn_R-50-C4", "e2e_faster_rcnn_R-50-FPN", "e2e_mask_rcnn_R-50-FPN", "retinanet_R-50-FPN")
PKL = Path("model_final.pkl")


@cache
def case(name):
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def fill(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    values = random.randn(*shape)
    if len(shape) > 1:
        values *= np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = 1 + 0.1 * values if name.endswith("_s") else 0.05 * values
    return torch.from_numpy(values.astype(np.float32))


@cache
def blobs(name):
    rows = case(name)["blobs"]
    momentum = {f"{row[0]}_momentum": torch.zeros(1) for row in rows if row[3]}
    return {row[0]: fill(*row[:2]) for row in rows} | momentum


def converted(content, plugin=()):
    unwrapped = detectron.unwrap(content)
    return rename(unwrapped.tensors, (*plugin, *detectron.rules(unwrapped.tensors, unwrapped.meta)), "it")


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_what_detectron2_has(name):
    content = {"blobs": blobs(name), "cfg": "MODEL:\n  BBOX_REG_WEIGHTS: [10.0, 10.0, 5.0, 5.0]\n"}
    assert detectron.recognises(content, PKL)
    assert not detectron2.recognises(content, PKL)
    tensors, report = converted(content, DETECTRON)

    rows = {row["name"]: row for row in case(name)["tensors"]}
    theirs = {key: torch.empty(row["shape"]) for key, row in rows.items()}
    _, names = rename(theirs, (*DETECTRON2, *detectron2.rules(theirs)), "it")
    expected = {entry.ours: rows[entry.theirs] for entry in names.entries}
    assert tensors.keys() == expected.keys()
    blob_of = {entry.ours: entry.theirs or None for entry in report.entries}
    wrong = []
    for key, row in expected.items():
        values = tensors[key].double().flatten().numpy()
        places = np.linspace(0, len(values) - 1, len(row["samples"])).astype(int)
        if (
            blob_of[key] != row["blob"]
            or list(tensors[key].shape) != row["shape"]
            or not np.allclose(values[places], row["samples"], rtol=1e-7, atol=0)
            or not np.isclose(values.sum(), row["sum"], rtol=1e-7, atol=1e-5)
        ):
            wrong.append(key)
    assert not wrong
    momentum = {key for key in content["blobs"] if key.endswith("_momentum")}
    assert {entry.theirs for entry in report.dropped} == momentum
    assert {key for key in tensors if tensors[key] is not content["blobs"].get(blob_of[key])} == {
        *(entry.ours for entry in report.transformed),
        *(entry.ours for entry in report.added),
    }


@pytest.mark.parametrize(
    ("cfg", "factors"),
    [
        ("MODEL:\n  TYPE: generalized_rcnn\n", (10, 10, 5, 5)),
        ("MODEL:\n  BBOX_REG_WEIGHTS: [10.0, 10.0, 5.0, 5.0]\n", None),
        ("MODEL:\n  BBOX_REG_WEIGHTS: !!python/tuple\n  - 10.0\n  - 10.0\n  - 5.0\n  - 5.0\n  CLS: 81\n", None),
        ("MODEL:\n  BBOX_REG_WEIGHTS: !!python/tuple [10., 10., 5., 5.]\n", None),
        ("MODEL:\n  BBOX_REG_WEIGHTS: (20, 20, 10, 10)\n", (0.5, 0.5, 0.5, 0.5)),
        (None, None),
    ],
)
def test_the_regressor_gives_the_same_boxes_with_our_weights(cfg, factors):
    boxes = {"cls_score_w": torch.randn(4, 3), "bbox_pred_w": torch.randn(16, 3), "bbox_pred_b": torch.randn(16)}
    tensors, report = converted({"blobs": boxes} | ({} if cfg is None else {"cfg": cfg}))
    expected = torch.tensor(factors or (1, 1, 1, 1)).repeat(3)
    weight, bias = (tensors[f"roi_head.bbox_head.fc_reg.{part}"] for part in ("weight", "bias"))
    torch.testing.assert_close(weight, boxes["bbox_pred_w"][4:] * expected[:, None], rtol=1e-6, atol=0)
    torch.testing.assert_close(bias, boxes["bbox_pred_b"][4:] * expected, rtol=1e-6, atol=0)
    changes = {entry.theirs: entry.change for entry in report.entries}
    listed = f", deltas times {', '.join(f'{factor:g}' for factor in factors)}" if factors else ""
    assert changes["bbox_pred_w"] == f"without the background's box{listed}"


UNFUSED = {
    "gamma": "weight",
    "beta": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
SHORT = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}


@pytest.mark.parametrize("spelling", [UNFUSED, SHORT])
def test_backbones_with_statistics_of_their_own(spelling):
    norms = {"res_conv1": "bn1", "res2_0_branch2a": "layer1.0.bn1", "res5_2_branch2c": "layer4.2.bn3"}
    norms["res2_0_branch1"] = "layer1.0.downsample.1"
    values = {f"{theirs}_bn_{part}": torch.randn(2) for theirs in norms for part in spelling}
    more = dict.fromkeys(["conv1_b", "fc1000_w", "fc1000_b", "pred_w", "pred_b"], torch.randn(2))
    content = {"conv1_w": torch.randn(2), "res2_0_branch2a_w": torch.randn(2)} | values | more
    assert detectron.recognises(content, Path("R-50.pkl"))
    assert detectron.is_backbone(content)
    tensors, report = converted(content)
    assert tensors["conv1.weight"] is content["conv1_w"]
    for theirs, ours in norms.items():
        for part, name in spelling.items():
            assert tensors[f"{ours}.{name}"] is content[f"{theirs}_bn_{part}"]
    assert len(tensors) == 2 + len(values)
    assert {entry.theirs for entry in report.dropped} == set(more)
    assert not report.added
    assert not report.transformed


def test_group_norms_and_keypoints():
    content = dict.fromkeys(
        [
            "conv1_w", "conv1_gn_s", "conv1_gn_b", "res2_0_branch2a_gn_s", "res2_0_branch1_gn_b",
            "fpn_inner_res5_2_sum_gn_s", "fpn_inner_res4_22_sum_lateral_gn_b", "fpn_res2_2_sum_gn_s",
            "fpn_inner_res2_2_sum_lateral_w", "head_conv1_w", "head_conv4_gn_s", "fc6_w", "_[mask]_fcn2_gn_b",
            "conv_fcn1_w", "conv_fcn8_b", "kps_score_lowres_w", "kps_score_w", "kps_score_b",
        ],
        torch.ones(1),
    )  # fmt: skip
    tensors, report = converted({"blobs": content})
    assert set(tensors) == {
        "backbone.conv1.weight", "backbone.gn1.weight", "backbone.gn1.bias", "backbone.layer1.0.gn1.weight",
        "backbone.layer1.0.downsample.1.bias", "neck.lateral_convs.3.gn.weight", "neck.lateral_convs.2.gn.bias",
        "neck.fpn_convs.0.gn.weight", "neck.lateral_convs.0.conv.weight",
        "roi_head.bbox_head.shared_convs.0.conv.weight",
        "roi_head.bbox_head.shared_convs.3.gn.weight", "roi_head.bbox_head.shared_fcs.0.weight",
        "roi_head.mask_head.convs.1.gn.bias", "roi_head.keypoint_head.convs.0.conv.weight",
        "roi_head.keypoint_head.convs.7.conv.bias", "roi_head.keypoint_head.upsample.weight",
    }  # fmt: skip
    assert [entry.theirs for entry in report.dropped] == ["kps_score_w", "kps_score_b"]


@pytest.mark.parametrize("name", ["keypoint_rcnn_R-50-FPN_s1x", "e2e_keypoint_rcnn_R-50-FPN_1x"])
def test_keypoints_fit_the_models_of_their_rows(name):
    content = {key: values for key, values in blobs("e2e_faster_rcnn_R-50-FPN").items() if "momentum" not in key}
    for key in ("cls_score", "bbox_pred"):
        rows = 2 if key == "cls_score" else 8
        content |= {f"{key}_{part}": content[f"{key}_{part}"][:rows] for part in "wb"}
    for number in range(1, 9):
        content[f"conv_fcn{number}_w"] = torch.zeros(512, 256 if number == 1 else 512, 3, 3)
        content[f"conv_fcn{number}_b"] = torch.zeros(512)
    content |= {"kps_score_lowres_w": torch.zeros(512, 17, 4, 4), "kps_score_lowres_b": torch.zeros(17)}
    content |= {"kps_score_w": torch.zeros(17, 17, 4, 4), "kps_score_b": torch.zeros(17)}
    if not name.startswith("e2e"):
        content = {key: values for key, values in content.items() if "rpn" not in key}
    tensors, report = converted({"blobs": content})
    assert {entry.theirs for entry in report.dropped} == {"kps_score_w", "kps_score_b"}
    with torch.device("meta"):
        model = build_model(training(find_row(f"detectron/{name}")).config, num_classes=1)
    own = model.state_dict()
    tracked = {key for key in own if key.endswith("num_batches_tracked")}
    shapes = {key: values.shape for key, values in own.items() if key not in tracked}
    assert {key: values.shape for key, values in tensors.items()} == shapes


def test_a_file_that_detectron2_has_marked_and_others():
    marked = {"model": {"conv1_w": torch.ones(1)}, "__author__": "Caffe2", "matching_heuristics": True}
    assert detectron.recognises(marked, PKL)
    assert not detectron2.recognises(marked, PKL)
    assert converted(marked)[0].keys() == {"conv1.weight"}
    for other in ({}, [], {"blobs": {}}, {"conv1.weight": torch.ones(1)}, {"blobs": {"conv1_w": "text"}}):
        assert not detectron.recognises(other, PKL)


def test_unknown_blobs_are_listed():
    with pytest.raises(DetcliError, match=r"it: AnnIndex_lowres_w has no place in it\."):
        converted({"blobs": {"conv1_w": torch.ones(1), "AnnIndex_lowres_w": torch.ones(1)}})
