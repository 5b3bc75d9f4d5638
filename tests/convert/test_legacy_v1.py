"""MMDetection 1.x: names, shapes and values of five models, as MMDetection 2 has them."""

import gzip
import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from detcli.convert import legacy_v1, mmdet
from detcli.convert.rules import rename

DATA = Path(__file__).parent / "data" / "legacy_v1"
MODELS = (
    "mask_rcnn_r50_fpn_1x_coco_v1",
    "cascade_mask_rcnn_r50_fpn_1x_coco_v1",
    "retinanet_r50_caffe_fpn_1x_coco_v1",
    "retinanet_r50_fpn_1x_coco_v1",
    "ssd300_coco_v1",
)


@cache
def case(name):
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


@cache
def fill():
    spec = importlib.util.spec_from_file_location("parity_rule", Path(__file__).parents[1] / "parity" / "rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill


def checkpoint(name):
    weights = {row[0]: torch.from_numpy(np.array(fill()(*row))) for row in case(name)["v1_state_dict"]}
    return {"meta": case(name)["v1_meta"], "state_dict": weights, "optimizer": {"state": {}}}


def converted(content):
    unwrapped = legacy_v1.unwrap(content)
    return rename(unwrapped.tensors, legacy_v1.rules(unwrapped.tensors), "it")


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_what_mmdetection_2_has(name):
    content = checkpoint(name)
    assert legacy_v1.recognises(content, Path("a.pth"))
    assert not mmdet.recognises(content, Path("a.pth"))
    tensors, report = converted(content)
    expected = {row["name"]: row for row in case(name)["expected"]}
    assert tensors.keys() == expected.keys() == {row[0] for row in case(name)["v2_state_dict"]}
    theirs = {entry.ours: entry.theirs for entry in report.entries}
    wrong = []
    for key, row in expected.items():
        values = tensors[key].double().flatten().numpy()
        places = np.linspace(0, len(values) - 1, len(row["samples"])).astype(int)
        if (
            theirs[key] != row["v1_name"]
            or list(tensors[key].shape) != row["shape"]
            or not np.array_equal(values[places], row["samples"])
            or abs(values.sum() - row["sum"]) > 1e-9 * max(len(values), 1e3)
            or abs(values.mean() - row["mean"]) > 1e-9
        ):
            wrong.append(key)
    assert not wrong


@pytest.mark.parametrize("name", MODELS)
def test_what_does_not_change_is_not_copied(name):
    content = checkpoint(name)
    tensors, report = converted(content)
    changed = {entry.ours for entry in report.transformed}
    weights = content["state_dict"]
    for entry in report.entries:
        assert (tensors[entry.ours] is weights[entry.theirs]) == (entry.ours not in changed)
    assert len(changed) == {"retinanet": 0, "ssd300_co": 12, "mask_rcnn": 6}.get(name[:9], 12)


def test_outputs_that_do_not_depend_on_the_class_stay():
    content = checkpoint("cascade_mask_rcnn_r50_fpn_1x_coco_v1")
    _, report = converted(content)
    changes = {entry.ours: entry.change for entry in report.entries}
    assert changes["roi_head.bbox_head.1.fc_reg.weight"] == ""
    assert changes["roi_head.bbox_head.1.fc_cls.weight"] == "background last"
    assert changes["roi_head.mask_head.2.conv_logits.bias"] == "without the background"
